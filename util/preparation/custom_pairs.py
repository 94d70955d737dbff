"""The user's own images and masks: which belong together, which classes there are, which are tested.

A folder of masks holds either index masks, masks/IMAGE.png (0 background, 1..N classes, 255
ignored; gray or with a palette), or binary ones, masks/CLASS/IMAGE.png (0 and one other value).
"""

import os
import unicodedata
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from util.data.folds import MAX_CLASSES
from util.data.images import Entry
from util.runtime.errors import UserError

PARTS = ("train", "val")
IMAGE_FOLDER, MASK_FOLDER = "images", "index_masks"  # under the data root
IMAGE_TYPES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MASK_TYPES = (".png",)
_NAMED = 3  # names in a message


class Pair(NamedTuple):
    """Paths of an image and its mask: of an index mask, or of binary ones by class id."""

    image: str
    mask: str | dict[int, str]

    @property
    def entry(self) -> Entry:
        """Image and index mask as a list names them, relative to the data root."""
        name = os.path.basename(self.image)
        stem = os.path.splitext(name)[0]
        return f"{IMAGE_FOLDER}/{name}", f"{MASK_FOLDER}/{stem}.png"


def match_name(name: str) -> str:
    """Return the form in which names are compared: systems write é as one letter or as two."""
    return unicodedata.normalize("NFC", name)


def find_pairs(
    images: str, masks: str, class_names: list[str] | None
) -> tuple[list[Pair], list[str] | None]:
    """Find the pairs of two folders.

    Other files than images and PNG masks are ignored.

    Args:
        images: The folder of the images.
        masks: The folder of the masks.
        class_names: The names that the user gave. They order the folders of binary masks, which
            are in alphabetical order otherwise.

    Returns:
        The pairs, sorted by name, and the names of the classes 1, 2, …, which are None if
        index masks have none.

    Raises:
        UserError: An image has no mask or a mask no image, or the folders hold something else.
    """
    image_files = _files(images, IMAGE_TYPES)
    if not image_files:
        raise UserError(
            f"{images} holds no image ({', '.join(IMAGE_TYPES)}); its subfolders are not searched"
        )
    index_masks = _files(masks, MASK_TYPES)
    folders = sorted(
        entry.name for entry in os.scandir(masks) if entry.is_dir() and entry.name[0] != "."
    )
    if bool(index_masks) == bool(folders):
        found = f"PNGs and folders ({folders[0]})" if folders else "no mask"
        raise UserError(
            f"{masks} holds {found}: give index masks, IMAGE.png, or folders of binary masks, "
            "CLASS/IMAGE.png"
        )
    binary_masks: dict[str, dict[int, str]] = {}
    if folders:
        folders = _in_order(folders, class_names, masks)
        class_names = class_names or folders
        for class_id, folder in enumerate(folders, 1):
            for stem, path in _files(os.path.join(masks, folder), MASK_TYPES).items():
                binary_masks.setdefault(stem, {})[class_id] = path
    by_image = index_masks | binary_masks
    _require_partners(image_files, by_image, images, masks)
    return [Pair(path, by_image[stem]) for stem, path in image_files.items()], class_names


def _files(folder: str, types: tuple[str, ...]) -> dict[str, str]:
    """Return name without suffix → path of the folder's files of these types, sorted."""
    found: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        path = os.path.join(folder, name)
        if suffix.lower() not in types or name[0] == "." or not os.path.isfile(path):
            continue
        other = found.setdefault(match_name(stem), path)
        if other != path:
            raise UserError(
                f"{other} and {path} differ only in their type: a mask belongs to one of them"
            )
    return found


def _in_order(folders: list[str], class_names: list[str] | None, masks: str) -> list[str]:
    """Return the folders of the classes 1, 2, …."""
    if len(folders) > MAX_CLASSES:
        raise UserError(f"{masks} holds {len(folders)} folders; {MAX_CLASSES} classes are possible")
    if class_names is None:
        return folders
    by_name = {match_name(folder): folder for folder in folders}
    wanted = [match_name(name) for name in class_names]
    for name in wanted:
        if name not in by_name:
            raise UserError(f"class {name} of --class_names has no folder in {masks}")
    for name in by_name:
        if name not in wanted:
            raise UserError(f"{os.path.join(masks, by_name[name])} is not in --class_names: add it")
    return [by_name[name] for name in wanted]


def _require_partners(
    image_stems: Iterable[str], mask_stems: Iterable[str], images: str, masks: str
) -> None:
    problems = []
    for having, lacking, text in (
        (image_stems, mask_stems, f"images have no mask in {masks}"),
        (mask_stems, image_stems, f"masks have no image in {images}"),
    ):
        missing = sorted({*having} - {*lacking})
        if missing:
            more = ", …" if len(missing) > _NAMED else ""
            problems.append(f"{len(missing):,} {text}: {', '.join(missing[:_NAMED])}{more}")
    if problems:
        raise UserError(
            f"{'; '.join(problems)}. Add them (for an image without objects a mask of zeros) or "
            "move the rest away"
        )


def split(pairs: list[Pair], val: str | None, share: float, seed: int) -> dict[str, list[Pair]]:
    """Return the pairs of each of PARTS, in their order.

    Args:
        pairs: All pairs.
        val: A file that names the images of "val"; None draws them.
        share: The share of the images that is drawn.
        seed: The seed of the draw.

    Raises:
        UserError: A name in the file is no image's, or a part is empty.
    """
    chosen = _read(val, pairs) if val else _draw(pairs, share, seed)
    parts = {
        "train": [pair for pair in pairs if pair.image not in chosen],
        "val": [pair for pair in pairs if pair.image in chosen],
    }
    for part in PARTS:
        if not parts[part]:
            source = f"--val {val}" if val else f"--val_share {share} of {len(pairs)} images"
            raise UserError(f"{source} leaves no image for {part}; each part needs some")
    return parts


def _read(path: str, pairs: list[Pair]) -> set[str]:
    """Return the images that a file names, one per line, with or without suffix."""
    files = {match_name(os.path.basename(pair.image)): pair.image for pair in pairs}
    by_name = {os.path.splitext(name)[0]: image for name, image in files.items()} | files
    chosen = set()
    for number, line in enumerate(read_text(path).split("\n"), 1):
        name = match_name(line.strip())
        if name and name not in by_name:
            raise UserError(f"{path} line {number}: there is no image {name}")
        if name:
            chosen.add(by_name[name])
    return chosen


def _draw(pairs: list[Pair], share: float, seed: int) -> set[str]:
    """Draw a share of the images by their names, so that few change when images are added."""

    def rank(image: str) -> bytes:
        name = match_name(os.path.basename(image))
        return sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest()

    images = sorted((pair.image for pair in pairs), key=rank)
    return set(images[: max(1, round(share * len(pairs)))])


def read_text(path: str) -> str:
    """Return the content of a text file in UTF-8; UserError if it cannot be read."""
    try:
        # surrogateescape, because a file name may be any bytes.
        return Path(path).read_text("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
