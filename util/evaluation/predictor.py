"""Run a model on drawn episodes, in units; features that episodes share are computed once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model import HDMNet, HDMNetOutput
from model.features import (
    QueryFeatures,
    SupportFeatures,
    split_queries,
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
from util.evaluation.metrics import pixel_counts
from util.evaluation.plan import Unit
from util.runtime.errors import DataError, errors_as
from util.runtime.machine import available_cores

_Item = TypeVar("_Item")


class Prediction(NamedTuple):
    """The counts of an episode, and its maps at the size H×W that is compared, on the device."""

    position: int  # of the episode among all drawn ones
    counts: Tensor  # `confusion` of final and meta prediction, (2, 2, 2), on the host
    base_counts: np.ndarray | None  # `confusion` (N+1, N+1); None where it is not scored
    final: Tensor  # bool (H, W)
    label: Tensor  # the truth, uint8 (H, W) in {0, 1, 255}
    classes: int  # in the query
    prior: Tensor | None  # (2, H, W), where it was asked for
    correlations: list[Tensor]  # (h, w) of the part that the query fills, coarsest first


@dataclass
class _EncodedQuery:
    """A query with its features, and the base learner's counts once they are known."""

    query: Query
    mask: Tensor  # that of the query
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
    cache_bytes: float = 0  # memory for the features of supports, of which a GPU gives half at most
    ensemble: bool = True  # False takes the meta learner's prediction for the final one
    ann_type: str = "mask"  # how the supports are annotated
    prior: bool = False  # also give the similarity prior
    own_classes: bool = True  # False: the base learner is of another dataset and not scored

    def __post_init__(self) -> None:
        # With another number of classes, the base learner is of another dataset too.
        known = self.own_classes and self.net.base.base_classes == len(self.episodes.base_classes)
        self.scored_base_classes = self.net.base.base_classes if known else 0
        if self.device.type == "cuda":
            self.cache_bytes = min(self.cache_bytes, torch.cuda.mem_get_info(self.device)[0] / 2)
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
        for some in self._together(list(queries.items())):
            images = torch.stack([query.image for _, query in some]).to(self.device)
            features = split_queries(self.net.encode_query(images))
            for (index, query), own in zip(some, features, strict=True):
                mask = torch.from_numpy(query.mask).to(self.device)
                encoded[index] = _EncodedQuery(query, mask, own)
        chosen = [draws[position] for position in batch]
        supports = self._supports(list(_support_keys(draws, batch)), loaded)
        out = self.net.segment(
            stack_queries([encoded[draw.index].features for draw in chosen]),
            # The published model gets the supports in the reverse order of drawing.
            stack_supports(
                [[supports[index, d.class_id] for index in reversed(d.supports)] for d in chosen]
            ),
            self.episodes.transform.size,
            self._class_index(chosen),
        )
        predictions = [
            self._prediction(position, draw.class_id, encoded[draw.index], out, number)
            for number, (position, draw) in enumerate(zip(batch, chosen, strict=True))
        ]
        # Here the host waits for the device.
        counts = torch.stack([prediction.counts for prediction in predictions]).cpu()
        return [p._replace(counts=own) for p, own in zip(predictions, counts, strict=True)]

    def _together(self, items: list[_Item]) -> Iterator[list[_Item]]:
        """Give what the backbone takes at once: all on a GPU; one image on the CPU, as fast there."""
        at_once = len(items) if self.device.type == "cuda" else 1
        return (items[start : start + at_once] for start in range(0, len(items), at_once or 1))

    def _supports(
        self, keys: list[SupportKey], loaded: dict[SupportKey, Support]
    ) -> dict[SupportKey, SupportFeatures]:
        """Return the features of supports, from the cache or from their images."""
        kept = {key: self.cache.get(key) for key in keys}
        found = {key: features for key, features in kept.items() if features is not None}
        for some in self._together([key for key in kept if key not in found]):
            # The cache may have dropped one since the loader was told that it need not be loaded.
            with errors_as(DataError):
                parts = [loaded.get(key) or self.parts.support(*key) for key in some]
            images, masks = (
                torch.stack(tensors)[:, None].to(self.device)
                for tensors in zip(*parts, strict=True)
            )
            features = split_supports(self.net.encode_support(images, masks))
            for key, (own,) in zip(some, features, strict=True):
                self.cache.put(key, own)
                found[key] = own
        return found

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
        """Return the prediction of one sample of a batch, with its counts still on the device."""
        one, query, size = slice(number, number + 1), encoded.query, self.episodes.transform.size
        if encoded.base_counts is None and self.scored_base_classes:
            base = self._fit(resize_logits(out.base_map[one], size), query)
            label = torch.from_numpy(query.base_label).to(self.device)
            encoded.base_counts = pixel_counts(base.argmax(0), label, len(base)).cpu().numpy()
        table = class_label_table(class_id, kind=query.mask.dtype)
        label = torch.from_numpy(table).to(self.device)[encoded.mask.long()]
        meta = self._fit(out.meta[one], query)
        final = self._fit(out.final[one], query) if self.ensemble else meta
        foreground = [logits[1] > logits[0] for logits in (final, meta)]
        prior = resize_logits(out.prior[one], size) if self.prior else None
        return Prediction(
            position,
            torch.stack([pixel_counts(mask, label, 2) for mask in foreground]),
            encoded.base_counts,
            foreground[0],
            label,
            query.classes,
            None if prior is None else self._fit(prior, query),
            [_filled(maps[number], query.fitted, size) for maps in out.correlations],
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


def _filled(values: Tensor, fitted: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return the part of a map (h, w) over the whole canvas that belongs to the image."""
    height, width = (
        max(1, round(cells * part / whole))
        for cells, part, whole in zip(values.shape, fitted, size, strict=True)
    )
    return values[:height, :width]
