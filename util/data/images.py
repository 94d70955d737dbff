"""Reading images and masks."""

import contextlib
import os
from io import BytesIO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from util.data.folds import IGNORE
from util.data.masks import JPEG, UNREADABLE, MaskFile, eight_bits, orientation_of, turn
from util.runtime.errors import UserError

Entry = tuple[str, str]  # the image and the mask of a line of a list, relative to the data root
FilePath = str | os.PathLike[str]

_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH
_TIFF = (b"II", b"MM")
_PNG, _GRAY = b"\x89PNG", b"\x08\x00"  # the latter is 8 bits, gray, in bytes 24 and 25 of a PNG
# How a file other than a TIFF may say that it is to be turned, besides what OpenCV applies.
_TURNED = (b"tiff:Orientation", b"Raw profile type exif", b"eXIf")


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


def read_whole_image(path: FilePath, notes: list[str] | None = None) -> np.ndarray:
    """Read an image like `read_image`, but refuse a truncated JPEG, which OpenCV fills with gray.

    Raises:
        UserError: The file is no image, a truncated one, or one that OpenCV cannot decode.
    """
    try:
        with Image.open(path) as image:
            if image.format in JPEG:
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
        return read_image(os.fspath(path), notes)
    except (UserError, cv2.error) as error:
        raise UserError(
            f"image {path} is damaged or truncated, or of a kind that OpenCV cannot decode "
            f"({kind}): save it as an 8-bit PNG or JPEG"
        ) from error


def read_mask(path: str) -> np.ndarray:
    """Read a label map, uint8 (H, W) of class ids, by the rules of `MaskFile.class_ids`.

    Raises:
        UserError: The file cannot be read or holds something else.
    """
    data = _content("mask", path)
    if data[:4] == _PNG and data[24:26] == _GRAY and not _may_be_turned(data):
        mask = _decode("mask", path, data, cv2.IMREAD_UNCHANGED)
        if mask.ndim == 2 and mask.dtype == np.uint8:
            return mask
    return MaskFile(path, data).class_ids()


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
    beyond = (mask > num_classes) & (mask != IGNORE)
    if beyond.any():
        raise unknown_class(path, int(mask[beyond].min()), num_classes)


def unknown_class(path: str, value: int, num_classes: int) -> UserError:
    """Return the error that the mask at `path` holds `value`, which is beyond the classes."""
    return UserError(
        f"mask {path} holds the value {value}; "
        f"classes are 1..{num_classes}, 0 is background and {IGNORE} is ignored"
    )
