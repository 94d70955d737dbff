"""Pictures and masks in any form that a user has them: paths, PIL images, arrays and tensors."""

import os
from pathlib import Path
from typing import TypeGuard

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from util.data.images import read_whole_image
from util.data.masks import UNREADABLE, MaskFile, eight_bits, turn
from util.runtime.errors import errors_as

Picture = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor


def is_picture(value: object) -> TypeGuard[Picture]:
    """Tell whether a value is of a kind that `read_picture` reads."""
    return isinstance(value, str | os.PathLike | Image.Image | np.ndarray | Tensor)


def read_picture(picture: Picture) -> np.ndarray:
    """Return a picture as RGB, uint8 (H, W, 3), as a viewer shows it.

    The EXIF orientation is applied, grey values and palettes become colours, and transparency is
    ignored.

    Args:
        picture: a path, a PIL image, uint8 (H, W, 3), or a tensor (3, H, W), uint8 or float in [0, 1].
            An array or tensor is RGB, and never normalised.

    Raises:
        ValueError: the file is no image, or an array or tensor has another shape, type or range.
    """
    if isinstance(picture, str | os.PathLike):
        if not os.path.isfile(picture):
            raise ValueError(f"there is no file {os.fspath(picture)}")
        with errors_as(ValueError):
            return read_whole_image(picture)
    if isinstance(picture, Image.Image):
        return _pil_picture(picture)
    if isinstance(picture, Tensor):
        picture = _tensor_picture(picture)
    if not isinstance(picture, np.ndarray):
        raise ValueError(
            f"a picture is a path, a PIL image, an array or a tensor, not {type(picture).__name__}"
        )
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise ValueError(
            f"an array of a picture is uint8 (H, W, 3), RGB, not {picture.dtype} {picture.shape}"
        )
    return np.ascontiguousarray(picture)


def read_marks(marks: Picture, binary: bool) -> np.ndarray:
    """Return the labels of a mask or scribble, uint8 (H, W), where 0 is unmarked.

    Args:
        marks: a path, a PIL image, or an array or tensor (H, W) of numbers or bool.
        binary: whether files and PIL images are read as `MaskFile.region` does, and marked by 1. Else
            those with exact values in one channel keep their values.

    Raises:
        ValueError: the file is no image or marks several things, or an array or tensor has another
            shape.
    """
    if isinstance(marks, str | os.PathLike | Image.Image):
        with errors_as(ValueError):
            file = _mask_file(marks)
            values = np.asarray(file.image)
            if values.ndim == 2 and not (binary or file.lossy):
                return _labels(turn(values, file.orientation))
            return file.region().pixels.astype(np.uint8)
    array = np.asarray(marks.cpu() if isinstance(marks, Tensor) else marks)
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise ValueError(
            f"an array of a mask or scribble is (H, W), not {array.dtype} {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError("an array of a mask or scribble holds values that are no finite numbers")
    return _labels(array)


def _mask_file(marks: str | os.PathLike[str] | Image.Image) -> MaskFile:
    if isinstance(marks, Image.Image):
        return MaskFile("(a PIL image)", marks)
    try:
        return MaskFile(marks, Path(marks).read_bytes())
    except OSError as error:
        raise ValueError(f"{os.fspath(marks)} cannot be read as a mask: {error}") from error


def _pil_picture(image: Image.Image) -> np.ndarray:
    try:
        image = ImageOps.exif_transpose(image)
    except UNREADABLE as error:  # Pillow reads the pixels only now.
        raise ValueError(f"the PIL image is damaged or truncated ({error})") from error
    if image.mode.startswith("I;16"):
        image = Image.fromarray(eight_bits(np.asarray(image))[0])
    elif image.mode in ("I", "F"):
        raise ValueError(f"a PIL image of mode {image.mode} has no fixed range; convert it to RGB")
    return np.array(image.convert("RGB"))


def _tensor_picture(tensor: Tensor) -> np.ndarray:
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ValueError(f"a tensor of a picture is (3, H, W), RGB, not {tuple(tensor.shape)}")
    tensor = tensor.detach().cpu().permute(1, 2, 0)
    array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    if array.dtype.kind != "f":
        return array
    if not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(
            "a float tensor of a picture lies in [0, 1], without normalisation, but its values reach "
            f"from {array.min():.3g} to {array.max():.3g}"
        )
    return (255 * array).round().astype(np.uint8)


def _labels(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    # Other types hold values that uint8 does not, and a mark must not become 0.
    return np.where(array == 0, 0, np.clip(array, 1, 255)).astype(np.uint8)
