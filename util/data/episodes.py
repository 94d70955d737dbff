"""Episodes: a query with one of its classes, and K supports of that class.

The random stream is part of the published protocol: an episode is one class draw and the
supports' draws, then the transforms' draws, all from one stream, so a seed and a number of
workers name the same episodes as the published code.
"""

import os
import random

import cv2
import torch
from torch.utils.data import Dataset

from util.data.dataset import BaseLabels, read_pair
from util.data.folds import class_label_table
from util.data.lists import check_enough


def draw_episode(rng, entry_index, lists, shot):
    """Draw the class and the supports for the query `lists.entries[entry_index]`.

    Returns (class_id, supports): the class among those present in the query, whatever their
    size there, and `shot` distinct indices into `lists.entries` in the order of drawing, none
    naming the query. Ends only if `check_enough(lists, shot)` holds. The number of draws from
    `rng` is that of the published code, including a draw per support that nothing uses.
    """
    query = lists.entries[entry_index]
    present = lists.present[entry_index]
    class_id = present[rng.randint(1, len(present)) - 1]
    files = lists.class_files[class_id]
    kept = []
    for _ in range(shot):
        rng.randint(1, len(files))
        position = rng.randint(1, len(files)) - 1
        while lists.entries[files[position]] == query or position in kept:
            position = rng.randint(1, len(files)) - 1
        kept.append(position)
    return class_id, [files[position] for position in kept]


class EpisodeDataset(Dataset):
    """Episodes of a fold: item i has the i-th image of the lists as its query.

    lists: ImageLists of `part` ("train": base classes, "val": tested classes); `transform` as
    in `util.data.transform`; base_label_folder: None to compute base labels, else the folder they
    are read from (`util.data.dataset.base_label_dir`). Raises UserError if a class has too few
    images for `shot`. `classes`: the part's class ids, ascending; `base_classes`: those
    of the fold's base classes. Draws from the module `random`, which torch seeds in every worker.

    Item: dict of query (3, S, S) float32, query_mask (S, S) uint8 in {0, 1, 255}, base_mask
    (S, S) uint8, support (K, 3, S, S) float32, support_mask (K, S, S) uint8, support_index (K,)
    int64 and the ints class_id, index and, where the part's classes are base classes, class_index
    (rank among them). The supports' order is the reverse of drawing, as the published model gets
    them. `originals` adds, at the query's original size, label (H, W) uint8 in {0, 1, 255} and
    base_label (H, W) uint8.
    """

    def __init__(
        self,
        lists,
        fold,
        part,
        shot,
        data_root,
        transform,
        base_label_folder=None,
        originals=False,
    ):
        check_enough(lists, shot, where=part)
        self.lists, self.shot, self.originals = lists, shot, originals
        self.data_root, self.transform = data_root, transform
        self.classes = fold.classes(part)
        self.base_classes = fold.base
        self.base_labels = BaseLabels(fold, lists.entries, base_label_folder)

    def __len__(self):
        return len(self.lists.entries)

    def file_names(self, batch):
        """The queries and supports of a batch, for messages."""
        return "; ".join(
            f"query {self.lists.entries[query][0]} with "
            + ", ".join(self.lists.entries[support][0] for support in supports)
            for query, supports in zip(
                batch["index"].tolist(), batch["support_index"].tolist(), strict=True
            )
        )

    def __getitem__(self, index):
        class_id, supports = draw_episode(random, index, self.lists, self.shot)
        return self.load(index, class_id, supports, random)

    def load(self, index, class_id, supports, rng):
        """The item for a drawn episode; `supports` in the order of drawing, transforms on `rng`."""
        to_class = class_label_table(class_id)
        image, mask = read_pair(self.data_root, self.lists.entries[index])
        label = cv2.LUT(mask, to_class)
        mask_path = os.path.join(self.data_root, self.lists.entries[index][1])
        base_label = self.base_labels(mask, mask_path)
        query, query_mask, base_mask = self.transform(rng, image, label, base_label)
        images = torch.empty(len(supports), 3, *self.transform.size)
        masks = []
        for support, place in zip(supports, reversed(images.unbind()), strict=True):
            image, mask = read_pair(self.data_root, self.lists.entries[support])
            _, mask = self.transform(rng, image, cv2.LUT(mask, to_class), out=place)
            masks.append(mask)
        item = {
            "query": query,
            "query_mask": query_mask,
            "base_mask": base_mask,
            "support": images,
            "support_mask": torch.stack(masks[::-1]),
            "support_index": torch.tensor(supports[::-1]),
            "class_id": class_id,
            "index": index,
        }
        if class_id in self.base_classes:
            item["class_index"] = self.base_classes.index(class_id)
        if self.originals:
            item["label"] = torch.from_numpy(label)
            item["base_label"] = torch.from_numpy(base_label)
        return item
