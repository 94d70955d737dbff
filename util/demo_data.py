"""Draw the demo dataset: pictures in PASCAL's layout, on which the method can be tried at once.

`python -m util.demo_data --out data/demo` writes JPEGImages/*.jpg, SegmentationClassAug/*.png (0
background, 1..20 classes, 255 outlines), train.txt and val.txt ("IMAGE MASK" a line, relative to
the folder) and classes.txt. A class is a silhouette with a surface pattern, mostly in its two usual
hues; shade, pose, size, light and background vary, so only the support tells what to segment.
An interrupted command continues where it stopped when it is given again.
"""

import argparse
import json
import os
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from util.data.folds import LIST_PARTS
from util.demo.scene import Hues, SceneObject, draw_scene
from util.runtime.errors import UserError, exits_on_user_error
from util.runtime.files import write_atomically
from util.runtime.parallel import run_parallel

# PATTERN_SILHOUETTE of the classes 1..20. No two share both, and the five classes of a line, which a
# fold holds out, share neither.
CLASS_NAMES = (
    *("striped_star", "dotted_ring", "checked_leaf", "netted_gear", "zigzag_bottle"),
    *("ringed_fish", "striped_cross", "dotted_crescent", "checked_key", "rimmed_house"),
    *("dotted_mushroom", "rayed_heart", "zigzag_arrow", "netted_hourglass", "striped_butterfly"),
    *("checked_crown", "rimmed_cloud", "ringed_bell", "netted_boat", "rayed_flower"),
)

STAMP = "demo.json"
_VERSION = 3  # raise it when the same seed would give other pictures
_GROUP = 5
_OBJECTS = (0.46, 0.89)  # cumulative shares of pictures with one and with two objects
_SAME_GROUP = 0.6  # share of the pictures whose classes come from one group of five


def usual_hues(class_id: int) -> Hues:
    """Return the two hues, in degrees, that a class mostly has; no two classes share both.

    In each group of five the first hues differ, and the second lies as far from the first in all of
    them: a fold holds out pairs of hues unlike those it trains on.
    """
    group, position = divmod(class_id - 1, _GROUP)
    first = position + group
    return 60 * (first % 6), 60 * ((first + group + 1) % 6)


def scene_classes(seed: int, part: int, index: int) -> list[int]:
    """Return the class ids of picture `index` of a part (0 train, 1 val); the first is always drawn.

    The first classes run through all twenty in a new order every twenty pictures. Most pictures
    keep to one group of five, so that a fold, which drops every training picture with a held-out
    class, keeps well over half of them.
    """
    number = len(CLASS_NAMES)
    order = np.random.RandomState((seed, part, index // number, 1)).permutation(number)
    first = int(order[index % number])
    rng = np.random.RandomState((seed, part, index, 2))
    count = 1 + int(np.searchsorted(_OBJECTS, rng.uniform(), side="right"))
    start = first - first % _GROUP
    pool = range(start, start + _GROUP) if rng.uniform() < _SAME_GROUP else range(number)
    others = [c for c in pool if c != first]
    chosen = [first, *(others[k] for k in rng.permutation(len(others))[: count - 1])]
    return [c + 1 for c in chosen]


def draw_picture(seed: int, part: int, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw picture `index` of a part (0 train, 1 val), whose sides are at most `size` pixels.

    Returns:
        The RGB image, uint8 (h, w, 3), and the mask, uint8 (h, w).
    """
    rng = np.random.RandomState((seed, part, index, 3))
    long = round(size * rng.uniform(0.92, 1.0))
    short = round(long * rng.uniform(0.84, 0.96))
    height, width = (short, long) if rng.uniform() < 0.6 else (long, short)
    objects = []
    for class_id in scene_classes(seed, part, index):
        pattern, shape = CLASS_NAMES[class_id - 1].split("_")
        objects.append(SceneObject(class_id, pattern, shape, usual_hues(class_id)))
    return draw_scene(rng, objects, height, width)


def _write_picture(out: Path, seed: int, size: int, picture: tuple[int, int, str, str]) -> None:
    """Draw a picture, given as part, index, and names of image and mask, into a folder."""
    part, index, image_name, mask_name = picture
    image, label = draw_picture(seed, part, index, size)
    jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 93])[1]
    write_atomically(out / mask_name, cv2.imencode(".png", label)[1].tobytes())
    write_atomically(out / image_name, jpeg.tobytes())


def write_demo(
    out: str | os.PathLike[str], train: int = 1000, val: int = 400, seed: int = 0, size: int = 240
) -> bool:
    """Write the dataset into a folder; no other file is overwritten or deleted.

    Args:
        out: The folder.
        train: Number of training pictures.
        val: Number of validation pictures.
        seed: Seed of the pictures.
        size: Longest side in pixels.

    Returns:
        False if the whole dataset existed already, else True.

    Raises:
        UserError: A value is out of range, or the folder holds anything but this dataset.
    """
    for name, value, low, high in (
        ("--train", train, 1, 10**6),
        ("--val", val, 1, 10**6),
        ("--seed", seed, 0, 2**32 - 1),
        ("--size", size, 160, 1024),
    ):
        if not low <= value <= high:
            raise UserError(f"{name} {value}: must lie between {low} and {high}")
    out = Path(out)
    counts = {"train": train, "val": val}
    _claim_folder(out, {"version": _VERSION, **counts, "seed": seed, "size": size})
    texts = {"classes.txt": "".join(f"{name}\n" for name in CLASS_NAMES)}
    missing = []
    for number, part in enumerate(LIST_PARTS):
        stems = [f"{part}_{index:04d}" for index in range(counts[part])]
        pairs = [(f"JPEGImages/{stem}.jpg", f"SegmentationClassAug/{stem}.png") for stem in stems]
        texts[f"{part}.txt"] = "".join(f"{image} {mask}\n" for image, mask in pairs)
        missing += [
            (number, index, image, mask)
            for index, (image, mask) in enumerate(pairs)
            if not ((out / image).exists() and (out / mask).exists())
        ]
    if not missing and all((out / name).exists() for name in texts):
        return False
    draw = partial(_write_picture, out, seed, size)
    run_parallel(draw, missing, description="demo data", progress=False)
    for name, text in texts.items():
        write_atomically(out / name, text)
    return True


def _claim_folder(out: Path, arguments: dict[str, int]) -> None:
    """Make the folder with its stamp, or check that its stamp names the same arguments."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a new folder as --out")
    stamp, text = out / STAMP, json.dumps(arguments, indent=1) + "\n"
    try:
        if stamp.exists():
            if stamp.read_bytes() != text.encode():
                raise UserError(
                    f"{out} holds a demo dataset of other arguments, see {stamp}: give a new --out, "
                    "or delete this folder"
                )
        elif out.is_dir() and any(not path.name.startswith(STAMP) for path in out.iterdir()):
            raise UserError(f"{out} is not empty and not a demo dataset: give a new --out")
        else:
            write_atomically(stamp, text)
    except OSError as error:
        raise UserError(f"{out} cannot be used ({error.strerror}): give a new --out") from error


@exits_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the demo dataset.")
    parser.add_argument("--out", default="data/demo", help="folder to write (%(default)s)")
    parser.add_argument("--train", type=int, default=1000, help="training pictures (%(default)s)")
    parser.add_argument("--val", type=int, default=400, help="validation pictures (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--size", type=int, default=240, help="longest side, px (%(default)s)")
    options = parser.parse_args(arguments)
    written = write_demo(options.out, options.train, options.val, options.seed, options.size)
    print(f"demo dataset {'written to' if written else 'is complete in'} {options.out}")


if __name__ == "__main__":
    main()
