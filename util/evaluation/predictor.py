"""Run a model on drawn episodes, in units; features that episodes share are computed once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model import HDMNet, HDMNetOutput
from model.features import (
    QueryFeatures,
    SupportFeatures,
    map_tensors,
    split_supports,
    stack_queries,
    stack_supports,
)
from util.config import Config
from util.data.data_loader import Loader
from util.data.draws import Draw
from util.data.episodes import EpisodeDataset
from util.data.folds import class_label_table
from util.evaluation.episode_parts import EpisodeParts, Parts, Query, Request, Support, SupportKey
from util.evaluation.feature_cache import FeatureCache
from util.evaluation.metrics import confusion
from util.evaluation.plan import Unit
from util.runtime.errors import data_errors
from util.runtime.machine import available_cores


class Prediction(NamedTuple):
    """The maps of an episode at the size H×W that is compared, on the host."""

    position: int  # of the episode among all drawn ones
    final: np.ndarray  # uint8 (H, W) in {0, 1}
    meta: np.ndarray  # the meta learner's prediction, likewise
    label: np.ndarray  # the truth, uint8 (H, W) in {0, 1, 255}
    base_counts: np.ndarray | None  # `confusion` (N+1, N+1); None where it is not scored
    classes: int  # in the query
    prior: Tensor | None  # (2, H, W), where it was asked for
    correlations: list[Tensor]  # (h, w) of the part that the query fills, coarsest first


@dataclass
class _EncodedQuery:
    """A query with its features, and the base learner's counts once they are known."""

    query: Query
    features: QueryFeatures
    base_counts: np.ndarray | None = None


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return logits (B, C, S, S) at another size, (B, C, H, W)."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=True)


@dataclass
class Predictor:
    """A model, and how it is run on episodes.

    Features are the same whatever else is computed at the time, so predictions do not depend on the
    memory for those of supports.
    """

    net: HDMNet
    episodes: EpisodeDataset  # that the draws are loaded from
    device: torch.device  # of the model
    original_size: bool = True  # compare at the original size of the query, else at S×S
    batch_size: int = 1  # episodes at a time
    workers: int = 0  # loader processes, at most; no more than there are cores
    cache_bytes: float = 0  # memory for the features of supports
    ensemble: bool = True  # False takes the meta learner's prediction for the final one
    ann_type: str = "mask"  # how the supports are annotated
    prior: bool = False  # also give the similarity prior

    def __post_init__(self) -> None:
        # With another number of classes, the base learner is of another dataset and not scored.
        known = self.net.base.base_classes == len(self.episodes.base_classes)
        self.scored_base_classes = self.net.base.base_classes if known else 0
        self.cache = FeatureCache(self.cache_bytes)
        self.parts = EpisodeParts(self.episodes, self.original_size, self.ann_type)

    def predict(self, draws: Sequence[Draw], units: Sequence[Unit]) -> Iterator[list[Prediction]]:
        """Give the predictions of each unit, in the order of its batches.

        Raises:
            UserError: An image cannot be read.
        """
        self.net.eval()
        if not units:
            return
        coming: set[SupportKey] = set()
        loaded = iter(
            Loader(
                self.parts,
                min(self.workers, available_cores()),
                sampler=self._requests(draws, units, coming),
                batch_size=None,
                collate_fn=_unchanged,
                pin_memory=self.device.type == "cuda",
            )
        )
        for unit in units:
            encoded: dict[int, _EncodedQuery] = {}
            predictions = []
            for batch in unit:
                with torch.no_grad():
                    predictions += self._predict_batch(draws, batch, next(loaded), encoded)
                coming.difference_update(_support_keys(draws, batch))
            yield predictions

    def _requests(
        self, draws: Sequence[Draw], units: Sequence[Unit], coming: set[SupportKey]
    ) -> Iterator[Request]:
        """Give what each batch has to load; the loader asks for it ahead of the batches.

        `coming` are supports that earlier batches will have put into the cache.
        """
        for unit in units:
            asked: set[int] = set()
            for batch in unit:
                queries = {draws[position].index for position in batch} - asked
                distinct = dict.fromkeys(_support_keys(draws, batch))
                keys = [key for key in distinct if key not in self.cache and key not in coming]
                asked |= queries
                if self.cache.limit:
                    coming.update(keys)
                yield sorted(queries), keys

    def _predict_batch(
        self,
        draws: Sequence[Draw],
        batch: Sequence[int],
        parts: Parts,
        encoded: dict[int, _EncodedQuery],
    ) -> list[Prediction]:
        queries, loaded = parts
        for index, query in queries.items():
            features = self.net.encode_query(query.image[None].to(self.device))
            encoded[index] = _EncodedQuery(query, features)
        chosen = [draws[position] for position in batch]
        # The published model gets the supports in the reverse order of drawing.
        supports = [
            [self._support((index, d.class_id), loaded) for index in reversed(d.supports)]
            for d in chosen
        ]
        out = self.net.segment(
            stack_queries([encoded[draw.index].features for draw in chosen]),
            stack_supports(supports),
            self.episodes.transform.size,
            self._class_index(chosen),
        )
        return [
            self._prediction(position, draw.class_id, encoded[draw.index], out, number)
            for number, (position, draw) in enumerate(zip(batch, chosen, strict=True))
        ]

    def _support(self, key: SupportKey, loaded: dict[SupportKey, Support]) -> SupportFeatures:
        features = self.cache.get(key)
        if features is None:
            # The cache may have dropped it since the loader was told that it need not be loaded.
            with data_errors():
                image, mask = loaded.get(key) or self.parts.support(*key)
            encoded = self.net.encode_support(
                image[None, None].to(self.device), mask[None, None].to(self.device)
            )
            features = map_tensors(split_supports(encoded)[0][0], lambda tensor: tensor.cpu())
            self.cache.put(key, features)
        return map_tensors(features, lambda tensor: tensor.to(self.device))

    def _class_index(self, draws: Sequence[Draw]) -> Tensor | None:
        """Return the ranks of the classes, which the base learner's map leaves out, if it knows them."""
        known = self.episodes.base_classes
        if not self.scored_base_classes or draws[0].class_id not in known:
            return None
        ranks = [known.index(draw.class_id) for draw in draws]
        return torch.tensor(ranks, device=self.device)

    def _prediction(
        self, position: int, class_id: int, encoded: _EncodedQuery, out: HDMNetOutput, number: int
    ) -> Prediction:
        """Return the prediction of one sample of a batch."""
        one, query, size = slice(number, number + 1), encoded.query, self.episodes.transform.size
        if encoded.base_counts is None and self.scored_base_classes:
            base = self._fit(out.base[one], query)
            encoded.base_counts = confusion(_on_host(base.argmax(0)), query.base_label, len(base))
        meta = self._fit(out.meta[one], query)
        final = self._fit(out.final[one], query) if self.ensemble else meta
        prior = resize_logits(out.prior[one], size) if self.prior else None
        return Prediction(
            position,
            _on_host(final[1] > final[0]),
            _on_host(meta[1] > meta[0]),
            class_label_table(class_id)[query.mask],
            encoded.base_counts,
            query.classes,
            None if prior is None else self._fit(prior, query).cpu(),
            [_filled(maps[number], query.fitted, size).cpu() for maps in out.correlations],
        )

    def _fit(self, logits: Tensor, query: Query) -> Tensor:
        """Return logits (1, C, S, S) as (C, H, W) at the size that is compared."""
        if self.original_size:
            # Where the image fills part of its canvas, the rest has no place in the original.
            height, width = query.fitted
            logits = resize_logits(logits[..., :height, :width], query.mask.shape)
        return logits[0]


def build_predictor(
    cfg: Config, net: HDMNet, episodes: EpisodeDataset, device: torch.device, **options: Any
) -> Predictor:
    """Return the Predictor that the settings describe; its arguments in `options` override them."""
    arguments: dict[str, Any] = {
        "original_size": cfg.ori_resize,
        "batch_size": cfg.batch_size_val,
        "workers": cfg.workers,
        "cache_bytes": cfg.feature_cache_gb * 2**30,
        "ensemble": cfg.ensemble,
    }
    return Predictor(net, episodes, device, **(arguments | options))


def _support_keys(draws: Sequence[Draw], batch: Sequence[int]) -> Iterator[SupportKey]:
    for draw in (draws[position] for position in batch):
        yield from ((support, draw.class_id) for support in draw.supports)


def _unchanged(parts: Parts) -> Parts:
    return parts


def _on_host(values: Tensor) -> np.ndarray:
    return values.to(torch.uint8).cpu().numpy()


def _filled(values: Tensor, fitted: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return the part of a map (h, w) over the whole canvas that belongs to the image."""
    height, width = (
        max(1, round(cells * part / whole))
        for cells, part, whole in zip(values.shape, fitted, size, strict=True)
    )
    return values[:height, :width]
