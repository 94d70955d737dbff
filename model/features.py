"""What the query alone and what a support alone determine: computed once, used in any episode.

The batch comes first in every tensor, so features of single samples can be kept apart (`split_*`)
and put together to other episodes (`stack_*`). Stages are those of the hierarchy, finest first.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from model.matching import SupportTokens


class QueryFeatures(NamedTuple):
    """Of query images.

    merged: (B, 64, h, w), the image's own share of what enters the hierarchy, before ReLU.
    base: (B, N+1, h, w), logits of the base learner.
    gram: (B, C, C), cosines between the channels of the low-level feature.
    f5, f4: (B, h·w, C), for the prior.
    """

    merged: Tensor
    base: Tensor
    gram: Tensor
    f5: Tensor
    f4: Tensor


class SupportFeatures(NamedTuple):
    """Of support images with their masks; of the positions only those inside the masks are kept.

    prototype: (B, K, 256), the mean feature over the mask.
    gram: (B, K, C, C), as of the query.
    f5, f4: (B, K, m, C), of unit length; see `model.masked` for the rows of zeros.
    stages: keys and values for the matching, (B, K, ...).
    """

    prototype: Tensor
    gram: Tensor
    f5: Tensor
    f4: Tensor
    stages: tuple[SupportTokens, ...]


Features = TypeVar("Features", QueryFeatures, SupportFeatures)


def map_tensors(features: Features, function: Callable[[Tensor], Tensor]) -> Features:
    """The same features with a function applied to every tensor, `lambda t: t.cpu()` for instance."""
    return _map(function, features)


def feature_bytes(features: QueryFeatures | SupportFeatures) -> int:
    """Memory of all tensors in bytes."""
    sizes = []
    _map(lambda tensor: sizes.append(tensor.nbytes), features)
    return sum(sizes)


def split_queries(features: QueryFeatures) -> list[QueryFeatures]:
    """Each sample as a batch of one, in memory of its own."""
    return [
        map_tensors(features, lambda tensor, b=b: tensor[b : b + 1].clone())
        for b in range(len(features.base))
    ]


def stack_queries(samples: Sequence[QueryFeatures]) -> QueryFeatures:
    """One batch of several."""
    return samples[0] if len(samples) == 1 else _map(lambda *tensors: torch.cat(tensors), *samples)


def split_supports(features: SupportFeatures) -> list[list[SupportFeatures]]:
    """Each support of each episode as a batch of one with one support, in memory of its own.

    Rows that only pad to the longest mask of the batch are dropped.
    """
    batch, shot = features.prototype.shape[:2]
    return [
        [
            _cut(map_tensors(features, lambda tensor, b=b, k=k: tensor[b : b + 1, k : k + 1]))
            for k in range(shot)
        ]
        for b in range(batch)
    ]


def stack_supports(episodes: Sequence[Sequence[SupportFeatures]]) -> SupportFeatures:
    """One batch of several episodes, each a list of as many supports, all of the same image size."""
    return _map(
        lambda *tensors: _cat(tensors, 0),
        *(_map(lambda *tensors: _cat(tensors, 1), *supports) for supports in episodes),
    )


def _map(function, *nested):
    """Apply to the tensors at the same place in nested tuples."""
    first = nested[0]
    if isinstance(first, Tensor):
        return function(*nested)
    values = [_map(function, *parts) for parts in zip(*nested, strict=True)]
    return type(first)(*values) if hasattr(first, "_fields") else tuple(values)


def _cat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate, bringing the rows, (B, K, rows, C), to the longest by rows of zeros."""
    if len(tensors) == 1:
        return tensors[0]
    if tensors[0].dim() == 4:
        rows = max(tensor.shape[2] for tensor in tensors)
        tensors = [F.pad(tensor, (0, 0, 0, rows - tensor.shape[2])) for tensor in tensors]
    return torch.cat(tensors, dim)


def _cut(sample: SupportFeatures) -> SupportFeatures:
    """One support without the rows that pad, but for the one that stands for what is outside."""
    rows = [int(stage.count) + 1 for stage in sample.stages]
    stages = tuple(
        stage._replace(keys=stage.keys[:, :, :n], values=stage.values[:, :, :n])
        for stage, n in zip(sample.stages, rows, strict=True)
    )
    f5, f4 = (feature[:, :, : rows[0]] for feature in (sample.f5, sample.f4))
    return map_tensors(sample._replace(f5=f5, f4=f4, stages=stages), torch.clone)
