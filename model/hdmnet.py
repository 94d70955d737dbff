"""HDMNet: hierarchical matching on frozen features (paper, figure 2)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.decoder import Decoder
from model.ensemble import Ensemble, style_distance
from model.hierarchy import Hierarchy
from model.matching import MatchingLayer
from model.mm import resize
from model.prior import masked_prototype, similarity_prior
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


class FrozenFeatures(NamedTuple):
    """Features of the frozen base learner: `middle` = [f3, f2], `low` for the style distance."""

    middle: Tensor
    low: Tensor
    f4: Tensor
    f5: Tensor


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
    ):
        super().__init__()
        if low_fea not in ("layer2", "layer3", "layer4"):
            raise ValueError(f"low_fea {low_fea!r} is none of layer2, layer3, layer4")
        self.low_fea = low_fea
        self.fix_bn = fix_bn
        self.match_scale = (trained_shot or shot) / shot
        self.base = base.requires_grad_(False)
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

    @torch.no_grad()
    def frozen_features(self, images: Tensor) -> FrozenFeatures:
        """Features of images (B, 3, H, W), all on the grid of f3."""
        features, f5 = self.base.features(images)
        f2, f3, f4 = features
        if f2.shape[-2:] != f3.shape[-2:]:
            f2 = resize(f2, size=f3.shape[-2:], mode="bilinear", align_corners=True)
        low = {"layer2": f2, "layer3": f3, "layer4": f4}[self.low_fea]
        return FrozenFeatures(*(f.float() for f in (torch.cat([f3, f2], dim=1), low, f4, f5)))

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
            class_index: (B,), training only: rank of the episode's class among the base classes.

        Raises:
            ValueError: the shapes do not fit together.
        """
        self._check(query, support, support_mask)
        batch, shot = support.shape[:2]
        mask = (support_mask == 1).to(query.dtype)  # (B, K, H, W)
        images = torch.cat([query, (support * mask[:, :, None]).flatten(0, 1)])
        frozen = self.frozen_features(images)
        query_frozen = FrozenFeatures(*(f[:batch] for f in frozen))
        support_frozen = FrozenFeatures(*(f[batch:].unflatten(0, (batch, shot)) for f in frozen))

        with torch.no_grad(), _float32(query.device):
            base = self.base.classifier(query_frozen.f5)
            distances = style_distance(query_frozen.low, support_frozen.low)
            prior = torch.cat(
                [
                    similarity_prior(query_frozen.f5, support_frozen.f5, mask),
                    similarity_prior(query_frozen.f4, support_frozen.f4, mask),
                ],
                dim=1,
            )  # (B, 2, h, w)

        query_map, support_map = self._merged(query_frozen, support_frozen, mask, prior)
        query_maps = self.hierarchy(query_map)
        support_maps = self.hierarchy(support_map)  # (B·K, C, h_i, w_i)
        meta, correlations = self._match(query_maps, support_maps, mask, prior)
        adjustment = self.ensemble.adjustment(distances)
        with _float32(query.device):
            meta = meta.float()
            final = self.ensemble(meta, base, adjustment, class_index)

        size = query.shape[-2:]
        return HDMNetOutput(
            *(
                resize(logits, size=size, mode="bilinear", align_corners=True)
                for logits in (final, meta, base)
            ),
            correlations,
            adjustment,
            prior,
        )

    def _merged(
        self, query: FrozenFeatures, support: FrozenFeatures, mask: Tensor, prior: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Query and supports, each beside its prototype: (B, 64, h, w) and (B·K, 64, h, w)."""
        query_feature = self.reduce_query(query.middle)
        support_feature = self.reduce_support(support.middle.flatten(0, 1))
        prototype = masked_prototype(support_feature, mask.flatten(0, 1)[:, None])
        mean_prototype = prototype.unflatten(0, mask.shape[:2]).mean(1)
        query_map = torch.cat(
            [query_feature, mean_prototype.expand_as(query_feature), prior * 10], dim=1
        )
        support_map = torch.cat([support_feature, prototype.expand_as(support_feature)], dim=1)
        return self.merge_query(query_map), self.merge_support(support_map)

    def _match(
        self, query_maps: list[Tensor], support_maps: list[Tensor], mask: Tensor, prior: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Meta logits (B, 2, h, w) and correlation maps, coarsest first."""
        matched, correlations = [], []
        for layer, query, support in zip(self.matching, query_maps, support_maps, strict=True):
            size = query.shape[-2:]
            fused, correlation = layer(
                query,
                support.unflatten(0, mask.shape[:2]),
                F.interpolate(mask, size=size, mode="nearest"),
                resize(prior, size=size, mode="bilinear", align_corners=True),
                self.match_scale,
            )
            matched.append(fused)
            correlations.append(correlation)
        return self.decoder(matched), correlations[::-1]

    def _check(self, query: Tensor, support: Tensor, support_mask: Tensor) -> None:
        batch, shot, _, height, width = support.shape if support.dim() == 5 else (0,) * 5
        if query.shape != (batch, 3, height, width) or support_mask.shape != (
            batch,
            shot,
            height,
            width,
        ):
            raise ValueError(
                "expected query (B, 3, H, W), support (B, K, 3, H, W), support_mask (B, K, H, W), "
                f"got {tuple(query.shape)}, {tuple(support.shape)}, {tuple(support_mask.shape)}"
            )
        if shot != self.ensemble.shot:
            raise ValueError(f"the model is built for {self.ensemble.shot} supports, got {shot}")


def _float32(device: torch.device) -> torch.autocast:
    """Where mixed precision is left: products of unnormalised features overflow float16."""
    return torch.autocast(device.type, enabled=False)


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
    )
