"""Reading pairs of an image and a mask; the base learner's dataset (stage 1) and its labels."""

import os
import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from util.data.folds import IGNORE, Fold, base_label_table
from util.data.images import (
    Entry,
    as_shown,
    check_labels,
    look_up,
    read_image,
    read_labels,
    read_mask,
    require_same_size,
)
from util.data.transform import Compose
from util.runtime.errors import UserError


def read_pair(data_root: str, entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    """Read the image, uint8 (H, W, 3), and the `read_labels` of an entry under `data_root`.

    Raises:
        UserError: One of them cannot be read, or their sizes differ.
    """
    image_path, mask_path = (os.path.join(data_root, name) for name in entry)
    image = read_image(image_path)
    mask = as_shown(read_labels(data_root, entry), image.shape, image_path)
    require_same_size(image, image_path, mask, mask_path)
    return image, mask


def base_label_dir(base_data_root: str, part: str, split: int) -> str:
    """Return the folder of the stored base labels of a part ("train" or "val") and a fold."""
    return os.path.join(base_data_root, part, str(split))


class BaseLabels:
    """Labels of the base learner, computed from the masks or read from files.

    Args:
        fold: The fold.
        entries: All entries whose labels will be asked for.
        folder: A folder that holds one PNG per mask under the mask's name, as
            `python -m util.get_mulway_base_data` writes it; None computes the labels.
        ignored: Classes whose pixels become 255, also in labels from files.

    Raises:
        UserError: The folder is missing, or two masks would share a file in it.
    """

    def __init__(
        self,
        fold: Fold,
        entries: Iterable[Entry],
        folder: str | None = None,
        ignored: Sequence[int] = (),
    ):
        self.table = base_label_table(fold)
        self.folder, self.ignored = folder, ignored
        if folder is not None:
            if not os.path.isdir(folder):
                raise UserError(
                    f"folder of base labels {folder} does not exist; write it with python -m "
                    "util.get_mulway_base_data or leave base_data_root empty"
                )
            check_distinct_names(entries)

    def __call__(self, mask: np.ndarray, data_root: str, entry: Entry) -> np.ndarray:
        """Return the base label, uint8 (H, W), of the mask that `read_pair` gave for an entry."""
        if self.folder is None:
            label = look_up(mask, self.table)
        else:
            image_path, mask_path = (os.path.join(data_root, name) for name in entry)
            path = base_label_path(self.folder, mask_path)
            label = as_shown(read_mask(path), mask.shape, image_path)
            require_same_size(mask, mask_path, label, path)
        if self.ignored:
            label[np.isin(mask, self.ignored)] = IGNORE
        return label


def base_label_path(folder: str, mask_path: str) -> str:
    """Return the file in a folder that stores the base label of a mask."""
    return os.path.join(folder, os.path.splitext(os.path.basename(mask_path))[0] + ".png")


def check_distinct_names(entries: Iterable[Entry]) -> None:
    """Raise a UserError if two masks would store their base labels in one file."""
    seen: dict[str, str] = {}
    for _, mask in entries:
        other = seen.setdefault(base_label_path("", mask), mask)
        if other != mask:
            raise UserError(
                f"masks {other} and {mask} share a file name, so base_data_root cannot hold both; "
                "leave base_data_root empty"
            )


class BaseDataset(Dataset):
    """Every image of a list with its base label, as BAM (CVPR 2022) trains stage 1.

    Images of held-out classes stay; these classes are background, unless they are `ignored`. An
    item is a dict of `image`, float32 (3, h, w), and `label`, uint8: (h, w) after the transform in
    "train", (H, W) at the original size in "val". Transforms draw from the module `random`, which
    torch seeds in every worker.

    Args:
        entries: All entries of the list.
        fold: The fold.
        part: "train" or "val".
        data_root: The folder that the entries' paths are relative to.
        transform: The transform of image and label.
        base_label_folder, ignored: See `BaseLabels`.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        fold: Fold,
        part: str,
        data_root: str,
        transform: Compose,
        base_label_folder: str | None = None,
        ignored: Sequence[int] = (),
    ):
        self.entries, self.part, self.data_root = entries, part, data_root
        self.num_classes, self.base_classes = fold.num_classes, fold.base
        self.transform = transform
        self.base_labels = BaseLabels(fold, entries, base_label_folder, ignored)

    def __len__(self) -> int:
        return len(self.entries)

    def file_names(self, batch: dict[str, Any]) -> str:
        """Return the names of the images of a batch, for messages."""
        return ", ".join(self.entries[index][0] for index in batch["index"].tolist())

    def __getitem__(self, index: int) -> dict[str, Any]:
        mask_path = os.path.join(self.data_root, self.entries[index][1])
        image, mask = read_pair(self.data_root, self.entries[index])
        check_labels(mask, self.num_classes, mask_path)
        label = self.base_labels(mask, self.data_root, self.entries[index])
        if self.part == "val":
            (tensor,) = self.transform(random, image)
            return {"image": tensor, "label": torch.from_numpy(label)}
        tensor, target = self.transform(random, image, label)
        return {"image": tensor, "label": target, "index": index}
