"""Transforms of one image together with any number of its label maps.

Every transform is called as `transform(rng, image, *labels)` with an image, uint8 (H, W, 3) RGB, and
labels, uint8 (H, W). How often and in which order a transform draws from `rng` is part of the
published protocol: the transforms of an episode's supports continue on the stream of its query's.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol, cast

import cv2
import numpy as np
import torch
from torch import Tensor

from model.preprocessing import MEAN, normalise
from util.data.folds import IGNORE, ignore_value

Size = tuple[int, int]  # height, width
Range = tuple[float, float]  # lowest, highest
Labels = list[np.ndarray]
Arrays = tuple[np.ndarray, Labels]  # the image, float32 (h, w, 3) in 0..255, and its labels


class RandomStream(Protocol):
    """What transforms draw from: the module `random` or a `random.Random`."""

    def random(self) -> float: ...

    def randint(self, a: int, b: int) -> int: ...


Step = Callable[[RandomStream, np.ndarray, Labels], Arrays]  # one step of a transform


class Compose:
    """The steps of a transform in order; then the image is normalised.

    Args:
        steps: The steps.
        size: Height and width of the result.
    """

    def __init__(self, steps: Iterable[Step], size: Size):
        self.steps, self.size = list(steps), size

    def __call__(
        self,
        rng: RandomStream | None,
        image: np.ndarray,
        *labels: np.ndarray,
        out: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the image, float32 (3, h, w), and the labels, uint8 (h, w).

        Args:
            rng: The random stream; may be None where no step draws.
            image: uint8 (H, W, 3) RGB.
            labels: uint8 (H, W).
            out: float32 (3, h, w), where the image is written; None for new memory.
        """
        image = image.astype(np.float32)
        transformed = list(labels)
        for step in self.steps:
            image, transformed = step(cast(RandomStream, rng), image, transformed)
        tensors = (torch.from_numpy(np.ascontiguousarray(label)) for label in transformed)
        return normalise(image, out), *tensors


class EvalTransform(Compose):
    """The transform of the test, which draws nothing.

    Args:
        size: Height and width of the result, which are the same where nothing is resized.
        resized: Whether images are resized to `size`; else `fit_inside` keeps their aspect.
    """

    def __init__(self, size: Size, resized: bool = True):
        self.resized = resized
        super().__init__([partial(resize if resized else fit_inside, size)], size)

    def fitted_size(self, height: int, width: int) -> Size:
        """Return the (h, w) that an image of height × width fills of the result."""
        return self.size if self.resized else fitted_size(self.size, height, width)


def train_transform(size: Size, scale: Range, rotate: Range) -> Compose:
    """Return the transform of episode training: scale, rotation, blur, flip, and resize.

    Args:
        size: Height and width of the result; the aspect is not kept, and nothing is cropped.
        scale: Lowest and highest factor.
        rotate: Lowest and highest angle in degrees.
    """
    return Compose([*_augmentation(scale, rotate), partial(resize, size)], size)


def base_train_transform(size: Size, scale: Range, rotate: Range) -> Compose:
    """Return the transform of base-learner training: as `train_transform`, but with a random crop."""
    return Compose([*_augmentation(scale, rotate), partial(random_crop, size)], size)


def _augmentation(scale: Range, rotate: Range) -> list[Step]:
    return [partial(random_scale, scale), partial(random_rotate, rotate), random_blur, random_flip]


def random_scale(scale: Range, rng: RandomStream, image: np.ndarray, labels: Labels) -> Arrays:
    """Scale both sides by one factor drawn from `scale`."""
    factor = scale[0] + (scale[1] - scale[0]) * rng.random()

    def scaled(array: np.ndarray, interpolation: int) -> np.ndarray:
        return cv2.resize(array, None, fx=factor, fy=factor, interpolation=interpolation)

    return scaled(image, cv2.INTER_LINEAR), [scaled(label, cv2.INTER_NEAREST) for label in labels]


def random_rotate(rotate: Range, rng: RandomStream, image: np.ndarray, labels: Labels) -> Arrays:
    """With probability 1/2 rotate about the centre by an angle drawn from `rotate`, in degrees.

    What comes into view has the mean colour and is ignored in labels.
    """
    if rng.random() < 0.5:
        angle = rotate[0] + (rotate[1] - rotate[0]) * rng.random()
        height, width = image.shape[:2]
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
        size = (width, height)
        image = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderValue=MEAN)
        labels = [
            cv2.warpAffine(label, matrix, size, flags=cv2.INTER_NEAREST, borderValue=IGNORE)
            for label in labels
        ]
    return image, labels


def random_blur(rng: RandomStream, image: np.ndarray, labels: Labels) -> Arrays:
    """With probability 1/2 blur the image by a 5×5 Gaussian."""
    return cv2.GaussianBlur(image, (5, 5), 0) if rng.random() < 0.5 else image, labels


def random_flip(rng: RandomStream, image: np.ndarray, labels: Labels) -> Arrays:
    """With probability 1/2 mirror left and right."""
    if rng.random() < 0.5:
        return cv2.flip(image, 1), [cv2.flip(label, 1) for label in labels]
    return image, labels


def random_crop(size: Size, rng: RandomStream, image: np.ndarray, labels: Labels) -> Arrays:
    """Cut out `size` (h, w) pixels at a random place.

    A smaller image is first padded evenly to that size, with the mean colour; labels are ignored there.
    """
    (height, width), (crop_h, crop_w) = image.shape[:2], size
    pad_h, pad_w = max(crop_h - height, 0), max(crop_w - width, 0)
    if pad_h or pad_w:
        sides = (pad_h // 2, pad_h - pad_h // 2, pad_w // 2, pad_w - pad_w // 2)
        image = cv2.copyMakeBorder(image, *sides, cv2.BORDER_CONSTANT, value=MEAN)
        labels = [
            cv2.copyMakeBorder(label, *sides, cv2.BORDER_CONSTANT, value=IGNORE) for label in labels
        ]
    top = rng.randint(0, image.shape[0] - crop_h)
    left = rng.randint(0, image.shape[1] - crop_w)
    window = np.s_[top : top + crop_h, left : left + crop_w]
    return image[window], [label[window] for label in labels]


def resize(size: Size, rng: RandomStream, image: np.ndarray, labels: Labels) -> Arrays:
    """Resize to `size` (h, w) pixels; the aspect is not kept."""
    size = size[::-1]
    return (
        cv2.resize(image, size, interpolation=cv2.INTER_LINEAR),
        [cv2.resize(label, size, interpolation=cv2.INTER_NEAREST) for label in labels],
    )


def fit_inside(size: Size, rng: RandomStream, image: np.ndarray, labels: Labels) -> Arrays:
    """Shrink an image whose longer side exceeds the canvas, keep a smaller one, pad the rest.

    The image, of `fitted_size`, is pasted top-left on a canvas `size` (h, w), h = w, of zeros, which
    labels ignore.
    """
    image, labels = resize(fitted_size(size, *image.shape[:2]), rng, image, labels)

    def pasted(array: np.ndarray, fill: int) -> np.ndarray:
        canvas = np.full((*size, *array.shape[2:]), fill, array.dtype)
        canvas[: array.shape[0], : array.shape[1]] = array
        return canvas

    return pasted(image, 0), [pasted(label, ignore_value(label.dtype)) for label in labels]


def fitted_size(size: Size, height: int, width: int) -> Size:
    """Return the (h, w) that an image of height × width takes on the canvas of `fit_inside`.

    The longer side becomes the canvas side, the other keeps the aspect, both are then cut to multiples
    of 8. Sides never fall below 8 pixels.
    """
    longer, canvas = max(height, width), size[0]
    if longer <= canvas:
        return height, width
    height, width = (
        max(8, (canvas if side == longer else int(side * (canvas / longer))) // 8 * 8)
        for side in (height, width)
    )
    return height, width
