"""The user's own images and masks: which belong together, their classes, which images are tested.

A folder of masks holds either index masks, masks/IMAGE.png (0 background, 1..N classes, 255
ignored; gray or with a palette), or binary ones, masks/CLASS/IMAGE.png, or masks/IMAGE.png of one
class. The masks of a folder may have a common addition to the name, as IMAGE_mask.png.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from util.data.folds import LIST_PARTS, MAX_CLASSES
from util.data.images import Entry, require_same_size
from util.data.masks import HALF, MaskFile
from util.preparation.exports import ImageNames, left_behind, normal_form, some_of
from util.preparation.masks import Placed, prepare_pair, stack_regions
from util.preparation.segmentations import Drawable
from util.preparation.shared import DataRoot
from util.runtime.errors import UserError
from util.runtime.parallel import run_parallel
from util.runtime.texts import is_comment, read_text

IMAGE_FOLDER, MASK_FOLDER = "images", "index_masks"  # under the data root
IMAGE_TYPES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MASK_TYPES = (".png",)  # Other types count in a folder without these.
_OTHER_TYPES = tuple({*IMAGE_TYPES} - {*MASK_TYPES})
_RULES = "rules 2"  # Change it when the same files would give other masks.
VAL_SHARE = 0.2
_VAL_FOLDERS = {"val", "valid", "validation", "test"}
# The image of a line "IMAGE MASK", as in the lists of datasets: up to a tab, or a blank after its type.
_IMAGE_COLUMN = re.compile(r"(.+?\.(?:bmp|jpe?g|png|tiff?|webp)(?=\s+\S)|.+?(?=\t))", re.IGNORECASE)


class Pair(NamedTuple):
    """An image and its mask.

    The mask is the path of an index mask, those of binary ones by class id, or what an export holds.
    """

    image: str
    mask: str | dict[int, str] | Drawable
    name: str = ""  # of the image under its folder; none is the file name

    @property
    def entry(self) -> Entry:
        """Image and index mask as a list names them, relative to the data root."""
        name = self.name or os.path.basename(self.image)
        stem = os.path.splitext(name)[0]
        return f"{IMAGE_FOLDER}/{name}", f"{MASK_FOLDER}/{stem}.png"


def place(root: DataRoot, pair: Pair) -> tuple[Placed, list[str]] | str:
    """Check a pair and put it under the data root.

    Returns:
        What `prepare_pair` returned and noted, or the message of what is wrong.
    """
    mask = pair.mask
    notes: list[str] = []
    prepare = partial(prepare_pair, root, pair.image, pair.entry, notes=notes)
    try:
        if isinstance(mask, str):
            data = Path(mask).read_bytes()
            placed = prepare([_RULES, data], lambda: MaskFile(mask, data).class_ids())
        elif isinstance(mask, dict):
            files = [(key, path, Path(path).read_bytes()) for key, path in mask.items()]
            sources = [_RULES, *(part for key, _, data in files for part in (key, data))]
            placed = prepare(sources, partial(merged_mask, files, notes))
        else:
            placed = prepare(mask.sources, partial(mask.draw, pair.image))
        return placed, notes
    except UserError as error:
        return str(error)


def merged_mask(files: Sequence[tuple[int, str, bytes]], notes: list[str]) -> np.ndarray:
    """Return one index mask, uint8 (H, W), of the binary masks (class id, path, content) of an image.

    `notes` receives what is worth knowing of them.

    Raises:
        UserError: A mask is damaged or not binary, or two differ in size.
    """
    found = [(class_id, MaskFile(path, data).region()) for class_id, path, data in files]
    if any(region.marked_by == "threshold" for _, region in found):
        notes.append(
            f"masks with soft edges or of JPEG, where values from {HALF} on are the object"
        )
    regions = [(class_id, region.pixels) for class_id, region in found]
    first = regions[0][1]
    for (_, region), (_, path, _) in zip(regions, files, strict=True):
        require_same_size(first, files[0][1], region, path)
    by_pixels: dict[bytes, str] = {}
    for (_, region), (_, path, _) in zip(regions, files, strict=True):
        if region.any() and (other := by_pixels.setdefault(region.tobytes(), path)) != path:
            raise UserError(
                f"masks {other} and {path} mark the same pixels, but a pixel is of one class: delete one"
            )
    height, width = first.shape
    mask = stack_regions(height, width, regions)
    if any(r.any() and not (mask == key).any() for key, r in regions):
        notes.append("images in which smaller objects of other classes hide all of a class")
    return mask


def one_class(pairs: Sequence[Pair], workers: int | None) -> tuple[list[Pair], list[str]]:
    """Return the pairs with binary masks of class 1 where all masks of one folder are black and white.

    Returns:
        The pairs, which are otherwise the given ones, and lines that say so.

    Raises:
        UserError: Some masks mark by 1 and some by 255, so that 255 may be the object or ignored.
    """
    paths = [pair.mask for pair in pairs if isinstance(pair.mask, str)]
    # The first of index masks mostly holds a class id, and then the others need not be read.
    if not paths or _marked_by(paths[0]) == "ids":
        return [*pairs], []
    marks = run_parallel(_marked_by, paths, workers, "looking at masks")
    by_mark = dict(zip(marks, paths, strict=True))
    if "ids" not in by_mark and {"one", "white"} <= by_mark.keys():
        raise UserError(
            f"mask {by_mark['one']} holds 0 and 1, but {by_mark['white']} 0 and 255, which is the "
            "object or ignored: mark the object by the same value in all masks"
        )
    if by_mark.keys() & {"one", "ids"} or by_mark.keys() == {"nothing"}:
        return [*pairs], []
    line = "masks: all are black and white, so they are of one class, which is white in them"
    return [Pair(pair.image, {1: str(pair.mask)}) for pair in pairs], [line]


def _marked_by(path: str) -> str:
    try:
        return MaskFile(path, Path(path).read_bytes()).marked_by()
    except UserError:
        return "ids"


def find_pairs(
    images: str, masks: str, class_names: list[str] | None
) -> tuple[list[Pair], list[str] | None]:
    """Find the pairs of two folders; other files than images and masks are ignored.

    The names that the user gave order the folders of binary masks, which are in alphabetical order
    otherwise.

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
    mask_files: dict[str, str | dict[int, str]] = {**_mask_files(masks, image_files)}
    folders = sorted(
        entry.name for entry in os.scandir(masks) if entry.is_dir() and not left_behind(entry.name)
    )
    if bool(mask_files) == bool(folders):
        found = f"masks and folders ({folders[0]})" if folders else "no mask"
        raise UserError(
            f"{masks} holds {found}: give index masks, IMAGE.png, or folders of binary masks, "
            "CLASS/IMAGE.png"
        )
    if folders:
        _check_class_folders(folders, class_names, masks)
        folders = _in_order(folders, class_names, masks)
        class_names = class_names or folders
        binary: dict[str, dict[int, str]] = {}
        for class_id, folder in enumerate(folders, 1):
            for stem, path in _mask_files(os.path.join(masks, folder), image_files).items():
                binary.setdefault(stem, {})[class_id] = path
        mask_files = {**binary}
    problems = []
    for missing, text in (
        (sorted({*image_files} - {*mask_files}), f"images without a mask in {masks}"),
        (sorted({*mask_files} - {*image_files}), f"masks without an image in {images}"),
    ):
        if missing:
            problems.append(f"{text} ({len(missing):,}): {some_of(missing)}")
    if problems:
        raise UserError(
            f"{'; '.join(problems)}. Add what is missing, or move the rest away. The mask of an "
            "image without objects holds zeros"
        )
    return [Pair(path, mask_files[stem]) for stem, path in image_files.items()], class_names


def _files(folder: str, types: tuple[str, ...]) -> dict[str, str]:
    """Return name without suffix → path of the folder's files of these types, sorted."""
    found: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        path = os.path.join(folder, name)
        if suffix.lower() not in types or name[0] == "." or not os.path.isfile(path):
            continue
        other = found.setdefault(normal_form(stem), path)
        if other != path:
            raise UserError(
                f"{other} and {path} differ only in their type: a mask belongs to one of them"
            )
    return found


def _mask_files(folder: str, images: Mapping[str, str]) -> dict[str, str]:
    """Return name of the image without suffix → path of the masks of a folder.

    Raises:
        UserError: A file of another type seems to be the mask of an image that has no other.
    """
    masks = _files(folder, MASK_TYPES) or _files(folder, IMAGE_TYPES)
    before, after = _addition(masks, images)

    def stem_of(name: str) -> str:
        return name[len(before) : len(name) - len(after)]

    found = {stem_of(name): path for name, path in masks.items()}
    for name, path in _files(folder, _OTHER_TYPES).items():
        stem = stem_of(name)
        if stem not in found and stem in images and f"{before}{stem}{after}" == name:
            raise UserError(
                f"{path} may be a mask, but those of {folder} are PNGs: save it as PNG, or move it away"
            )
    return found


def _addition(masks: Mapping[str, str], images: Mapping[str, str]) -> tuple[str, str]:
    """Return how the names of all masks begin and end besides the names of their images."""
    if not masks or masks.keys() & images.keys():
        return "", ""
    first, *_ = masks
    additions = {
        (first[:start], first[start + len(stem) :])
        for stem in images
        for start in range(len(first))
        if first.startswith(stem, start)
    }
    # The shortest comes first: 11_mask belongs to 11, not to 1.
    for before, after in sorted(additions, key=lambda addition: sum(map(len, addition))):
        stems = [name[len(before) : len(name) - len(after)] for name in masks]
        if all(
            f"{before}{stem}{after}" == name and stem in images
            for name, stem in zip(masks, stems, strict=True)
        ):
            return before, after
    return "", ""


def _check_class_folders(folders: list[str], class_names: list[str] | None, masks: str) -> None:
    """Raise a UserError if folders of masks hold folders, or look like the parts of a dataset."""
    for folder in folders:
        for entry in os.scandir(os.path.join(masks, folder)):
            if entry.is_dir() and not left_behind(entry.name):
                raise UserError(
                    f"{entry.path} is not searched: put the masks into {masks}, IMAGE.png, or into "
                    "folders of their classes, CLASS/IMAGE.png; datumaro converts exports to COCO"
                )
    if class_names is None and {"train"} != {*folders} <= {"train", *_VAL_FOLDERS}:
        raise UserError(
            f"the folders of {masks} ({', '.join(folders)}) look like parts of a dataset: put the masks "
            "into one folder, and name the images to test by --val; or, if they are classes, give "
            f"--class_names {','.join(folders)}"
        )


def _in_order(folders: list[str], class_names: list[str] | None, masks: str) -> list[str]:
    """Return the folders of the classes 1, 2, …."""
    if len(folders) > MAX_CLASSES:
        raise UserError(f"{masks} holds {len(folders)} folders; {MAX_CLASSES} classes are possible")
    if class_names is None:
        return folders
    by_name = {normal_form(folder): folder for folder in folders}
    wanted = [normal_form(name) for name in class_names]
    for name in sorted({*wanted} - {*by_name}):
        raise UserError(f"class {name} of --class_names has no folder in {masks}")
    for name in sorted({*by_name} - {*wanted}):
        raise UserError(f"{os.path.join(masks, by_name[name])} is not in --class_names: add it")
    return [by_name[name] for name in wanted]


def split(
    pairs: list[Pair], val: str | None, share: float | None, seed: int
) -> dict[str, list[Pair]]:
    """Return the pairs of each of LIST_PARTS, in their order.

    The file `val` names the images of "val". Without it and without a share, folders train and valid,
    val or test divide the images. Without them, a share of the images is drawn, by their names, so
    that few change when images are added.

    Raises:
        UserError: A name in the file is no image's, or a part is empty.
    """
    files = {pair.entry[0].removeprefix(f"{IMAGE_FOLDER}/"): pair.image for pair in pairs}
    folders = {name: {*name.split("/")[:-1]} for name in files}
    divided = [name for name in files if folders[name] & _VAL_FOLDERS]
    if val:
        chosen = {files[name] for name in _listed(val, ImageNames(files))}
    elif share is None and divided and any("train" in folders[name] for name in files):
        print("val is what lies in the folders valid, val and test; --val_share divides otherwise")
        chosen = {files[name] for name in divided}
    else:
        share = share or VAL_SHARE

        def rank(name: str) -> bytes:
            return sha256(f"{seed}:{normal_form(name)}".encode(errors="surrogateescape")).digest()

        drawn = sorted(files, key=rank)[: max(1, round(share * len(pairs)))]
        chosen = {files[name] for name in drawn}
    parts = {
        "train": [pair for pair in pairs if pair.image not in chosen],
        "val": [pair for pair in pairs if pair.image in chosen],
    }
    for part in LIST_PARTS:
        if not parts[part]:
            source = f"--val {val}" if val else f"--val_share {share} of {len(pairs)} images"
            raise UserError(f"{source} leaves no image for {part}; each part needs some")
    return parts


def _listed(val: str, images: ImageNames) -> Iterator[str]:
    """Yield the images that a list names, a line each: with or without folder, type and mask."""
    exact = {word for name in images.parts for word in (name, os.path.splitext(name)[0])}
    for number, line in enumerate(read_text(val).split("\n"), 1):
        line = normal_form(line.strip())
        if not line or is_comment(line, exact.__contains__):
            continue
        column = None if line in exact else _IMAGE_COLUMN.match(line)
        name = images.find(column[1] if column else line)
        if name is None:
            raise UserError(f"{val} line {number}: there is no image {line}")
        mask = line[column.end() :].strip() if column else ""
        if mask and images.means_another(mask, name):
            raise UserError(f"{val} line {number} names two images: {line}")
        yield name
