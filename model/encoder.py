"""Encoding of single images: the part of HDMNet that no query shares with its supports.

What depends on one image alone, with the mask where it is a support, serves in any episode. Numbers in
brackets are those of the equations in docs/method.md.
"""

from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.backbone import BackboneFeatures
from model.ensemble import channel_gram
from model.features import QueryFeatures, SupportFeatures, map_tensors, stack_queries
from model.frozen import FrozenBase
from model.hierarchy import Hierarchy, to_map, to_tokens
from model.masked import MaskedPositions, MaskGrids
from model.norms import statistics_kept
from model.parts import Matching, MatchingFactory
from model.precision import full_precision, widened
from model.prior import masked_prototype, product_type, unit_rows
from model.pspnet import PSPNet


class _SupportPart(NamedTuple):
    """Features of N supports that depend on the backbone alone.

    Attributes:
        reduced: (N, 256, h, w), after `reduce_support`.
        gram, f5, f4: (N, ...), see `SupportFeatures`.
    """

    reduced: Tensor
    gram: Tensor
    f5: Tensor
    f4: Tensor


class EncodedSupports(NamedTuple):
    """Supports before the hierarchy.

    Attributes:
        features: the features of (B, K) supports, without their stages.
        merged: (B·K, 64, h, w), which enters the hierarchy.
        positions: those inside the masks, on the grid of each stage.
    """

    features: SupportFeatures
    merged: Tensor
    positions: list[MaskedPositions]


class FeatureEncoder(nn.Module):
    """The frozen base learner, the reductions, the hierarchy and the matching modules of HDMNet.

    Args:
        base: the base learner; it is frozen here.
        low_fea, backbone_dtype, checkpoint_activations, matching: see `HDMNet`.
    """

    reduced, channels = 256, 64

    def __init__(
        self,
        base: PSPNet,
        low_fea: str,
        backbone_dtype: torch.dtype | None,
        checkpoint_activations: bool,
        matching: MatchingFactory,
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
        self.matching = nn.ModuleList(
            cast(nn.Module, matching(self.channels)) for _ in self.hierarchy.stages
        )

    def encode_query(self, images: Tensor) -> QueryFeatures:
        """Return the features of query images.

        Args:
            images: normalised (B, 3, H, W).
        """
        nothing = images.new_zeros(0, 1, *images.shape[1:])
        return self._encode(images, nothing, nothing[:, :, 0])[0]

    def encode_support(self, images: Tensor, masks: Tensor) -> SupportFeatures:
        """Return the features of supports.

        Args:
            images: normalised (B, K, 3, H, W), with any K.
            masks: (B, K, H, W): 1 class, 0 other, 255 ignore.

        Raises:
            ValueError: the shapes do not fit together.
        """
        check_support(images, masks)
        supports = self._encode(images[:0, 0], images, masks)[1]
        return self._with_stages(
            supports, self._maybe_checkpointed(self.hierarchy, supports.merged)
        )

    def mask_lengths(self, masks: Tensor) -> tuple[int, ...]:
        """Return lengths for `model.masked.fixed_lengths`, the same share of each grid, in eighths.

        Args:
            masks: those of the supports, (B, K, H, W), on the host.
        """
        height, width = masks.shape[-2:]
        grids = self.hierarchy.grids(self.base.backbone.grid((height, width)))
        lengths = MaskGrids((masks == 1).float().flatten(0, 1), grids).lengths()
        whole = [height * width for height, width in grids]
        share = max(-(-8 * length // n) for length, n in zip(lengths, whole, strict=True))
        return tuple(-(-share * n // 8) for n in whole)

    def _encode(self, query: Tensor, support: Tensor, masks: Tensor) -> tuple[Any, Any]:
        """Return `QueryFeatures` and `EncodedSupports`, None where there are no such images.

        All images pass the backbone together.
        """
        mask = (masks == 1).to(query.dtype)  # (B, K, H, W)
        masked = (support * mask[:, :, None]).flatten(0, 1)  # (1)
        grids = None
        if len(masked):
            height, width = mask.shape[-2:]
            size = self.base.backbone.grid((height, width))
            grids = MaskGrids(mask.flatten(0, 1), self.hierarchy.grids(size))
        # Supports come first, since less memory is kept of a support than of a query.
        left = len(masked)
        queries, supports = [], []
        for features in self.frozen.features(torch.cat([masked, query])):
            count = len(features.f4)
            if grids is not None and left:
                start = len(masked) - left
                positions = grids.positions[0].only(slice(start, start + count))
                supports.append(self._support_part(_first(features, left), positions))
            if count > left:
                queries.append(self._query_part(_after(features, left)))
            left = max(0, left - count)
            del features
        return (
            stack_queries(queries) if queries else None,
            self._encoded_supports(supports, mask, grids.positions) if grids is not None else None,
        )

    def _query_part(self, features: BackboneFeatures) -> QueryFeatures:
        """Return the features of queries that passed the backbone."""
        height, width = features.f4.shape[-2:]
        own, _, _ = self._merge_weights(self.merge_query)
        merged = F.conv2d(_reduced(self.reduce_query, features), own)
        with torch.no_grad():
            if self.base.base_classes:
                f5 = self.frozen.head(features.f4)
                base = self.frozen.logits(to_map(f5, (height, width)))
            else:
                f5, base = to_tokens(features.f3), merged.new_zeros(len(merged), 1, height, width)
            return QueryFeatures(
                merged,
                base,
                self._gram(features),
                f5.to(product_type(features.f4)),
                to_tokens(features.f4),
            )

    def _support_part(self, features: BackboneFeatures, positions: MaskedPositions) -> _SupportPart:
        """Return what is kept of masked supports that passed the backbone."""
        reduced = _reduced(self.reduce_support, features)
        with torch.no_grad():
            if self.base.base_classes:
                f5 = self.frozen.head_at(features.f4, positions.index)
            else:
                f5 = positions.gather(to_tokens(features.f3))
            f5, f4 = (
                unit_rows(rows).mul_(positions.inside[..., None]).to(product_type(features.f4))
                for rows in (f5, positions.gather(to_tokens(features.f4)))
            )
        return _SupportPart(reduced, self._gram(features), f5, f4)

    @torch.no_grad()
    def _gram(self, features: BackboneFeatures) -> Tensor:
        """Return the cosines between the channels of the low-level feature."""
        names = {"layer2": "f2", "layer3": "f3", "layer4": "f4"}
        low = widened(getattr(features, names[self.low_fea]))
        with full_precision(low.device):
            return channel_gram(low)

    def _encoded_supports(
        self, parts: list[_SupportPart], mask: Tensor, positions: list[MaskedPositions]
    ) -> EncodedSupports:
        """Return all supports, whose masks are (B, K, H, W)."""
        reduced, gram, f5, f4 = (_joined(tensors) for tensors in zip(*parts, strict=True))
        own, of_prototype, _ = self._merge_weights(self.merge_support)
        prototype = masked_prototype(reduced, mask.flatten(0, 1)[:, None])  # (3): (N, 256, 1, 1)
        merged = F.relu(F.conv2d(reduced, own) + F.conv2d(prototype, of_prototype))  # (5)
        count = torch.stack([on_grid.count for on_grid in positions], dim=-1)
        features = SupportFeatures(prototype.flatten(1), gram, f5, f4, count, ())
        return EncodedSupports(_unflattened(features, mask), merged, positions)

    def _with_stages(self, supports: EncodedSupports, maps: list[Tensor]) -> SupportFeatures:
        """Return the features of supports, whose maps left the hierarchy, with their stages."""
        stages = tuple(
            cast(Matching, layer).encode_support(features, positions)
            for layer, features, positions in zip(
                self.matching, maps, supports.positions, strict=True
            )
        )
        return supports.features._replace(stages=_unflattened(stages, supports.features.count))

    def _merge_weights(self, merge: nn.Sequential) -> tuple[Tensor, Tensor, Tensor]:
        """Return the parts of a merging convolution for the feature, the prototype, and the rest.

        See docs/fast_path.md, "Merging convolutions".
        """
        weight = _weight(merge)
        rest = weight.shape[1] - 2 * self.reduced
        own, of_prototype, of_rest = weight.split([self.reduced, self.reduced, rest], dim=1)
        return own, of_prototype, of_rest

    def _maybe_checkpointed(self, module: nn.Module, *inputs: Any) -> Any:
        """Return the module's output; with `checkpoint_activations`, keep no activations for it."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(
                module,
                *inputs,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), statistics_kept(module)),
            )
        return module(*inputs)


def check_support(support: Tensor, mask: Tensor) -> None:
    """Check that supports (B, K, 3, H, W) have masks (B, K, H, W).

    Raises:
        ValueError: the shapes do not fit together.
    """
    if support.dim() != 5 or mask.shape != support.shape[:2] + support.shape[3:]:
        raise ValueError(
            "expected support (B, K, 3, H, W) and its masks (B, K, H, W), "
            f"got {tuple(support.shape)} and {tuple(mask.shape)}"
        )


def _reduced(reduce: nn.Sequential, features: BackboneFeatures) -> Tensor:
    """Return (2), the reduction of [f3, f2], each convolved with its part of the weight."""
    weights = _weight(reduce).split([features.f3.shape[1], features.f2.shape[1]], dim=1)
    mixed = torch.is_autocast_enabled(weights[0].device.type)
    f3, f2 = (
        F.conv2d(feature if mixed else feature.to(weight.dtype), weight)
        for feature, weight in zip((features.f3, features.f2), weights, strict=True)
    )
    return reduce[1:](f3 + f2)


def _weight(reduction: nn.Sequential) -> Tensor:
    return cast(nn.Conv2d, reduction[0]).weight


def _first(features: BackboneFeatures, count: int) -> BackboneFeatures:
    return BackboneFeatures(*(feature[:count] for feature in features))


def _after(features: BackboneFeatures, count: int) -> BackboneFeatures:
    return BackboneFeatures(*(feature[count:] for feature in features))


def _unflattened(features: Any, like: Tensor) -> Any:
    """Return features whose first dimension, B·K, becomes the two first of `like`."""
    return map_tensors(features, lambda tensor: tensor.unflatten(0, like.shape[:2]))


def _joined(tensors: tuple[Tensor, ...]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _reduction(inputs: int, outputs: int, *after: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.ReLU(inplace=True), *after)
