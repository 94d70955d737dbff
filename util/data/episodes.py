"""Episodes: a query with one of its classes, and K supports of that class.

The random stream is part of the published protocol: an episode is one class draw and the
supports' draws, then the transforms' draws, all from one stream, so a seed and a number of
workers name the same episodes as the published code.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from util.data.dataset import BaseLabels, read_pair
from util.data.folds import Fold, class_label_table, mask_type
from util.data.images import look_up
from util.data.lists import ImageLists, check_enough
from util.data.transform import Compose, RandomStream


def draw_episode(
    rng: RandomStream, entry_index: int, lists: ImageLists, shot: int
) -> tuple[int, list[int]]:
    """Draw the class and the supports of an episode, whose query is `lists.entries[entry_index]`.

    The number of draws is that of the published code, which includes one draw per support that
    nothing uses. `check_enough(lists, shot)` has to hold, else the drawing never ends.

    Returns:
        One of the classes in the query, of whatever size, and `shot` distinct indices into
        `lists.entries` in the order of drawing, none of which is the query.
    """
    query = lists.entries[entry_index]
    present = lists.present[entry_index]
    class_id = present[rng.randint(1, len(present)) - 1]
    files = lists.class_files[class_id]
    kept: list[int] = []
    for _ in range(shot):
        rng.randint(1, len(files))
        position = rng.randint(1, len(files)) - 1
        while lists.entries[files[position]] == query or position in kept:
            position = rng.randint(1, len(files)) - 1
        kept.append(position)
    return class_id, [files[position] for position in kept]


class EpisodeDataset(Dataset):
    """Episodes of a fold: item i has the i-th image of the lists as its query.

    An item is a dict of query, float32 (3, S, S), query_mask, uint8 (S, S) in {0, 1, 255}, base_mask,
    uint8 (S, S), support, float32 (K, 3, S, S), support_mask, uint8 (K, S, S), support_index, int64
    (K,), and the integers class_id, index and, where the part's classes are base classes,
    class_index (the rank among them). The supports are in the reverse order of drawing, as the
    published model gets them. Items draw from the module `random`, which torch seeds in every
    worker.

    Args:
        lists: The images of the part.
        fold: The fold.
        part: "train" for episodes of base classes, "val" or "test" for held-out classes.
        shot: Number K of supports.
        data_root: The folder that the paths of the lists are relative to.
        transform: The transform of queries and supports.
        base_label_folder: The folder that base labels are read from, see `BaseLabels`; None computes
            them.
        originals: Whether items also have label, uint8 (H, W) in {0, 1, 255}, and base_label, uint8
            (H, W), at the original size of the query.
        ignored: Classes whose pixels are 255 in all masks.

    Attributes:
        classes: The part's class ids, ascending.
        base_classes: The fold's base classes, ascending.

    Raises:
        UserError: A class has too few images for `shot`.
    """

    def __init__(
        self,
        lists: ImageLists,
        fold: Fold,
        part: str,
        shot: int,
        data_root: str,
        transform: Compose,
        base_label_folder: str | None = None,
        originals: bool = False,
        ignored: Sequence[int] = (),
    ):
        check_enough(lists, shot, where=part)
        self.lists, self.shot, self.originals = lists, shot, originals
        self.data_root, self.transform = data_root, transform
        self.classes = fold.classes(part)
        self.base_classes = fold.base
        self.ignored, self.mask_type = ignored, mask_type(fold.num_classes)
        self.base_labels = BaseLabels(fold, lists.entries, base_label_folder, ignored)

    def __len__(self) -> int:
        return len(self.lists.entries)

    def file_names(self, batch: dict[str, Any]) -> str:
        """Return the names of the queries and supports of a batch, for messages."""
        return "; ".join(
            f"query {self.lists.entries[query][0]} with "
            + ", ".join(self.lists.entries[support][0] for support in supports)
            for query, supports in zip(
                batch["index"].tolist(), batch["support_index"].tolist(), strict=True
            )
        )

    def __getitem__(self, index: int) -> dict[str, Any]:
        class_id, supports = draw_episode(random, index, self.lists, self.shot)
        return self.load(index, class_id, supports, random)

    def load(
        self, index: int, class_id: int, supports: list[int], rng: RandomStream
    ) -> dict[str, Any]:
        """Return the item of a drawn episode; the transforms draw from `rng`."""
        to_class = class_label_table(class_id, self.ignored, self.mask_type)
        entries = self.lists.entries
        image, mask = read_pair(self.data_root, entries[index])
        label = look_up(mask, to_class)
        base_label = self.base_labels(mask, self.data_root, entries[index])
        query, query_mask, base_mask = self.transform(rng, image, label, base_label)
        images = torch.empty(len(supports), 3, *self.transform.size)
        masks = []
        for support, place in zip(supports, reversed(images.unbind()), strict=True):
            image, mask = read_pair(self.data_root, entries[support])
            _, support_mask = self.transform(rng, image, look_up(mask, to_class), out=place)
            masks.append(support_mask)
        item: dict[str, Any] = {
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
