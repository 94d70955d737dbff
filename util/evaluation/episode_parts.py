"""Queries and supports of drawn episodes, each loaded by itself, since others need them too.

What an image becomes depends on the image alone, and of a support on its class and annotation:
the transform of the test and the annotations draw from no stream of the episodes.
"""

import os
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from util.data.annotations import annotate, annotation_stream
from util.data.draws import PROTOCOL_SEED
from util.data.episodes import EpisodeDataset
from util.data.folds import IGNORE, class_label_table
from util.data.images import read_pair


class SupportKey(NamedTuple):
    """A support: position of the image in the lists, its class, and how it is annotated."""

    index: int
    class_id: int
    ann_type: str


class Query(NamedTuple):
    """A query, whatever class is asked for.

    image: (3, S, S). mask: class ids of the dataset; base_label: 0..N; both uint8 (H, W) of the size
    that is compared, 255 = ignore. fitted: (h, w) that the image fills of S×S. classes: number of
    classes in the image.
    """

    image: Tensor
    mask: np.ndarray
    base_label: np.ndarray
    fitted: tuple[int, int]
    classes: int


class Request(NamedTuple):
    """What to load: queries by their position in the lists, and supports."""

    queries: tuple[int, ...]
    supports: tuple[SupportKey, ...]


class Parts(NamedTuple):
    """What was requested: {position: Query}, {key: (image (3, S, S), mask (S, S) uint8)}."""

    queries: dict[int, Query]
    supports: dict[SupportKey, tuple[Tensor, Tensor]]


class EpisodeParts(Dataset):
    """Loads `Request`s; raises UserError for files that cannot be read.

    Args:
        episodes: of the test, with its transform.
        original_size: of the labels; else they are S×S.
    """

    def __init__(self, episodes: EpisodeDataset, original_size: bool = True):
        self.episodes, self.original_size = episodes, original_size

    def __getitem__(self, request: Request) -> Parts:
        return Parts(
            {index: self.query(index) for index in request.queries},
            {key: self.support(key) for key in request.supports},
        )

    def query(self, index: int) -> Query:
        """The query at a position in the lists."""
        episodes = self.episodes
        entry = episodes.lists.entries[index]
        image, mask = read_pair(episodes.data_root, entry)
        base_label = episodes.base_labels(mask, os.path.join(episodes.data_root, entry[1]))
        classes = len(set(np.unique(mask).tolist()) - {0, IGNORE})
        fitted = episodes.transform.fitted_size(*mask.shape)
        labels = [] if self.original_size else [mask, base_label]
        image, *resized = episodes.transform(None, image, *labels)
        if resized:
            mask, base_label = (label.numpy() for label in resized)
        return Query(image, mask, base_label, fitted, classes)

    def support(self, key: SupportKey) -> tuple[Tensor, Tensor]:
        """A support as the model gets it: image (3, S, S), mask (S, S) in {0, 1, 255}."""
        return self.episodes.transform(None, *self.annotated(key))

    def annotated(self, key: SupportKey) -> tuple[np.ndarray, np.ndarray]:
        """A support at its original size: image (H, W, 3) uint8, annotation (H, W) uint8."""
        entry = self.episodes.lists.entries[key.index]
        image, mask = read_pair(self.episodes.data_root, entry)
        stream = annotation_stream(entry[0], key.class_id, PROTOCOL_SEED)
        return image, annotate(class_label_table(key.class_id)[mask], key.ann_type, stream)
