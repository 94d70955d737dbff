"""The user's own images and masks: which belong together, and which classes there are.

A folder of masks holds either index masks, masks/IMAGE.png (0 background, 1..N classes, 255
ignored; gray or with a palette), or binary ones, masks/CLASS/IMAGE.png (0 and one other value).
"""

import os
import unicodedata
from typing import NamedTuple

from util.data.folds import MAX_CLASSES
from util.runtime.errors import UserError

IMAGE_FOLDER, MASK_FOLDER = "images", "index_masks"  # under the data root
IMAGE_TYPES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MASK_TYPES = (".png",)
_NAMED = 3


class Pair(NamedTuple):
    """An image (path) and its mask: path of an index mask, or class id → path of a binary one."""

    image: str
    mask: str | dict[int, str]

    @property
    def entry(self) -> tuple[str, str]:
        """Image and index mask as a list names them, relative to the data root."""
        name = os.path.basename(self.image)
        stem = os.path.splitext(name)[0]
        return f"{IMAGE_FOLDER}/{name}", f"{MASK_FOLDER}/{stem}.png"


def match_name(name: str) -> str:
    """The form in which two names are compared: é is one letter or two, by who wrote the file."""
    return unicodedata.normalize("NFC", name)


def find_pairs(
    images: str, masks: str, class_names: list[str] | None
) -> tuple[list[Pair], list[str] | None]:
    """The pairs of two folders, sorted by name, and the names of the classes 1, 2, ….

    Other files than images and PNG masks are passed over. class_names: those the user gave. Of
    binary masks they order the folders, which else are taken by alphabet; of index masks the names
    stay unknown (None) if not given.

    Raises:
        UserError: masks are missing or left over, or the folders hold something else.
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
    if index_masks and folders:
        raise UserError(
            f"{masks} holds PNGs and folders ({folders[0]}): give index masks, IMAGE.png, or "
            "folders of binary masks, CLASS/IMAGE.png"
        )
    if not index_masks and not folders:
        raise UserError(
            f"{masks} holds no mask: neither index masks, IMAGE.png, nor folders of binary "
            "masks, CLASS/IMAGE.png"
        )
    by_image: dict[str, str | dict[int, str]] = dict(index_masks)
    if folders:
        folders = _in_order(folders, class_names, masks)
        class_names = class_names or folders
        by_image = _binary_masks(masks, folders)
    _require_partners(image_files, by_image, images, masks)
    return [Pair(path, by_image[stem]) for stem, path in image_files.items()], class_names


def _files(folder: str, types: tuple[str, ...]) -> dict[str, str]:
    """Name without suffix → path, of the folder's files of these types, sorted."""
    found: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        path = os.path.join(folder, name)
        if suffix.lower() not in types or name[0] == "." or not os.path.isfile(path):
            continue
        other = found.setdefault(match_name(stem), path)
        if other != path:
            raise UserError(
                f"{other} and {path} differ in nothing but the type: a mask belongs to one of them"
            )
    return found


def _in_order(folders: list[str], class_names: list[str] | None, masks: str) -> list[str]:
    """The folders of the classes 1, 2, …."""
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


def _binary_masks(masks: str, folders: list[str]) -> dict[str, dict[int, str]]:
    by_image: dict[str, dict[int, str]] = {}
    for class_id, folder in enumerate(folders, 1):
        for stem, path in _files(os.path.join(masks, folder), MASK_TYPES).items():
            by_image.setdefault(stem, {})[class_id] = path
    return by_image


def _require_partners(image_files: dict, by_image: dict, images: str, masks: str) -> None:
    problems = []
    for there, here, text in (
        (image_files, by_image, f"images have no mask in {masks}"),
        (by_image, image_files, f"masks have no image in {images}"),
    ):
        missing = [stem for stem in there if stem not in here]
        if missing:
            more = ", …" if len(missing) > _NAMED else ""
            problems.append(f"{len(missing):,} {text}: {', '.join(missing[:_NAMED])}{more}")
    if problems:
        raise UserError(
            f"{'; '.join(problems)}. Add them (where nothing is to see, a mask of zeros) or move "
            "the rest away"
        )
