"""Other benchmarks: python -m util.prepare_benchmark NAME --root DIR --out DIR

NAME is fss (FSS-1000), or one of the sets on which models trained on PASCAL are tested: isic, chest,
deepglobe and suim. DIR is the folder of the unpacked archives; docs/data.md says what it holds.
Checks all files, makes the data root OUT with images (links, copies or tiles) and masks/CLASS/IMAGE.png,
the lists and the configuration, and says what differs from the published numbers. After an
interruption the same command continues.
"""

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from util.config import Parser
from util.data.folds import PARTS, SEEN
from util.data.images import Entry, read_image
from util.data.masks import HALF, UNREADABLE, MaskFile
from util.preparation.custom_config import require_own_place, write_config
from util.preparation.exports import files_under
from util.preparation.masks import Placed, pair_summary, place_all, prepare_pair
from util.preparation.shared import (
    DataRoot,
    add_shared_options,
    count_line,
    require_files,
    require_folder,
    resumable,
)
from util.runtime.errors import UserError
from util.runtime.files import write_atomically
from util.runtime.texts import read_text

IMAGES, MASKS = "images", "masks"  # folders under the data root
RAREST = 0.048  # A tile whose rarest colour covers a smaller share is left out.
_MANY = 100  # From so many classes on, only all of them together are counted.
_HINT = "docs/data.md says what --root has to hold"


class Benchmark(NamedTuple):
    """What the archives of a benchmark hold.

    The patterns are of paths under --root, with the group `key`, which images and masks share, and
    perhaps the group `name`, the class or its number.
    """

    title: str
    image: str
    mask: str
    images: int  # published number of images with masks
    pairs: Sequence[int]  # published numbers of images of each class, or of all together
    classes: Mapping[str, int] = {}  # name → its colour in masks, red 4, green 2, blue 1, or 0
    parts: Mapping[str, int] = {}  # published numbers of classes of parts, where lists name them
    tile: int = 0  # side of the square tiles into which images are cut
    settings: Mapping[str, Any] = {"folds": SEEN, "hsnet_class": "cyclic", "test_num": 600}


BENCHMARKS = {
    "fss": Benchmark(
        "FSS-1000",
        r"(?P<key>(?P<name>[^/]+)/\d+)\.jpg",
        r"(?P<key>[^/]+/\d+)\.png",
        *(10_000, [10] * 1000),
        parts={"train": 520, "val": 240, "test": 240},
        settings={"base_learner": "none", "test_num": 2400},
    ),
    "isic": Benchmark(
        "ISIC 2018, task 1",
        r"(?:(?P<name>[123])/)?(?P<key>ISIC_\d+)\.jpg",
        r"(?P<key>ISIC_\d+)_segmentation\.png",
        *(2594, [1867, 519, 208]),
        {"nevus": 0, "melanoma": 0, "seborrheic_keratosis": 0},
    ),
    "chest": Benchmark(
        "Chest X-ray",
        r"CXR_png/(?P<key>[^/]+)\.png",
        r"masks/(?P<key>[^/]+)_mask\.png",
        *(566, [566]),
        {"lung": 0},
    ),
    "deepglobe": Benchmark(
        "DeepGlobe land cover",
        r"(?P<key>\d+)_sat\.jpg",
        r"(?P<key>\d+)_mask\.png",
        *(803, [6891, 4189, 4333, 1564, 1370, 2195]),
        {"agriculture": 6, "urban": 3, "rangeland": 5, "forest": 2, "water": 1, "barren": 7},
        tile=408,
    ),
    "suim": Benchmark(
        "SUIM",
        r"images/(?P<key>[^/]+)\.jpg",
        r"masks/(?:(?P<name>FV|HD|PF|RI|RO|SR|WR)/)?(?P<key>[^/]+)\.(?:bmp|png|jpg)",
        *(1635, [3859]),
        {"FV": 6, "HD": 1, "PF": 2, "RI": 5, "RO": 4, "SR": 7, "WR": 3},
    ),
}


class Source(NamedTuple):
    """An image of an archive and its masks with their class ids; 0: colours are classes."""

    key: str
    image: str
    masks: list[tuple[str, int]]


def find_sources(
    root: str, benchmark: Benchmark, names: Sequence[str]
) -> tuple[list[Source], list[str]]:
    """Return the images with masks under `root`, sorted by key, and lines on what has no partner.

    Raises:
        UserError: There is none, two files are of one key, or the class of an image is not known.
    """
    ids = {name: number for number, name in enumerate(names, 1)}
    ids |= {str(number): number for number in ids.values()}
    listed, coloured = _listed_classes(root), any(benchmark.classes.values())
    images, masks = _matches(root, benchmark.image), _matches(root, benchmark.mask)
    sources = []
    for key, files in sorted(images.items()):
        image, name = next(iter(files.items()))
        own_class = name or listed.get(key) or (names[0] if len(names) == 1 else "")
        found = [(path, ids.get(name or own_class, 0)) for path, name in masks.pop(key, {}).items()]
        # A mask of colours holds all classes, and is taken where there are also those of each.
        found = [one for one in found if one[1] == 0] or found
        if found and found[0][1] == 0 and not coloured:
            raise UserError(f"the class of {image} is not known: {_HINT}")
        if len(files) > 1 or len({number for _, number in found}) < len(found):
            twice = [*files] if len(files) > 1 else [path for path, _ in found]
            raise UserError(f"{' and '.join(twice)} have one name and one class: remove one")
        if found:
            sources.append(Source(key, image, found))
    if not sources:
        raise UserError(f"--root {root} holds no images and masks of {benchmark.title}: {_HINT}")
    alone = len(images) - len(sources), len(masks)
    kinds = "images without a mask", "masks without an image"
    return sources, [f"{kind}, left out: {n:,}" for kind, n in zip(kinds, alone, strict=True) if n]


def _matches(root: str, pattern: str) -> dict[str, dict[str, str]]:
    """Return key → path → name, if the pattern has one, of the files that match a pattern."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for path in files_under(root, ("",)):
        # The folders before are those of archives, as few as possible.
        match = re.fullmatch(rf"(?:.*?/)??{pattern}", Path(path).relative_to(root).as_posix())
        if match:
            found[match["key"]][path] = match.groupdict().get("name") or ""
    return found


def _listed_classes(root: str) -> dict[str, str]:
    """Return image → class of the tables under `root` with the columns ID and Class."""
    tables = (read_text(path).split("\n") for path in files_under(root, (".csv",)))
    rows = (row for lines in tables for row in csv.DictReader(map(str.strip, lines)))
    named = ((row.get("ID"), row.get("Class")) for row in rows)
    return {image: name.replace(" ", "_") for image, name in named if image and name}


def place(
    root: DataRoot, benchmark: Benchmark, names: Sequence[str], source: Source
) -> list[tuple[int, Entry, Placed]] | str:
    """Put an image, or its tiles, with a binary mask for each class in it under the data root.

    A mask that is smaller or larger than its image is resized, since the published loaders bring both
    to one size.

    Returns:
        The class ids with the entries and what `prepare_pair` returned, or what is wrong.
    """
    placed = []
    try:
        for name, image, regions in _parts(root, benchmark, source):
            stem = os.path.splitext(os.path.basename(name))[0]
            with Image.open(image) as opened:
                size = opened.size
            for class_id, region in regions.items():
                if not region.any():
                    continue
                mask: np.ndarray = region * np.uint8(255)
                if sorted(mask.shape) != sorted(size):
                    mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
                entry = f"{IMAGES}/{name}", f"{MASKS}/{names[class_id - 1]}/{stem}.png"
                sources = [mask.shape, mask.tobytes()]
                how = prepare_pair(root, image, entry, sources, partial(np.copy, mask))
                placed.append((class_id, entry, how))
        return placed
    except UserError as error:
        return str(error)
    except UNREADABLE as error:
        return f"image {source.image} is damaged or truncated ({error}): replace it"


def _parts(
    root: DataRoot, benchmark: Benchmark, source: Source
) -> Iterator[tuple[str, str, dict[int, np.ndarray]]]:
    """Yield name, file and regions, bool (H, W), of an image; or of its tiles, which are written."""
    side, regions = benchmark.tile, {}
    for path, class_id in source.masks:
        opened = MaskFile(path, Path(path).read_bytes()).image
        if class_id:
            regions[class_id] = np.asarray(opened.convert("L")) >= HALF
        else:
            codes = (np.asarray(opened.convert("RGB")) >= HALF) @ np.array([4, 2, 1], np.uint8)
            regions = {id_: codes == one for id_, one in enumerate(benchmark.classes.values(), 1)}
    if not side:
        yield source.key + Path(source.image).suffix, source.image, regions
        return
    image = read_image(source.image)
    for row, column in np.ndindex(*(length // side for length in codes.shape)):
        window = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
        shares = np.unique(codes[window], return_counts=True)[1] / side**2
        if len(shares) == 1 or shares.min() < RAREST:
            continue
        name = f"{Path(source.image).stem}_{row}{column}.jpg"
        path = os.path.join(root.folder, IMAGES, name)
        data = cv2.imencode(".jpg", image[window][..., ::-1])[1].tobytes()
        if not os.path.exists(path):
            write_atomically(path, data)
        elif Path(path).read_bytes() != data:
            raise UserError(f"{path} exists and differs: delete it or give a new --out")
        yield name, path, {class_id: region[window] for class_id, region in regions.items()}


def _class_lists(root: str) -> dict[str, list[str]]:
    """Return the sorted classes of each of PARTS from the lists trn.txt, val.txt and test.txt."""
    files = [Path(root, f"{name}.txt") for name in ("trn", "val", "test")]
    require_files(files, "take this list of classes from data/splits/fss of HSNet's repository")
    texts = [read_text(path).split("\n") for path in files]
    names = [sorted(filter(None, map(str.strip, text))) for text in texts]
    return dict(zip(PARTS, names, strict=True))


@resumable
def main(arguments: list[str] | None = None) -> None:
    """Run the command line `arguments` (that of the process if None)."""
    parser = Parser(description="Prepare a benchmark.")
    parser.add_argument("name", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--root", required=True, help="folder of the unpacked archives")
    add_shared_options(parser)
    options = parser.parse_args(arguments)
    name, benchmark = options.name, BENCHMARKS[options.name]
    require_own_place(name, options.out, "benchmark")
    require_folder(options.root, f"give the folder of {benchmark.title} as --root")
    if Path(options.out).resolve().is_relative_to(Path(options.root).resolve()):
        raise UserError(f"--out {options.out} lies in --root {options.root}: separate them")
    parts = _class_lists(options.root) if benchmark.parts else {}
    names = [*benchmark.classes] or [one for part in PARTS for one in parts[part]]
    sources, lines = find_sources(options.root, benchmark, names)
    root = DataRoot.of(options, name)
    folders = {os.path.dirname(f"{IMAGES}/{source.key}") for source in sources}
    root.open("", *sorted(folders), *(f"{MASKS}/{one}" for one in names))

    placed = place_all(partial(place, root, benchmark, names), sources, root, name)
    done = sorted(pair for of_source in placed for pair in of_source)
    lines.append(pair_summary([how for *_, how in done])[1])
    lines.append(count_line(f"images of {benchmark.title}", len(sources), benchmark.images))
    for part, number in benchmark.parts.items():
        lines.append(count_line(f"classes of {part}", len(parts[part]), number))
    lines.append(count_line("images of the classes, together", len(done), sum(benchmark.pairs)))
    found = Counter(class_id for class_id, *_ in done)
    if len(benchmark.pairs) == len(names) < _MANY:
        pairs = enumerate(zip(names, benchmark.pairs, strict=True), 1)
        lines += [count_line(one, found[class_id], number) for class_id, (one, number) in pairs]
    # Where all classes are tested, the lists are the same.
    first_tested = len(parts["train"]) + 1 if parts else 1
    last_trained = first_tested - 1 or len(names)
    trained = [entry for class_id, entry, _ in done if class_id <= last_trained]
    tested = [entry for class_id, entry, _ in done if class_id >= first_tested]
    lines += [root.write_list("train", trained), root.write_list("val", tested)]
    data: dict[str, Any] = {
        "num_classes": len(names),
        "class_names": names,
        **{"masks": "folders", "min_pixels": 1, "protocol": "hsnet"},
        **benchmark.settings,
    }
    if parts:
        data["folds"] = {part: [names.index(one) + 1 for one in parts[part]] for part in PARTS}
    write_config(name, root, data, {"protocol": "the published one"}, "benchmark")
    config = f"--config config/{name}/{name}_split0_resnet50.yaml"
    lines.append(f"next: python -m util.verify {config}")
    lines += [f"then: sh train.sh split0 {name} 1"] if parts else []
    lines.append(f"then: python test.py {config} --opts weight FILE, perhaps of PASCAL")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
