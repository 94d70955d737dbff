"""Transforms of one image together with any number of its label maps.

Every transform is called as `transform(rng, image, *labels)` with an image, uint8 (H, W, 3) RGB, and
labels, uint8 (H, W). How often and in which order a transform draws from `rng` is part of the
published protocol: the transforms of an episode's supports continue on the stream of its query's.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, cast

import cv2
import numpy as np
import torch
from torch import Tensor

# ImageNet statistics, RGB, on the 0..255 scale.
MEAN = tuple(255 * value for value in (0.485, 0.456, 0.406))
STD = tuple(255 * value for value in (0.229, 0.224, 0.225))


Size = tuple[int, int]  # height, width
Range = tuple[float, float]  # lowest, highest
Labels = list[np.ndarray]


class RandomStream(Protocol):
    """What transforms draw from: the module `random` or a `random.Random`."""

    def random(self) -> float: ...

    def randint(self, a: int, b: int) -> int: ...


class Step(Protocol):
    """One step of a transform; the image is float32 (h, w, 3) in 0..255."""

    def __call__(
        self, rng: RandomStream, image: np.ndarray, labels: Labels
    ) -> tuple[np.ndarray, Labels]: ...


class LastStep(Step, Protocol):
    """The step that sets the size, (h, w) in pixels."""

    size: Size


class Compose:
    """The steps of a transform in order, followed by `to_tensors`.

    Args:
        steps: The steps before the last one.
        last: The step that sets the size of the result.
    """

    def __init__(self, steps: Iterable[Step], last: LastStep):
        self.steps = [*steps, last]
        self.size = last.size

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
        return to_tensors(image, transformed, out)


class EvalTransform(Compose):
    """The transform of the test, which draws nothing.

    Args:
        size: Height and width of the result.
        resized: Whether images are resized to `size`; else `FitInside` keeps their aspect.
        padding_label: Label of the padding.
    """

    def __init__(self, size: Size, resized: bool = True, padding_label: int = 255):
        self._last = Resize(size) if resized else FitInside(size, padding_label)
        super().__init__([], self._last)

    def fitted_size(self, height: int, width: int) -> Size:
        """Return the (h, w) that an image of height × width fills of the result."""
        return self._last.fitted_size(height, width)


def train_transform(size: Size, scale: Range, rotate: Range, padding_label: int = 255) -> Compose:
    """Return the transform of episode training: scale, rotation, blur, flip, and resize.

    Args:
        size: Height and width of the result; the aspect is not kept, and nothing is cropped.
        scale: Lowest and highest factor.
        rotate: Lowest and highest angle in degrees.
        padding_label: Label of what rotation brings into view.
    """
    return Compose(_augmentation(scale, rotate, padding_label), Resize(size))


def base_train_transform(
    size: Size, scale: Range, rotate: Range, padding_label: int = 255
) -> Compose:
    """Return the transform of base-learner training: as `train_transform`, but with a random crop."""
    return Compose(_augmentation(scale, rotate, padding_label), RandomCrop(size, padding_label))


def _augmentation(scale: Range, rotate: Range, padding_label: int) -> list[Step]:
    return [RandomScale(*scale), RandomRotate(*rotate, padding_label), RandomBlur(), RandomFlip()]


class RandomScale:
    """Scale both sides by one factor drawn from low..high."""

    def __init__(self, low: float, high: float):
        self.low, self.high = low, high

    def __call__(
        self, rng: RandomStream, image: np.ndarray, labels: Labels
    ) -> tuple[np.ndarray, Labels]:
        factor = self.low + (self.high - self.low) * rng.random()
        return (
            cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR),
            [
                cv2.resize(label, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
                for label in labels
            ],
        )


class RandomRotate:
    """With probability 1/2 rotate about the centre by an angle from low..high degrees.

    What comes into view has the mean colour and, in labels, `padding_label`.
    """

    def __init__(self, low: float, high: float, padding_label: int = 255):
        self.low, self.high, self.padding_label = low, high, padding_label

    def __call__(
        self, rng: RandomStream, image: np.ndarray, labels: Labels
    ) -> tuple[np.ndarray, Labels]:
        if rng.random() < 0.5:
            angle = self.low + (self.high - self.low) * rng.random()
            height, width = image.shape[:2]
            matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)

            def warp(array: np.ndarray, flags: int, border: float | Sequence[float]) -> np.ndarray:
                return cv2.warpAffine(
                    array,
                    matrix,
                    (width, height),
                    flags=flags,
                    borderMode=cv2.BORDER_CONSTANT,
                    borderValue=border,
                )

            image = warp(image, cv2.INTER_LINEAR, MEAN)
            labels = [warp(label, cv2.INTER_NEAREST, self.padding_label) for label in labels]
        return image, labels


class RandomBlur:
    """With probability 1/2 blur the image by a 5×5 Gaussian."""

    def __call__(
        self, rng: RandomStream, image: np.ndarray, labels: Labels
    ) -> tuple[np.ndarray, Labels]:
        if rng.random() < 0.5:
            image = cv2.GaussianBlur(image, (5, 5), 0)
        return image, labels


class RandomFlip:
    """With probability 1/2 mirror left and right."""

    def __call__(
        self, rng: RandomStream, image: np.ndarray, labels: Labels
    ) -> tuple[np.ndarray, Labels]:
        if rng.random() < 0.5:
            image, labels = cv2.flip(image, 1), [cv2.flip(label, 1) for label in labels]
        return image, labels


class Resize:
    """Resize to (h, w) pixels; the aspect is not kept."""

    def __init__(self, size: Size):
        self.size = size

    def __call__(
        self, rng: RandomStream, image: np.ndarray, labels: Labels
    ) -> tuple[np.ndarray, Labels]:
        return _resize(image, labels, self.size)

    def fitted_size(self, height: int, width: int) -> Size:
        """Return the (h, w) that an image of height × width fills: all of it."""
        return self.size


class FitInside:
    """Shrink an image whose longer side exceeds the canvas, keep a smaller one, pad the rest.

    The longer side becomes the canvas side, the other keeps the aspect, both are then cut to
    multiples of 8; pasted top-left on a canvas (h, w), h = w, of zeros and, in labels,
    `padding_label`. Sides never fall below 8 pixels.
    """

    def __init__(self, size: Size, padding_label: int = 255):
        if size[0] != size[1]:
            raise ValueError(f"the canvas has to be square, got {size}")
        self.size, self.padding_label = size, padding_label

    def __call__(
        self, rng: RandomStream, image: np.ndarray, labels: Labels
    ) -> tuple[np.ndarray, Labels]:
        image, labels = _resize(image, labels, self.fitted_size(*image.shape[:2]))
        return (
            self._paste(image, 0),
            [self._paste(label, self.padding_label) for label in labels],
        )

    def fitted_size(self, height: int, width: int) -> Size:
        """Return the (h, w) that an image of height × width takes on the canvas."""
        longer, canvas = max(height, width), self.size[0]
        if longer <= canvas:
            return height, width
        ratio = canvas / longer
        height, width = (
            max(8, (canvas if side == longer else int(side * ratio)) // 8 * 8)
            for side in (height, width)
        )
        return height, width

    def _paste(self, array: np.ndarray, fill: int) -> np.ndarray:
        canvas = np.full((*self.size, *array.shape[2:]), fill, array.dtype)
        canvas[: array.shape[0], : array.shape[1]] = array
        return canvas


class RandomCrop:
    """A crop of (h, w) pixels at a random place.

    A smaller image is first padded evenly to that size, with the mean colour and, in labels,
    `padding_label`.
    """

    def __init__(self, size: Size, padding_label: int = 255):
        self.size, self.padding_label = size, padding_label

    def __call__(
        self, rng: RandomStream, image: np.ndarray, labels: Labels
    ) -> tuple[np.ndarray, Labels]:
        (height, width), (crop_h, crop_w) = image.shape[:2], self.size
        pad_h, pad_w = max(crop_h - height, 0), max(crop_w - width, 0)
        if pad_h or pad_w:
            sides = (pad_h // 2, pad_h - pad_h // 2, pad_w // 2, pad_w - pad_w // 2)
            image = cv2.copyMakeBorder(image, *sides, cv2.BORDER_CONSTANT, value=MEAN)
            labels = [
                cv2.copyMakeBorder(label, *sides, cv2.BORDER_CONSTANT, value=self.padding_label)
                for label in labels
            ]
        top = rng.randint(0, image.shape[0] - crop_h)
        left = rng.randint(0, image.shape[1] - crop_w)
        window = np.s_[top : top + crop_h, left : left + crop_w]
        return image[window], [label[window] for label in labels]


def _resize(image: np.ndarray, labels: Labels, size: Size) -> tuple[np.ndarray, Labels]:
    height, width = size
    return (
        cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR),
        [cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST) for label in labels],
    )


def to_tensors(
    image: np.ndarray, labels: Iterable[np.ndarray], out: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Normalise the image with MEAN and STD and turn all arrays into tensors.

    Args:
        image: float32 (h, w, 3).
        labels: uint8 (h, w).
        out: float32 (3, h, w), where the image is written; None for new memory.

    Returns:
        The image, float32 (3, h, w), and the labels, uint8 (h, w).
    """
    if out is None:
        out = torch.empty(3, *image.shape[:2])
    planes = out.numpy()
    cv2.split(image, list(planes))
    # Plane by plane they stay in the processor's cache.
    for plane, mean, std in zip(planes, MEAN, STD, strict=True):
        plane -= np.float32(mean)
        plane /= np.float32(std)
    return (
        out,
        *(torch.from_numpy(np.ascontiguousarray(label)) for label in labels),
    )
