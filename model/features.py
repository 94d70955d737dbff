"""Features that a query alone or a support alone determines, computed once and used in any episode.

The batch comes first in every tensor, so features of single samples can be kept apart (`split_*`)
and put together to other episodes (`stack_*`). Stages are those of the hierarchy, finest first.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from model.masked import cat_rows
from model.parts import Tokens

AnyFeatures = TypeVar("AnyFeatures")


class QueryFeatures(NamedTuple):
    """Features of B query images.

    Attributes:
        merged: (B, 64, h, w), the image's own share of what enters the hierarchy, before the ReLU.
        base: (B, N+1, h, w), logits of the base learner; N is 0 where there is none.
        gram: (B, C, C), cosines between the channels of the low-level feature.
        f5: (B, h·w, 512), for the prior; f3 without a base learner.
        f4: (B, h·w, C), for the prior.
    """

    merged: Tensor
    base: Tensor
    gram: Tensor
    f5: Tensor
    f4: Tensor


class SupportFeatures(NamedTuple):
    """Features of K support images with their masks for each of B episodes.

    Only positions inside the masks are kept, see `model.masked`.

    Attributes:
        prototype: (B, K, 256), the mean feature over the mask.
        gram: (B, K, C, C), cosines between the channels of the low-level feature.
        f5: (B, K, m, 512), of unit length; rows of zeros pad.
        f4: (B, K, m, C), of unit length; rows of zeros pad.
        count: (B, K, stages), positions inside the mask on the grid of each stage; f5 and f4 are on the
            finest.
        stages: tokens of each stage, for its matching module.
    """

    prototype: Tensor
    gram: Tensor
    f5: Tensor
    f4: Tensor
    count: Tensor  # type: ignore[assignment]  # hides the method of tuples
    stages: tuple[Tokens, ...]


def map_tensors(features: AnyFeatures, function: Callable[[Tensor], Tensor]) -> AnyFeatures:
    """Return the features with a function applied to every tensor.

    Args:
        features: tensors in named and other tuples, one in another.
        function: for instance `lambda tensor: tensor.cpu()`.
    """

    def apply(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        values = map(apply, value)
        return type(value)(*values) if hasattr(value, "_fields") else tuple(values)

    return apply(features)


def feature_bytes(features: QueryFeatures | SupportFeatures) -> int:
    """Return the memory of all tensors in bytes."""
    sizes: list[int] = []

    def measure(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    map_tensors(features, measure)
    return sum(sizes)


def split_queries(features: QueryFeatures) -> list[QueryFeatures]:
    """Return each sample as a batch of one, in memory of its own."""
    if len(features.f4) == 1:
        return [features]
    samples = zip(*(tensor.split(1) for tensor in features), strict=True)
    return [QueryFeatures(*(tensor.clone() for tensor in sample)) for sample in samples]


def stack_queries(samples: Sequence[QueryFeatures]) -> QueryFeatures:
    """Return several batches as one."""
    if len(samples) == 1:
        return samples[0]
    return QueryFeatures(*(torch.cat(tensors) for tensors in zip(*samples, strict=True)))


def split_supports(features: SupportFeatures) -> list[list[SupportFeatures]]:
    """Return each support of each episode as a batch of one with one support, in memory of its own.

    Rows that only pad to the longest mask of the batch are dropped.
    """
    # Here the host waits for the device, once for all supports.
    counts = features.count.tolist()
    return [
        [_support(features, b, k, count) for k, count in enumerate(row)]
        for b, row in enumerate(counts)
    ]


def stack_supports(episodes: Sequence[Sequence[SupportFeatures]]) -> SupportFeatures:
    """Return one batch of several episodes.

    Args:
        episodes: each a list of as many supports. All images have one size.
    """
    return _stack([_stack(supports, 1) for supports in episodes], 0)


def _support(features: SupportFeatures, b: int, k: int, count: list[float]) -> SupportFeatures:
    """Return one support without the rows that pad, but for the one that represents the outside."""
    sample = map_tensors(features, lambda tensor: tensor[b : b + 1, k : k + 1])
    rows = [int(inside) + 1 for inside in count]
    trimmed = sample._replace(
        f5=sample.f5[:, :, : rows[0]],
        f4=sample.f4[:, :, : rows[0]],
        stages=tuple(tokens.trimmed(n) for tokens, n in zip(sample.stages, rows, strict=True)),
    )
    return map_tensors(trimmed, torch.clone)


def _stack(samples: Sequence[SupportFeatures], dim: int) -> SupportFeatures:
    """Put episodes (dim 0), or supports of an episode (dim 1), together."""
    if len(samples) == 1:
        return samples[0]
    prototype, gram, f5, f4, count, stages = zip(*samples, strict=True)
    return SupportFeatures(
        torch.cat(prototype, dim),
        torch.cat(gram, dim),
        cat_rows(f5, dim),
        cat_rows(f4, dim),
        torch.cat(count, dim),
        tuple(type(tokens[0]).stack(tokens, dim) for tokens in zip(*stages, strict=True)),
    )
