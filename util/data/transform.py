"""Transforms of one image together with any number of its label maps.

Every transform is called as `transform(rng, image, *labels)`: image (H, W, 3) uint8 RGB, labels
(H, W) uint8, `rng` anything with `random()` and `randint(a, b)` (the module `random` or a
`random.Random`). How often and in which order `rng` is drawn from is part of the published
protocol: an episode's supports continue on the stream its query's transforms left.
"""

import cv2
import numpy as np
import torch

from model.preprocessing import MEAN, normalise


class Compose:
    """Steps in order, then `to_tensors`: returns (image (3, h, w) float32, labels (h, w) uint8…).

    With `out` (3, h, w) float32 the image is written there.

    A step maps (rng, image, list of labels) to (image, list of labels), the image being
    (h, w, 3) float32 in 0..255.
    """

    def __init__(self, steps):
        self.steps = list(steps)

    def __call__(self, rng, image, *labels, out=None):
        image = image.astype(np.float32)
        labels = list(labels)
        for step in self.steps:
            image, labels = step(rng, image, labels)
        return to_tensors(image, labels, out)

    @property
    def size(self):
        """(h, w) of what comes out."""
        return self.steps[-1].size

    def fitted_size(self, height, width):
        """(h, w) that an image of height × width fills of an `eval_transform`'s output."""
        return self.steps[-1].fitted_size(height, width)


def train_transform(size, scale, rotate, padding_label=255):
    """Episode training: scale, rotation, blur, flip, then resize to `size` without a crop.

    size: (h, w) pixels; scale: (min, max) factor; rotate: (min, max) degrees.
    """
    return Compose([*_augmentation(scale, rotate, padding_label), Resize(size)])


def base_train_transform(size, scale, rotate, padding_label=255):
    """Base-learner training: as `train_transform`, but ends in a random crop of `size`."""
    return Compose([*_augmentation(scale, rotate, padding_label), RandomCrop(size, padding_label)])


def eval_transform(size, resized=True, padding_label=255):
    """Testing: no randomness. Resize to `size` (h, w), or `FitInside` it if not `resized`."""
    return Compose([Resize(size) if resized else FitInside(size, padding_label)])


def _augmentation(scale, rotate, padding_label):
    return [RandomScale(*scale), RandomRotate(*rotate, padding_label), RandomBlur(), RandomFlip()]


class RandomScale:
    """Scale both sides by one factor drawn from low..high."""

    def __init__(self, low, high):
        self.low, self.high = low, high

    def __call__(self, rng, image, labels):
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

    What comes into view is the mean colour, in labels `padding_label`.
    """

    def __init__(self, low, high, padding_label=255):
        self.low, self.high, self.padding_label = low, high, padding_label

    def __call__(self, rng, image, labels):
        if rng.random() < 0.5:
            angle = self.low + (self.high - self.low) * rng.random()
            height, width = image.shape[:2]
            matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)

            def warp(array, flags, border):
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
    """With probability 1/2 a 5×5 Gaussian blur of the image."""

    def __call__(self, rng, image, labels):
        if rng.random() < 0.5:
            image = cv2.GaussianBlur(image, (5, 5), 0)
        return image, labels


class RandomFlip:
    """With probability 1/2 mirror left and right."""

    def __call__(self, rng, image, labels):
        if rng.random() < 0.5:
            image, labels = cv2.flip(image, 1), [cv2.flip(label, 1) for label in labels]
        return image, labels


class Resize:
    """Resize to (h, w) pixels; the aspect is not kept."""

    def __init__(self, size):
        self.size = tuple(size)

    def __call__(self, rng, image, labels):
        return _resize(image, labels, self.size)

    def fitted_size(self, height, width):
        """(h, w) that an image of height × width takes: all of it."""
        return self.size


class FitInside:
    """Shrink an image whose longer side exceeds the canvas, keep a smaller one, pad the rest.

    The longer side becomes the canvas side, the other keeps the aspect, both are then cut to
    multiples of 8; pasted top-left on a canvas (h, w), h = w, of zeros and, in labels,
    `padding_label`. Sides never fall below 8 pixels.
    """

    def __init__(self, size, padding_label=255):
        if size[0] != size[1]:
            raise ValueError(f"the canvas has to be square, got {tuple(size)}")
        self.size, self.padding_label = tuple(size), padding_label

    def __call__(self, rng, image, labels):
        image, labels = _resize(image, labels, self.fitted_size(*image.shape[:2]))
        return (
            self._paste(image, 0),
            [self._paste(label, self.padding_label) for label in labels],
        )

    def fitted_size(self, height, width):
        """(h, w) that an image of height × width takes on the canvas."""
        longer, canvas = max(height, width), self.size[0]
        if longer <= canvas:
            return height, width
        ratio = canvas / longer
        return tuple(
            max(8, (canvas if side == longer else int(side * ratio)) // 8 * 8)
            for side in (height, width)
        )

    def _paste(self, array, fill):
        canvas = np.full((*self.size, *array.shape[2:]), fill, array.dtype)
        canvas[: array.shape[0], : array.shape[1]] = array
        return canvas


class RandomCrop:
    """A crop of (h, w) pixels at a random place.

    A smaller image is first padded evenly to that size, with the mean colour and, in labels,
    `padding_label`.
    """

    def __init__(self, size, padding_label=255):
        self.size, self.padding_label = tuple(size), padding_label

    def __call__(self, rng, image, labels):
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


def _resize(image, labels, size):
    height, width = size
    return (
        cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR),
        [cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST) for label in labels],
    )


def to_tensors(image, labels, out=None):
    """Normalise the image, and return labels as tensors.

    image: (h, w, 3) float32; labels: (h, w) uint8; out: (3, h, w) float32 to write to, else
    new. Returns ((3, h, w) float32, (h, w) uint8, …).
    """
    return (
        normalise(image, out),
        *(torch.from_numpy(np.ascontiguousarray(label)) for label in labels),
    )
