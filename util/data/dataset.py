"""Reading images and masks, and the base learner's dataset (stage 1)."""

import os
import random

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from util.data.folds import IGNORE, base_label_table
from util.runtime.errors import UserError


def read_image(path):
    """The image at `path` as RGB (H, W, 3) uint8. UserError if it cannot be read."""
    image = cv2.imread(path, cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise _unreadable("image", path)
    return image


def read_mask(path):
    """The label map at `path`, (H, W) uint8 class ids.

    Raises UserError if it cannot be read or is not a single-channel 8-bit image: a colour or
    palette mask holds colours, not class ids.
    """
    mask = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    if mask is None:
        raise _unreadable("mask", path)
    if mask.ndim != 2 or mask.dtype != np.uint8:
        kind = "colour or palette image" if mask.ndim != 2 else f"{mask.dtype} image"
        raise UserError(
            f"mask {path} is a {kind}; masks are single-channel 8-bit images of class ids"
        )
    return mask


def _unreadable(kind, path):
    if os.path.isfile(path):
        return UserError(f"{kind} {path} cannot be read as an image; replace the file")
    return UserError(f"{kind} {path} does not exist")


def read_pair(data_root, entry):
    """Image and mask of a list entry (paths relative to data_root).

    Returns (image (H, W, 3) uint8, mask (H, W) uint8); UserError if either cannot be read or
    their sizes differ.
    """
    image_path, mask_path = (os.path.join(data_root, name) for name in entry)
    image, mask = read_image(image_path), read_mask(mask_path)
    require_same_size(image, image_path, mask, mask_path)
    return image, mask


def check_labels(mask, num_classes, path):
    """Raise UserError if `mask` holds a value that is no class, background or ignore."""
    beyond = (mask > num_classes) & (mask != IGNORE)
    if beyond.any():
        raise unknown_class(path, int(mask[beyond].min()), num_classes)


def unknown_class(path, value, num_classes):
    """The UserError for mask `path` holding `value`, which is beyond the dataset's classes."""
    return UserError(
        f"mask {path} holds the value {value}; "
        f"classes are 1..{num_classes}, 0 is background and {IGNORE} is ignored"
    )


def base_label_dir(base_data_root, part, split):
    """Folder of the stored base labels of `part` ("train" or "val") and fold `split`."""
    return os.path.join(base_data_root, part, str(split))


class BaseLabels:
    """Labels of the base learner, computed from the masks or read from files.

    folder: None to compute, else the folder that holds one PNG per mask under the mask's name
    (what `python -m util.get_mulway_base_data` writes). Raises UserError if the folder is
    missing, and on two masks of `entries` that would share a file.
    """

    def __init__(self, fold, entries, folder=None):
        self.table = base_label_table(fold)
        self.folder = folder
        if folder is not None:
            if not os.path.isdir(folder):
                raise UserError(
                    f"folder of base labels {folder} does not exist; write it with python -m "
                    "util.get_mulway_base_data or leave base_data_root empty"
                )
            check_distinct_names(entries)

    def __call__(self, mask, mask_path):
        """Base label (H, W) uint8 of `mask`, which was read from mask_path."""
        if self.folder is None:
            return cv2.LUT(mask, self.table)
        path = base_label_path(self.folder, mask_path)
        label = read_mask(path)
        require_same_size(mask, mask_path, label, path)
        return label


def base_label_path(folder, mask_path):
    """The file in `folder` that stores the base label of the mask at mask_path."""
    return os.path.join(folder, os.path.splitext(os.path.basename(mask_path))[0] + ".png")


def check_distinct_names(entries):
    """Raise UserError if two masks of `entries` would store their base labels in one file."""
    seen = {}
    for _, mask in entries:
        other = seen.setdefault(base_label_path("", mask), mask)
        if other != mask:
            raise UserError(
                f"masks {other} and {mask} share a file name, so base_data_root cannot hold both; "
                "leave base_data_root empty"
            )


def require_same_size(first, first_path, second, second_path):
    """Raise UserError, naming both paths, if two arrays (H, W, …) differ in height or width."""
    if first.shape[:2] != second.shape[:2]:
        sizes = [f"{array.shape[1]}×{array.shape[0]}" for array in (first, second)]
        raise UserError(
            f"{first_path} is {sizes[0]} pixels but {second_path} is {sizes[1]}; "
            "they have to be of one size"
        )


class BaseDataset(Dataset):
    """Stage 1: every image of a list with its base label, as BAM (CVPR 2022) trains it.

    entries: all (image, mask) of the list, relative to data_root, unfiltered: images of held-out
    classes stay, those classes are background there. Item: dict of `image` (3, h, w) float32 and
    `label` uint8: (h, w) after the transform in "train", (H, W) at the original size in
    "val". Transforms draw from the module `random`, which torch seeds in every worker.
    """

    def __init__(self, entries, fold, part, data_root, transform, base_label_folder=None):
        self.entries, self.part, self.data_root = entries, part, data_root
        self.num_classes, self.base_classes = fold.num_classes, fold.base
        self.transform = transform
        self.base_labels = BaseLabels(fold, entries, base_label_folder)

    def __len__(self):
        return len(self.entries)

    def file_names(self, batch):
        """The images of a batch, for messages."""
        return ", ".join(self.entries[index][0] for index in batch["index"].tolist())

    def __getitem__(self, index):
        entry = self.entries[index]
        mask_path = os.path.join(self.data_root, entry[1])
        image, mask = read_pair(self.data_root, entry)
        check_labels(mask, self.num_classes, mask_path)
        label = self.base_labels(mask, mask_path)
        if self.part == "val":
            (image,) = self.transform(random, image)
            return {"image": image, "label": torch.from_numpy(label)}
        image, label = self.transform(random, image, label)
        return {"image": image, "label": label, "index": index}
