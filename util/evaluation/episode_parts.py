"""Queries and supports of drawn episodes, each loaded alone, since several episodes need them.

A loaded query depends on the image alone, a loaded support on its class and annotation too: neither
the transform of the test nor the annotations draw from the random streams of the episodes.
"""

from collections.abc import Iterable
from typing import NamedTuple, cast

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from util.data.annotations import annotate, annotation_stream
from util.data.dataset import read_pair
from util.data.draws import PROTOCOL_SEED
from util.data.episodes import EpisodeDataset
from util.data.folds import class_label_table, ignore_value
from util.data.transform import EvalTransform

# A support: the position of its image in the lists, and its class.
SupportKey = tuple[int, int]
Support = tuple[Tensor, Tensor]  # image (3, S, S), mask uint8 (S, S) in {0, 1, 255}


class Query(NamedTuple):
    """A query, whatever class an episode asks for; its labels have the size that is compared."""

    image: Tensor  # transformed, (3, S, S)
    mask: np.ndarray  # class ids of the dataset, (H, W), uint8 or uint16; its highest = ignore
    base_label: np.ndarray  # labels 0..N of the base learner, likewise
    fitted: tuple[int, int]  # the part (h, w) of S×S that the image fills
    classes: int  # in the image


# Queries by their position in the lists, and supports: what to load, and what was loaded.
Request = tuple[Iterable[int], Iterable[SupportKey]]
Parts = tuple[dict[int, Query], dict[SupportKey, Support]]


class EpisodeParts(Dataset):
    """A dataset that loads what a `Request` names.

    Args:
        episodes: The episodes of the test, with its transform.
        original_size: Whether labels have the original size of the image, else S×S.
        ann_type: How the supports are annotated.

    Raises:
        UserError: A file cannot be read.
    """

    def __init__(
        self, episodes: EpisodeDataset, original_size: bool = True, ann_type: str = "mask"
    ):
        self.episodes, self.original_size, self.ann_type = episodes, original_size, ann_type

    def __getitem__(self, request: Request) -> Parts:
        queries, supports = request
        return {i: self.query(i) for i in queries}, {key: self.support(*key) for key in supports}

    def query(self, index: int) -> Query:
        """Load the query at a position in the lists."""
        episodes = self.episodes
        entry = episodes.lists.entries[index]
        image, mask = read_pair(episodes.data_root, entry)
        base_label = episodes.base_labels(mask, episodes.data_root, entry)
        classes = len(set(np.unique(mask).tolist()) - {0, ignore_value(mask.dtype)})
        transform = cast(EvalTransform, episodes.transform)
        fitted = transform.fitted_size(*mask.shape)
        labels = [] if self.original_size else [mask, base_label]
        tensor, *resized = transform(None, image, *labels)
        if resized:
            mask, base_label = (label.numpy() for label in resized)
        return Query(tensor, mask, base_label, fitted, classes)

    def support(self, index: int, class_id: int) -> Support:
        """Load a support for the model."""
        image, mask = self.episodes.transform(None, *self.annotated(index, class_id))
        return image, mask

    def annotated(self, index: int, class_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Load a support at its original size: image (H, W, 3), annotation uint8 (H, W)."""
        entry = self.episodes.lists.entries[index]
        image, mask = read_pair(self.episodes.data_root, entry)
        stream = annotation_stream(entry[0], class_id, PROTOCOL_SEED)
        label = class_label_table(class_id, kind=mask.dtype)[mask]
        return image, annotate(label, self.ann_type, stream)
