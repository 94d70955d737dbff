"""Reading images and masks."""

import contextlib
import os
from collections.abc import Iterable
from io import BytesIO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from util.data.folds import ignore_value, mask_type
from util.data.masks import JPEG, UNREADABLE, MaskFile, eight_bits, orientation_of, turn
from util.runtime.errors import UserError

Entry = tuple[str, str]  # the image and the mask of a line of a list, relative to the data root
Kind = type[np.integer]
Others = Iterable[tuple[str, int]]
FilePath = str | os.PathLike[str]

_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH
_TIFF = (b"II", b"MM")
_PNG, _GRAY = b"\x89PNG", b"\x08\x00"  # the latter is 8 bits, gray, in bytes 24 and 25 of a PNG
# How a file other than a TIFF may say that it is to be turned, besides what OpenCV applies.
_TURNED = (b"tiff:Orientation", b"Raw profile type exif", b"eXIf")


class MarkedEntry(tuple[str, str]):
    """An entry of a dataset with more than 254 classes, or with a folder of binary masks per class.

    Args:
        entry: Image and mask.
        kind: The type of the class ids, np.uint8 or np.uint16.
        class_id: The class that a binary mask marks; 0: the mask is an index mask.
        others: The binary masks of other classes of the image, with their class ids.
    """

    kind: Kind
    class_id: int
    others: tuple[tuple[str, int], ...]

    def __new__(
        cls, entry: Entry, kind: Kind = np.uint8, class_id: int = 0, others: Others = ()
    ) -> "MarkedEntry":
        """Return the entry with these attributes; those of a copy or a pickle follow later."""
        marked = super().__new__(cls, entry)
        marked.kind, marked.class_id, marked.others = kind, class_id, tuple(others)
        return marked


def read_image(path: str, notes: list[str] | None = None) -> np.ndarray:
    """Read an image as RGB, uint8 (H, W, 3), as a viewer shows it.

    The orientation of the camera is applied, and of 10 to 16 bits the upper 8 are kept.

    Args:
        path: The file.
        notes: Receives what else is worth knowing of the image.

    Raises:
        UserError: The file cannot be read as an image, or its numbers have no fixed range.
    """
    data = _content("image", path)
    if data[:2] in _TIFF:
        # OpenCV returns wrong numbers where it has to convert colours of 16 bits.
        array = _decode("image", path, data, cv2.IMREAD_UNCHANGED)
        if array.dtype == np.uint8:
            array = _decode("image", path, data, _RGB)
        else:
            array = np.dstack([array] * 3) if array.ndim == 2 else array[..., 2::-1]
    elif _may_be_turned(data):
        array = _decode("image", path, data, _RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        array = turn(array, stored_orientation(data))
    else:
        array = _decode("image", path, data, _RGB)
    if array.dtype == np.uint16:
        array, bits = eight_bits(array)
        if notes is not None:
            notes.append(f"images of {bits} bits, of which the upper 8 are used")
    if array.dtype != np.uint8:
        raise UserError(f"image {path} holds {array.dtype} numbers, which have no fixed range")
    return array


def read_whole_image(
    path: FilePath, notes: list[str] | None = None, pixels: bool = True
) -> np.ndarray:
    """Read an image like `read_image`, but refuse a truncated JPEG, which OpenCV fills with gray.

    Where only the size is needed (`pixels` False), a JPEG is checked, but not computed: it is zeros.

    Raises:
        UserError: The file is no image, a truncated one, or one that OpenCV cannot decode.
    """
    try:
        with Image.open(path) as image:
            jpeg, shape = image.format in JPEG, image.size[::-1]
            if jpeg:
                # The file is read to its end, but only an eighth of each side is computed.
                image.draft("L", (1, 1))
                image.load()
            kind = f"{image.format}, mode {image.mode}"
    except UnidentifiedImageError as error:
        raise UserError(
            f"image {path} is damaged or truncated, or of a kind that is not read, such as HEIC: "
            "save it as JPEG or PNG"
        ) from error
    except UNREADABLE as error:
        raise UserError(f"image {path} is damaged or truncated ({error}): replace it") from error
    try:
        if jpeg and not pixels:
            data = _content("image", os.fspath(path))
            _decode("image", os.fspath(path), data, cv2.IMREAD_REDUCED_COLOR_8)
            shape = shape if stored_orientation(data) < 5 else shape[::-1]
            return np.broadcast_to(np.uint8(0), (*shape, 3))
        return read_image(os.fspath(path), notes)
    except (UserError, cv2.error) as error:
        raise UserError(
            f"image {path} is damaged or truncated, or of a kind that OpenCV cannot decode "
            f"({kind}): save it as an 8-bit PNG or JPEG"
        ) from error


def read_mask(path: str, kind: Kind = np.uint8) -> np.ndarray:
    """Read a label map, (H, W) of class ids of a type, by the rules of `MaskFile.class_ids`.

    Raises:
        UserError: The file cannot be read or holds something else.
    """
    data = _content("mask", path)
    if data[:4] == _PNG and data[24:26] == _GRAY and not _may_be_turned(data):
        mask = _decode("mask", path, data, cv2.IMREAD_UNCHANGED)
        if mask.ndim == 2 and mask.dtype == np.uint8:
            return mask.astype(kind, copy=False)
    return MaskFile(path, data).class_ids(kind)


def read_labels(data_root: str, entry: Entry, alone: bool = False) -> np.ndarray:
    """Return the class ids of an entry, (H, W), uint8 or, for more than 254 classes, uint16.

    Of binary masks, the one that the entry names is on top of those of other classes of its image.

    Args:
        data_root: The folder that the paths of the entry are relative to.
        entry: The entry.
        alone: Whether other binary masks of the image are left out.

    Raises:
        UserError: A mask cannot be read, holds something else, or is of another size.
    """
    path = os.path.join(data_root, entry[1])
    if not isinstance(entry, MarkedEntry) or not entry.class_id:
        return read_mask(path, getattr(entry, "kind", np.uint8))
    region = MaskFile(path, _content("mask", path)).region().pixels
    labels = np.zeros(region.shape, entry.kind)
    for name, class_id in () if alone else entry.others:
        other_path = os.path.join(data_root, name)
        other = MaskFile(other_path, _content("mask", other_path)).region().pixels
        require_same_size(labels, path, other, other_path)
        labels[other] = class_id
    labels[region] = entry.class_id
    return labels


def look_up(labels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return `table[labels]`, uint8 (H, W), for class ids (H, W) of either type."""
    return cv2.LUT(labels, table) if labels.dtype == np.uint8 else table[labels]


def _content(kind: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        if not os.path.isfile(path):
            raise UserError(f"{kind} {path} does not exist") from None
        raise UserError(f"{kind} {path} cannot be read as an image; replace the file") from None


def _decode(kind: str, path: str, data: bytes, flags: int) -> np.ndarray:
    # cv2.imread ends the process at a file name that is not UTF-8.
    array = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if array is None:
        raise UserError(f"{kind} {path} cannot be read as an image; replace the file")
    return array


def _may_be_turned(data: bytes) -> bool:
    # Only the first occurs in a JPEG, of which OpenCV applies the EXIF orientation.
    words = _TURNED[:1] if data[:2] == b"\xff\xd8" else _TURNED
    return any(word in data for word in words)


def as_shown(mask: np.ndarray, shape: tuple[int, ...], picture: object) -> np.ndarray:
    """Return a mask (H, W) the same way round as its image, which has the given shape.

    A mask that was drawn on the pixels as the camera stored them gets the size of the image only when
    it is turned like that. Any other mask is returned as it is.

    Args:
        mask: The mask.
        shape: The shape (H, W, …) of the image as it is shown.
        picture: The image: a path or an image of Pillow; anything else has no orientation.
    """
    if mask.shape != shape[:2]:
        turned = turn(mask, stored_orientation(picture))
        if turned.shape == shape[:2]:
            return turned
    return mask


def stored_orientation(picture: object) -> int:
    """Return the orientation 1..8 of an image: a path, the content of a file, or Pillow's; else 1."""
    if isinstance(picture, str | os.PathLike):
        picture = _content("image", os.fspath(picture))
    if isinstance(picture, Image.Image):
        return orientation_of(picture)
    if isinstance(picture, bytes):
        with contextlib.suppress(*UNREADABLE), Image.open(BytesIO(picture)) as image:
            return orientation_of(image, picture)
    return 1


def require_same_size(
    first: np.ndarray, first_path: str, second: np.ndarray, second_path: str
) -> None:
    """Raise a UserError that names both paths if two arrays (H, W, …) differ in height or width."""
    if first.shape[:2] != second.shape[:2]:
        sizes = [f"{array.shape[1]}×{array.shape[0]}" for array in (first, second)]
        raise UserError(
            f"{first_path} is {sizes[0]} pixels but {second_path} is {sizes[1]}; "
            "they have to be of one size"
        )


def check_labels(mask: np.ndarray, num_classes: int, path: str) -> None:
    """Raise a UserError if a mask holds a value that is no class, background or ignore."""
    beyond = (mask > num_classes) & (mask != ignore_value(mask.dtype))
    if beyond.any():
        raise unknown_class(path, int(mask[beyond].min()), num_classes)


def unknown_class(path: str, value: int, num_classes: int) -> UserError:
    """Return the error that the mask at `path` holds `value`, which is beyond the classes."""
    return UserError(
        f"mask {path} holds the value {value}; "
        f"classes are 1..{num_classes}, 0 is background and "
        f"{ignore_value(mask_type(num_classes))} is ignored"
    )
