"""HDMNet: hierarchical matching on frozen features (paper, figure 2)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.backbone import Features
from model.decoder import Decoder
from model.ensemble import Ensemble, channel_gram, style_distance
from model.features import QueryFeatures, SupportFeatures, map_tensors, stack_queries
from model.frozen import FrozenBase
from model.hierarchy import Hierarchy, to_map, to_tokens
from model.masked import MaskedPositions, MaskGrids
from model.matching import MatchingLayer
from model.mm import resize
from model.precision import full_precision, widened
from model.prior import masked_prototype, similarity_prior, unit_rows
from model.pspnet import PSPNet, build_pspnet


class HDMNetOutput(NamedTuple):
    """What one forward pass gives.

    final: (B, 2, H, W), the ensemble of meta and base learner; its argmax is the prediction.
    meta: (B, 2, H, W), logits of the meta learner.
    base: (B, N+1, H, W), logits of the base learner on the query.
    correlations: maps (B, h_i, w_i), coarsest first.
    adjustment: (B,), style distance between query and supports.
    prior: (B, 2, h, w), similarity prior of f5 and of f4.
    """

    final: Tensor
    meta: Tensor
    base: Tensor
    correlations: list[Tensor]
    adjustment: Tensor
    prior: Tensor


class _SupportPart(NamedTuple):
    """What is kept of supports that passed the backbone.

    reduced: (N, 256, h, w).
    gram, f5, f4: (N, ...), see `SupportFeatures`.
    """

    reduced: Tensor
    gram: Tensor
    f5: Tensor
    f4: Tensor


class HDMNet(nn.Module):
    """Few-shot segmentation of a query image from K supports with masks.

    Args:
        base: the base learner; it is frozen here.
        shot: number K of supports that the net is built for.
        kshot_trans_dim: see `Ensemble`.
        low_fea: the features whose style is compared: "layer2", "layer3" or "layer4".
        kshot_order: see `Ensemble`.
        trained_shot: number of supports that the weights were trained with, where it is another one.
            What matching gathers is a sum over supports; it is brought to the scale of training. The
            weights of the supports belong to the shot of training; here all weigh alike.
        fix_bn: keep the batch norms of matching and decoder in eval mode while training, as the
            published model does; they then are a learned scale and shift per channel.
        backbone_dtype: type that the frozen backbone is computed in; None for that of the rest.
        checkpoint_activations: in training, compute hierarchy and matching again in the backward pass
            instead of keeping what they computed.
    """

    reduced, channels = 256, 64

    def __init__(
        self,
        base: PSPNet,
        shot: int = 1,
        kshot_trans_dim: int = 2,
        low_fea: str = "layer2",
        kshot_order: str = "sorted",
        fix_bn: bool = True,
        trained_shot: int | None = None,
        backbone_dtype: torch.dtype | None = None,
        checkpoint_activations: bool = False,
    ):
        super().__init__()
        if low_fea not in ("layer2", "layer3", "layer4"):
            raise ValueError(f"low_fea {low_fea!r} is none of layer2, layer3, layer4")
        self.low_fea = low_fea
        self.fix_bn = fix_bn
        self.checkpoint_activations = checkpoint_activations
        self.match_scale = (trained_shot or shot) / shot
        self.base = base.requires_grad_(False)
        self.frozen = FrozenBase(base, backbone_dtype)
        middle = sum(base.backbone.channels[:2])
        self.reduce_query = _reduction(middle, self.reduced, nn.Dropout2d(0.5))
        self.reduce_support = _reduction(middle, self.reduced, nn.Dropout2d(0.5))
        self.merge_query = _reduction(2 * self.reduced + 2, self.channels)
        self.merge_support = _reduction(2 * self.reduced, self.channels)
        self.hierarchy = Hierarchy(self.channels)
        self.matching = nn.ModuleList(MatchingLayer(self.channels) for _ in self.hierarchy.stages)
        self.decoder = Decoder(self.channels, len(self.matching))
        other_shot = trained_shot not in (None, shot)
        self.ensemble = Ensemble(shot, None if other_shot else kshot_trans_dim, kshot_order)
        self.train(self.training)

    def train(self, mode: bool = True) -> "HDMNet":
        """As `nn.Module.train`, with the base learner (and, by `fix_bn`, every batch norm) in eval."""
        super().train(mode)
        self.base.eval()
        if self.fix_bn:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(
        self,
        query: Tensor,
        support: Tensor,
        support_mask: Tensor,
        class_index: Tensor | None = None,
    ) -> HDMNetOutput:
        """Segment.

        Args:
            query: normalised images (B, 3, H, W).
            support: normalised images (B, K, 3, H, W).
            support_mask: (B, K, H, W): 1 class, 0 other, 255 ignore.
            class_index: (B,), rank of each episode's class among the base classes. None where the
                class is none of them: in tests, unless no class is held out.

        Raises:
            ValueError: the shapes do not fit together.
        """
        _check_support(support, support_mask)
        if query.shape != support.shape[:1] + support.shape[2:]:
            raise ValueError(
                "expected query (B, 3, H, W) of the size of support (B, K, 3, H, W), "
                f"got {tuple(query.shape)} and {tuple(support.shape)}"
            )
        self._check_shot(support.shape[1])
        return self.segment(
            *self._encode(query, support, support_mask), query.shape[-2:], class_index
        )

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
        _check_support(images, masks)
        return self._encode(images[:0, 0], images, masks)[1]

    def segment(
        self,
        query: QueryFeatures,
        support: SupportFeatures,
        size: tuple[int, int],
        class_index: Tensor | None = None,
    ) -> HDMNetOutput:
        """Segment queries by supports whose features are known.

        Args:
            query: features of B images.
            support: features of K supports for each.
            size: (H, W) of the logits.
            class_index: as of `forward`.

        Raises:
            ValueError: the model is built for another number of supports.
        """
        shot = support.prototype.shape[1]
        self._check_shot(shot)
        grid = query.base.shape[-2:]
        with torch.no_grad(), full_precision(query.base.device):
            distances = style_distance(query.gram, support.gram)
            prior = torch.stack(
                [
                    similarity_prior(query.f5, support.f5),
                    similarity_prior(query.f4, support.f4),
                ],
                dim=1,
            ).unflatten(2, grid)  # (B, 2, h, w)

        _, of_prototype, of_prior = self._merge_weights(self.merge_query)
        merged = query.merged + F.conv2d(support.prototype.mean(1)[..., None, None], of_prototype)
        query_maps = self._kept_or_not(
            self.hierarchy, F.relu(merged + F.conv2d(prior * 10, of_prior))
        )
        meta, correlations = self._match(query_maps, support, prior)
        adjustment = self.ensemble.adjustment(distances)
        with full_precision(query.base.device):
            final = self.ensemble(widened(meta), query.base, adjustment, class_index)
        logits = (
            resize(logits, size=size, mode="bilinear", align_corners=True)
            for logits in (final, widened(meta), query.base)
        )
        return HDMNetOutput(*logits, correlations, adjustment, prior)

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
                positions = grids.positions()[0].only(slice(start, start + count))
                supports.append(self._support_part(_first(features, left), positions))
            if count > left:
                queries.append(self._query_part(_after(features, left)))
            left = max(0, left - count)
            del features
        return (
            stack_queries(queries) if queries else None,
            self._support_features(supports, mask, grids.positions()) if supports else None,
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
                unit_rows(f5),
                unit_rows(to_tokens(features.f4)),
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

    def _match(
        self, query_maps: list[Tensor], support: SupportFeatures, prior: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Meta logits (B, 2, h, w) and correlation maps, coarsest first."""
        matched, correlations = [], []
        for layer, query, tokens in zip(self.matching, query_maps, support.stages, strict=True):
            resized = resize(prior, size=query.shape[-2:], mode="bilinear", align_corners=True)
            fused, correlation = self._kept_or_not(layer, query, tokens, resized, self.match_scale)
            matched.append(fused)
            correlations.append(correlation)
        return self.decoder(matched), correlations[::-1]

    def _kept_or_not(self, module: nn.Module, *inputs):
        """What a module makes of its inputs; see `checkpoint_activations`."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(module, *inputs, use_reentrant=False)
        return module(*inputs)

    def _check_shot(self, shot: int) -> None:
        if shot != self.ensemble.shot:
            raise ValueError(f"the model is built for {self.ensemble.shot} supports, got {shot}")


def _check_support(support: Tensor, mask: Tensor) -> None:
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


def build_hdmnet(
    backbone: str,
    base_classes: int,
    shot: int = 1,
    kshot_trans_dim: int = 2,
    low_fea: str = "layer2",
    kshot_order: str = "sorted",
    fix_bn: bool = True,
    trained_shot: int | None = None,
    backbone_dtype: torch.dtype | None = None,
    checkpoint_activations: bool = False,
) -> HDMNet:
    """HDMNet with random weights; arguments as of `HDMNet` and `build_pspnet`."""
    return HDMNet(
        build_pspnet(backbone, base_classes),
        shot,
        kshot_trans_dim,
        low_fea,
        kshot_order,
        fix_bn,
        trained_shot,
        backbone_dtype,
        checkpoint_activations,
    )
