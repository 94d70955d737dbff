"""Pictures and masks in any form that a user has them: paths, PIL images, arrays and tensors."""

import os
from typing import TypeGuard

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from util.data.images import JPEG, UNREADABLE, read_whole_image
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


def read_marks(mask: Picture) -> np.ndarray:
    """Return the labels of a mask or scribble, uint8 (H, W), where 0 is unmarked.

    A transparent image is marked where it is at least half opaque. Of colours, each that is not black
    marks. A JPEG, which cannot keep exact values, marks by values of at least 128. Values are kept for
    images with one channel, and are otherwise 1.

    Args:
        mask: a path, a PIL image, or an array or tensor (H, W) of numbers or bool.

    Raises:
        ValueError: the file is no image, or an array or tensor has another shape.
    """
    if isinstance(mask, str | os.PathLike):
        try:
            with Image.open(mask) as image:
                image.load()
                return _pil_marks(image)
        except UNREADABLE as error:
            raise ValueError(f"{os.fspath(mask)} cannot be read as a mask: {error}") from error
    if isinstance(mask, Image.Image):
        return _pil_marks(mask)
    array = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise ValueError(
            f"an array of a mask or scribble is (H, W), not {array.dtype} {array.shape}"
        )
    return _labels(array)


def _pil_picture(image: Image.Image) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"a PIL image of mode {image.mode} has no fixed range; convert it to RGB")
    return np.array(image.convert("RGB"))


def _tensor_picture(tensor: Tensor) -> np.ndarray:
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ValueError(f"a tensor of a picture is (3, H, W), RGB, not {tuple(tensor.shape)}")
    array = tensor.detach().cpu().permute(1, 2, 0).numpy()
    if array.dtype.kind != "f":
        return array
    if not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(
            "a float tensor of a picture lies in [0, 1], without normalisation, but its values reach "
            f"from {array.min():.3g} to {array.max():.3g}"
        )
    return (255 * array).round().astype(np.uint8)


def _pil_marks(image: Image.Image) -> np.ndarray:
    lossy = image.format in JPEG
    image = ImageOps.exif_transpose(image)
    if "A" in image.getbands() or (image.mode != "P" and "transparency" in image.info):
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if alpha.min() < 128:
            return (alpha >= 128).astype(np.uint8)
        image = image.convert("RGB")
    array = np.asarray(image)
    if lossy:
        array = array >= 128
    return (array != 0).any(axis=2).astype(np.uint8) if array.ndim == 3 else _labels(array)


def _labels(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    # Other types hold values that uint8 does not, and a mark must not become 0.
    return np.where(array == 0, 0, np.clip(array, 1, 255)).astype(np.uint8)
