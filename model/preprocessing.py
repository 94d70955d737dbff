"""Preprocessing: what turns an image and a mask into the model's input.

Images are RGB in this order (OpenCV reads BGR). They are resized to the size of training, S×S, without
keeping their aspect: S is 473 for PASCAL-5^i and 633 for COCO-20^i. Other sizes work; where S-1 is a
multiple of 8, the corners of the feature grid lie on the corners of the image. Each channel then has
`MEAN` subtracted and is divided by `STD`, on the scale 0 to 255.
"""

import cv2
import numpy as np
import torch
from torch import Tensor

# Mean and standard deviation of ImageNet's channels, RGB, on the scale 0 to 255.
MEAN = tuple(255 * value for value in (0.485, 0.456, 0.406))
STD = tuple(255 * value for value in (0.229, 0.224, 0.225))


def preprocess_image(image: np.ndarray, size: int | tuple[int, int]) -> Tensor:
    """Return the model's input of one image.

    Args:
        image: (H, W, 3) uint8, RGB.
        size: S of the input, or its (height, width), in pixels.

    Returns:
        (3, S, S) float32.

    Raises:
        ValueError: the image has another shape or type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"expected an image (H, W, 3) of uint8, got {image.shape} of {image.dtype}"
        )
    resized = cv2.resize(image.astype(np.float32), _sides(size), interpolation=cv2.INTER_LINEAR)
    return normalise(resized)


def preprocess_mask(mask: np.ndarray, size: int | tuple[int, int]) -> Tensor:
    """Return the model's input of one mask.

    Args:
        mask: (H, W) of integers or bool: 1 class, 0 other, 255 ignore.
        size: that of the image, see `preprocess_image`.

    Returns:
        (S, S) int64.

    Raises:
        ValueError: the mask has another shape or other values.
    """
    if mask.ndim != 2 or not np.isin(mask, (0, 1, 255)).all():
        raise ValueError(f"expected a mask (H, W) of 0, 1 and 255, got {mask.shape}")
    nearest = cv2.resize(mask.astype(np.uint8), _sides(size), interpolation=cv2.INTER_NEAREST)
    return torch.from_numpy(nearest).long()


def normalise(image: np.ndarray, out: Tensor | None = None) -> Tensor:
    """Return an image as a tensor (3, h, w) float32, normalised by `MEAN` and `STD`.

    Args:
        image: (h, w, 3) float32, RGB, on the scale 0 to 255.
        out: (3, h, w) float32 to write to, else a new tensor.
    """
    if out is None:
        out = torch.empty(3, *image.shape[:2])
    planes = out.numpy()
    cv2.split(image, list(planes))
    # Plane by plane they stay in the processor's cache.
    for plane, mean, std in zip(planes, MEAN, STD, strict=True):
        plane -= np.float32(mean)
        plane /= np.float32(std)
    return out


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (width, height), the order of OpenCV."""
    height, width = (size, size) if isinstance(size, int) else size
    return width, height
