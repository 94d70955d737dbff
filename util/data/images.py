"""Reading images and masks."""

import os

import cv2
import numpy as np
from PIL import Image

from util.data.folds import IGNORE
from util.runtime.errors import UserError

Entry = tuple[str, str]  # the image and the mask of a line of a list, relative to the data root
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # raised by Pillow
JPEG = ("JPEG", "MPO")  # An MPO file holds several JPEGs, of which the first counts.


def read_image(path: str) -> np.ndarray:
    """Read an image as RGB, uint8 (H, W, 3); UserError if the file cannot be read as one."""
    return _decode("image", path, cv2.IMREAD_COLOR_RGB)


def read_whole_image(path: str | os.PathLike[str]) -> np.ndarray:
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
    except UNREADABLE as error:
        raise UserError(f"image {path} is damaged or truncated ({error}): replace it") from error
    try:
        return read_image(os.fspath(path))
    except (UserError, cv2.error) as error:
        raise UserError(
            f"image {path} is damaged or truncated, or of a kind that OpenCV cannot decode "
            f"({kind}): save it as an 8-bit PNG or JPEG"
        ) from error


def read_mask(path: str) -> np.ndarray:
    """Read a label map, uint8 (H, W) of class ids.

    Raises:
        UserError: The file cannot be read or is not a single-channel 8-bit image: a colour or
            palette mask holds colours, not class ids.
    """
    mask = _decode("mask", path, cv2.IMREAD_UNCHANGED)
    if mask.ndim != 2 or mask.dtype != np.uint8:
        kind = "colour or palette" if mask.ndim != 2 else mask.dtype
        raise UserError(
            f"mask {path} is a {kind} image; masks are single-channel 8-bit images of class ids"
        )
    return mask


def _decode(kind: str, path: str, flags: int) -> np.ndarray:
    # cv2.imread ends the process at a file name that is not UTF-8.
    try:
        data = np.fromfile(path, np.uint8)
    except OSError:
        data = np.empty(0, np.uint8)
    array = cv2.imdecode(data, flags) if data.size else None
    if array is None:
        if os.path.isfile(path):
            raise UserError(f"{kind} {path} cannot be read as an image; replace the file")
        raise UserError(f"{kind} {path} does not exist")
    return array


def read_pair(data_root: str, entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    """Read the image, uint8 (H, W, 3), and the mask, uint8 (H, W), of an entry under `data_root`.

    Raises:
        UserError: One of them cannot be read, or their sizes differ.
    """
    image_path, mask_path = (os.path.join(data_root, name) for name in entry)
    image, mask = read_image(image_path), read_mask(mask_path)
    require_same_size(image, image_path, mask, mask_path)
    return image, mask


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
