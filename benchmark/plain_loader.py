"""The published data loading written down step by step: what the fast loader is measured against.

Every image is float32 from its decoding on and every transform works on the whole of it; the episode's
class is looked for in the decoded mask; tensors are normalised channel by channel; labels become int64
before they are batched; supports are put together one after the other, which reverses them.
"""

import os
import random

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from util.config import Config
from util.data.folds import IGNORE, Fold
from util.data.lists import ImageLists

MEAN = [255 * value for value in (0.485, 0.456, 0.406)]
STD = [255 * value for value in (0.229, 0.224, 0.225)]


class PlainEpisodes(Dataset):
    """The items of `util.data.episodes.EpisodeDataset` in training, labels as int64.

    Args:
        lists: of the part "train".
        fold: whose base classes are trained on.
        shot: K.
        data_root: what the lists are relative to.
        transform: what becomes of an image and its label, as of `training_steps`.
    """

    def __init__(
        self, lists: ImageLists, fold: Fold, shot: int, data_root: str, transform: "Steps"
    ):
        self.lists, self.fold, self.shot = lists, fold, shot
        self.data_root, self.transform = data_root, transform

    def __len__(self) -> int:
        return len(self.lists.entries)

    def __getitem__(self, index: int) -> dict:
        image, mask = self.read(index)
        present = [c for c in np.unique(mask).tolist() if c in self.fold.base]
        class_id = present[random.randint(1, len(present)) - 1]
        supports = self.draw_supports(index, class_id)
        label, base_label = class_label(mask, class_id), base_label_of(mask, self.fold)
        query, query_mask, base_mask = self.transform(image, [label, base_label])
        support = support_mask = None
        for position in supports:
            image, mask = self.read(position)
            image, mask = self.transform(image, [class_label(mask, class_id)])
            if support is None:
                support, support_mask = image[None], mask[None]
            else:
                support = torch.cat([image[None], support])
                support_mask = torch.cat([mask[None], support_mask])
        return {
            "query": query,
            "query_mask": query_mask,
            "base_mask": base_mask,
            "support": support,
            "support_mask": support_mask,
            "support_index": torch.tensor(supports[::-1]),
            "class_id": class_id,
            "index": index,
            "class_index": self.fold.base.index(class_id),
        }

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) float32 RGB, and mask (H, W) uint8."""
        image_path, mask_path = (
            os.path.join(self.data_root, name) for name in self.lists.entries[index]
        )
        return read_image(image_path), read_mask(mask_path)

    def draw_supports(self, index: int, class_id: int) -> list[int]:
        """Positions of K other images of the class; one draw of each goes unused."""
        files = self.lists.class_files[class_id]
        chosen = []
        for _ in range(self.shot):
            random.randint(1, len(files))
            support = files[random.randint(1, len(files)) - 1]
            while support == index or support in chosen:
                support = files[random.randint(1, len(files)) - 1]
            chosen.append(support)
        return chosen


class PlainImages(Dataset):
    """The items of `util.data.dataset.BaseDataset` in training, labels as int64.

    Args:
        entries: (image, mask) relative to data_root.
        fold: whose base classes are trained on.
        data_root: what the entries are relative to.
        transform: what becomes of an image and its label, as of `training_steps`.
    """

    def __init__(
        self, entries: list[tuple[str, str]], fold: Fold, data_root: str, transform: "Steps"
    ):
        self.entries, self.fold = entries, fold
        self.data_root, self.transform = data_root, transform

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict:
        image_path, mask_path = (os.path.join(self.data_root, name) for name in self.entries[index])
        image, mask = read_image(image_path), read_mask(mask_path)
        image, label = self.transform(image, [base_label_of(mask, self.fold)])
        return {"image": image, "label": label, "index": index}


def read_image(path: str) -> np.ndarray:
    """(H, W, 3) float32 RGB."""
    return np.float32(cv2.cvtColor(cv2.imread(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))


def read_mask(path: str) -> np.ndarray:
    """(H, W) uint8."""
    return cv2.imread(path, cv2.IMREAD_GRAYSCALE)


def class_label(mask: np.ndarray, class_id: int) -> np.ndarray:
    """(H, W) uint8: 1 on the class, 255 where it is ignored, else 0."""
    label = np.zeros_like(mask)
    label[mask == class_id] = 1
    label[mask == IGNORE] = IGNORE
    return label


def base_label_of(mask: np.ndarray, fold: Fold) -> np.ndarray:
    """(H, W) uint8: 1 + the rank among the base classes, 255 where it is ignored, else 0."""
    label = np.zeros_like(mask)
    for rank, class_id in enumerate(fold.base):
        label[mask == class_id] = 1 + rank
    label[mask == IGNORE] = IGNORE
    return label


class Steps:
    """Transforms one after the other, with `random` as their stream; then `to_tensors`."""

    def __init__(self, *steps):
        self.steps = steps

    def __call__(self, image: np.ndarray, labels: list[np.ndarray]) -> list[Tensor]:
        for step in self.steps:
            image, labels = step(image, labels)
        return to_tensors(image, labels)


def training_steps(cfg: Config) -> Steps:
    """The transforms of stage 2."""
    return Steps(
        RandScale(cfg.scale_min, cfg.scale_max),
        RandRotate(cfg.rotate_min, cfg.rotate_max),
        RandBlur(),
        RandFlip(),
        Resize(cfg.train_h, cfg.train_w),
    )


def base_training_steps(cfg: Config) -> Steps:
    """The transforms of stage 1."""
    return Steps(
        RandScale(cfg.base_scale_min, cfg.base_scale_max),
        RandRotate(cfg.base_rotate_min, cfg.base_rotate_max),
        RandBlur(),
        RandFlip(),
        Crop(cfg.base_h, cfg.base_w),
    )


class RandScale:
    """By a random factor."""

    def __init__(self, low: float, high: float):
        self.low, self.high = low, high

    def __call__(self, image, labels):
        factor = self.low + (self.high - self.low) * random.random()

        def scale(array, interpolation):
            return cv2.resize(array, None, fx=factor, fy=factor, interpolation=interpolation)

        return scale(image, cv2.INTER_LINEAR), [scale(x, cv2.INTER_NEAREST) for x in labels]


class RandRotate:
    """Half of the images, by a random angle in degrees."""

    def __init__(self, low: float, high: float):
        self.low, self.high = low, high

    def __call__(self, image, labels):
        if random.random() < 0.5:
            angle = self.low + (self.high - self.low) * random.random()
            height, width = image.shape[:2]
            matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)

            def rotate(array, flags, border):
                return cv2.warpAffine(
                    array,
                    matrix,
                    (width, height),
                    flags=flags,
                    borderMode=cv2.BORDER_CONSTANT,
                    borderValue=border,
                )

            image = rotate(image, cv2.INTER_LINEAR, MEAN)
            labels = [rotate(label, cv2.INTER_NEAREST, IGNORE) for label in labels]
        return image, labels


class RandBlur:
    """Half of the images, 5×5."""

    def __call__(self, image, labels):
        if random.random() < 0.5:
            image = cv2.GaussianBlur(image, (5, 5), 0)
        return image, labels


class RandFlip:
    """Half of the images, left and right."""

    def __call__(self, image, labels):
        if random.random() < 0.5:
            image, labels = cv2.flip(image, 1), [cv2.flip(label, 1) for label in labels]
        return image, labels


class Resize:
    """To a height and a width."""

    def __init__(self, height: int, width: int):
        self.size = (width, height)

    def __call__(self, image, labels):
        return (
            cv2.resize(image, self.size, interpolation=cv2.INTER_LINEAR),
            [cv2.resize(label, self.size, interpolation=cv2.INTER_NEAREST) for label in labels],
        )


class Crop:
    """A random part of a height and a width, of the image padded to at least that."""

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width

    def __call__(self, image, labels):
        height, width = image.shape[:2]
        rows, columns = max(self.height - height, 0), max(self.width - width, 0)
        if rows or columns:
            borders = (rows // 2, rows - rows // 2, columns // 2, columns - columns // 2)
            image = cv2.copyMakeBorder(image, *borders, cv2.BORDER_CONSTANT, value=MEAN)
            labels = [
                cv2.copyMakeBorder(label, *borders, cv2.BORDER_CONSTANT, value=IGNORE)
                for label in labels
            ]
        top = random.randint(0, image.shape[0] - self.height)
        left = random.randint(0, image.shape[1] - self.width)
        rows, columns = slice(top, top + self.height), slice(left, left + self.width)
        return image[rows, columns], [label[rows, columns] for label in labels]


def to_tensors(image: np.ndarray, labels: list[np.ndarray]) -> list[Tensor]:
    """(3, h, w) float32, normalised, and (h, w) int64 of each label."""
    tensor = torch.from_numpy(image.transpose(2, 0, 1))
    for channel, mean, std in zip(tensor, MEAN, STD, strict=True):
        channel.sub_(mean).div_(std)
    return [tensor, *(torch.from_numpy(label).long() for label in labels)]
