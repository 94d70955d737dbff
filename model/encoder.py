"""What depends on one image alone, a query or a support with its mask: computed once for any episode."""

from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.backbone import Features
from model.ensemble import channel_gram
from model.features import QueryFeatures, SupportFeatures, map_tensors, stack_queries
from model.frozen import FrozenBase
from model.hierarchy import Hierarchy, to_map, to_tokens
from model.masked import MaskedPositions, MaskGrids
from model.matching import MatchingLayer
from model.norms import statistics_kept
from model.precision import full_precision, widened
from model.prior import masked_prototype, unit_rows
from model.pspnet import PSPNet


class _SupportPart(NamedTuple):
    """What is kept of supports that passed the backbone.

    reduced: (N, 256, h, w).
    gram, f5, f4: (N, ...), see `SupportFeatures`.
    """

    reduced: Tensor
    gram: Tensor
    f5: Tensor
    f4: Tensor


class FeatureEncoder(nn.Module):
    """The frozen base learner, the reductions and the hierarchy: the part of HDMNet before any episode.

    Args:
        base: the base learner; it is frozen here.
        low_fea, backbone_dtype, checkpoint_activations: see `HDMNet`.
    """

    reduced, channels = 256, 64

    def __init__(
        self,
        base: PSPNet,
        low_fea: str,
        backbone_dtype: torch.dtype | None,
        checkpoint_activations: bool,
    ):
        super().__init__()
        if low_fea not in ("layer2", "layer3", "layer4"):
            raise ValueError(f"low_fea {low_fea!r} is none of layer2, layer3, layer4")
        self.low_fea = low_fea
        self.checkpoint_activations = checkpoint_activations
        self.base = base.requires_grad_(False)
        self.frozen = FrozenBase(base, backbone_dtype)
        middle = sum(base.backbone.channels[:2])
        self.reduce_query = _reduction(middle, self.reduced, nn.Dropout2d(0.5))
        self.reduce_support = _reduction(middle, self.reduced, nn.Dropout2d(0.5))
        self.merge_query = _reduction(2 * self.reduced + 2, self.channels)
        self.merge_support = _reduction(2 * self.reduced, self.channels)
        self.hierarchy = Hierarchy(self.channels)
        self.matching = nn.ModuleList(MatchingLayer(self.channels) for _ in self.hierarchy.stages)

    def encode_query(self, images: Tensor) -> QueryFeatures:
        """What segmenting images needs of them alone.

        Args:
            images: normalised (B, 3, H, W).
        """
        nothing = images.new_zeros(0, 1, *images.shape[1:])
        return self._encode(images, nothing, nothing[:, :, 0])[0]

    def encode_support(self, images: Tensor, masks: Tensor) -> SupportFeatures:
        """What segmenting by supports needs of them alone; any number of supports will do.

        Args:
            images: normalised (B, K, 3, H, W).
            masks: (B, K, H, W): 1 class, 0 other, 255 ignore.

        Raises:
            ValueError: the shapes do not fit together.
        """
        check_support(images, masks)
        return self._encode(images[:0, 0], images, masks)[1]

    def _encode(
        self, query: Tensor, support: Tensor, masks: Tensor
    ) -> tuple[QueryFeatures | None, SupportFeatures | None]:
        """Features of queries and supports, of which there may be none; they share one backbone pass."""
        mask = (masks == 1).to(query.dtype)  # (B, K, H, W)
        masked = (support * mask[:, :, None]).flatten(0, 1)
        grids = None
        if len(masked):
            size = self.base.backbone.grid(mask.shape[-2:])
            grids = MaskGrids(mask.flatten(0, 1), self.hierarchy.grids(size))
        # Supports first: of the positions, what is kept of them is a part.
        left = len(masked)
        queries, supports = [], []
        for features in self.frozen.features(torch.cat([masked, query])):
            count = len(features.f4)
            if left:
                start = len(masked) - left
                positions = grids.positions[0].only(slice(start, start + count))
                supports.append(self._support_part(_first(features, left), positions))
            if count > left:
                queries.append(self._query_part(_after(features, left)))
            left = max(0, left - count)
            del features
        return (
            stack_queries(queries) if queries else None,
            self._support_features(supports, mask, grids.positions) if supports else None,
        )

    def _query_part(self, features: Features) -> QueryFeatures:
        """Of queries that passed the backbone."""
        own, _, _ = self._merge_weights(self.merge_query)
        merged = F.conv2d(_reduced(self.reduce_query, features), own)
        with torch.no_grad():
            f5 = self.frozen.head(features.f4)
            return QueryFeatures(
                merged,
                self.frozen.logits(to_map(f5, merged.shape[-2:])),
                self._gram(features),
                f5,
                to_tokens(features.f4),
            )

    def _support_part(self, features: Features, positions: MaskedPositions) -> _SupportPart:
        """Of masked supports that passed the backbone."""
        reduced = _reduced(self.reduce_support, features)
        with torch.no_grad():
            f5 = self.frozen.head_at(features.f4, positions.index)
            f5, f4 = (
                unit_rows(rows).mul_(positions.inside[..., None])
                for rows in (f5, positions.gather(to_tokens(features.f4)))
            )
        return _SupportPart(reduced, self._gram(features), f5, f4)

    @torch.no_grad()
    def _gram(self, features: Features) -> Tensor:
        names = {"layer2": "f2", "layer3": "f3", "layer4": "f4"}
        low = widened(getattr(features, names[self.low_fea]))
        with full_precision(low.device):
            return channel_gram(low)

    def _support_features(
        self, parts: list[_SupportPart], mask: Tensor, positions: list[MaskedPositions]
    ) -> SupportFeatures:
        """Of all supports together; mask (B, K, H, W)."""
        reduced, gram, f5, f4 = (_joined(tensors) for tensors in zip(*parts, strict=True))
        own, of_prototype, _ = self._merge_weights(self.merge_support)
        prototype = masked_prototype(reduced, mask.flatten(0, 1)[:, None])  # (N, 256, 1, 1)
        merged = F.relu(F.conv2d(reduced, own) + F.conv2d(prototype, of_prototype))
        stages = tuple(
            layer.encode_support(*arguments)
            for layer, *arguments in zip(
                self.matching, self._kept_or_not(self.hierarchy, merged), positions, strict=True
            )
        )
        features = SupportFeatures(prototype.flatten(1), gram, f5, f4, stages)
        return map_tensors(features, lambda tensor: tensor.unflatten(0, mask.shape[:2]))

    def _merge_weights(self, merge: nn.Sequential) -> tuple[Tensor, Tensor, Tensor]:
        """The parts of a merging convolution for the feature, the prototype, and what follows.

        Convolutions are linear: each part is applied where what it reads is known, and no input is
        spread over the grid to be concatenated.
        """
        weight = merge[0].weight
        rest = weight.shape[1] - 2 * self.reduced
        return weight.split([self.reduced, self.reduced, rest], dim=1)

    def _kept_or_not(self, module: nn.Module, *inputs):
        """What a module makes of its inputs; see `checkpoint_activations`."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(
                module,
                *inputs,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), statistics_kept(module)),
            )
        return module(*inputs)


def check_support(support: Tensor, mask: Tensor) -> None:
    """Raise ValueError unless supports (B, K, 3, H, W) have masks (B, K, H, W)."""
    if support.dim() != 5 or mask.shape != support.shape[:2] + support.shape[3:]:
        raise ValueError(
            "expected support (B, K, 3, H, W) and its masks (B, K, H, W), "
            f"got {tuple(support.shape)} and {tuple(mask.shape)}"
        )


def _reduced(reduce: nn.Sequential, features: Features) -> Tensor:
    """What a reduction makes of [f3, f2]; its convolution is linear, so the two stay apart."""
    weights = reduce[0].weight.split([features.f3.shape[1], features.f2.shape[1]], dim=1)
    mixed = torch.is_autocast_enabled(weights[0].device.type)
    f3, f2 = (
        F.conv2d(feature if mixed else feature.to(weight.dtype), weight)
        for feature, weight in zip((features.f3, features.f2), weights, strict=True)
    )
    return reduce[1:](f3 + f2)


def _first(features: Features, count: int) -> Features:
    return Features(*(feature[:count] for feature in features))


def _after(features: Features, count: int) -> Features:
    return Features(*(feature[count:] for feature in features))


def _joined(tensors: tuple[Tensor, ...]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _reduction(inputs: int, outputs: int, *after: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.ReLU(inplace=True), *after)
