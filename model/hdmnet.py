"""HDMNet: hierarchical matching on frozen features (paper, figure 2)."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.decoder import Decoder
from model.encoder import FeatureEncoder, check_support
from model.ensemble import Ensemble, style_distance
from model.features import QueryFeatures, SupportFeatures
from model.matching import MatchingLayer
from model.mm import resize
from model.norms import fix_norms
from model.parts import DecoderFactory, MatchingFactory
from model.precision import full_precision, widened
from model.prior import similarity_prior, stretched
from model.pspnet import PSPNet, build_pspnet
from model.reference import HDMNetOutput, reference_forward


class HDMNet(FeatureEncoder):
    """Few-shot segmentation of a query image from K supports with masks.

    model/reference.py states the method step by step. Numbers in brackets in the code are those of the
    equations in docs/method.md.

    Args:
        base: the base learner; it is frozen here. With 0 base classes there is none but its backbone:
            the prior is that of f3 instead of f5, and the meta learner's logits are final.
        shot: number K of supports that the net is built for.
        kshot_trans_dim: see `Ensemble`.
        low_fea: the features whose style is compared: "layer2", "layer3" or "layer4".
        kshot_order: see `Ensemble`.
        fix_bn: keep the batch norms of matching and decoder in eval mode while training, as the
            published model does; they then are a learned scale and shift per channel.
        trained_shot: number of supports that the weights were trained with, where it is another one.
            The sum over supports in the matching is then multiplied by trained_shot/shot, and all
            supports have equal weights in the ensemble, since learned ones belong to another shot.
        backbone_dtype: type that the frozen backbone is computed in; None for that of the rest.
        prior: "max", the similarity to the best match, or "minmax", the same stretched to 0..1 in each
            image, for features whose cosines lie close together.
        checkpoint_activations: in training, compute hierarchy and matching again in the backward pass
            instead of keeping their activations.
        matching: makes the matching module of each stage, see `model.parts.Matching`.
        decoder: makes the decoder, see `model.parts.DecoderFactory`.
    """

    def __init__(
        self,
        base: PSPNet,
        shot: int = 1,
        kshot_trans_dim: int | None = 2,
        low_fea: str = "layer2",
        kshot_order: str = "sorted",
        fix_bn: bool = True,
        trained_shot: int | None = None,
        backbone_dtype: torch.dtype | None = None,
        prior: str = "max",
        checkpoint_activations: bool = False,
        matching: MatchingFactory = MatchingLayer,
        decoder: DecoderFactory = Decoder,
    ):
        super().__init__(base, low_fea, backbone_dtype, checkpoint_activations, matching)
        if prior not in ("max", "minmax"):
            raise ValueError(f"prior {prior!r} is neither 'max' nor 'minmax'")
        self.fix_bn, self.prior = fix_bn, prior
        self.match_scale = (trained_shot or shot) / shot
        self.decoder = decoder(self.channels, len(self.matching))
        other_shot = trained_shot not in (None, shot)
        self.ensemble = Ensemble(shot, None if other_shot else kshot_trans_dim, kshot_order)
        self.train(self.training)

    def train(self, mode: bool = True) -> "HDMNet":
        """Set the mode, but keep the base learner and, with `fix_bn`, all batch norms in eval mode."""
        super().train(mode)
        self.base.eval()
        if self.fix_bn:
            fix_norms(self)
        return self

    def compile_parts(self) -> None:
        """Have torch.compile make faster code of most parts at their first use; the weights stay theirs.

        These are the backbone, the hierarchy, the matching modules and the decoder. What is between
        them reads lengths on the host, which cannot be compiled.
        """
        self.frozen.compile()
        for part in (self.hierarchy, *self.matching, self.decoder):
            part.compile()

    def for_shot(self, shot: int) -> "HDMNet":
        """Return this model for another number of supports; both share their weights.

        Where the numbers differ, it computes what the model would that was built for `shot` supports
        with the number of this one as `trained_shot`.
        """
        if shot == self.ensemble.shot:
            return self
        other = copy.copy(self)
        # A copy shares the table of modules too, and the ensemble has to be replaced in one of them.
        other._modules = dict(self._modules)
        other.match_scale = self.match_scale * self.ensemble.shot / shot
        other.ensemble = self.ensemble.for_shot(shot)
        return other

    def forward(
        self,
        query: Tensor,
        support: Tensor,
        support_mask: Tensor,
        class_index: Tensor | None = None,
    ) -> HDMNetOutput:
        """Segment query images by supports with masks.

        Args:
            query: normalised images (B, 3, H, W).
            support: normalised images (B, K, 3, H, W).
            support_mask: (B, K, H, W): 1 class, 0 other, 255 ignore.
            class_index: (B,), rank of each episode's class among the base classes. None where the
                class is none of them: in tests, unless no class is held out.

        Raises:
            ValueError: the shapes do not fit together.
        """
        self._check_episode(query, support, support_mask)
        height, width = query.shape[-2:]
        queries, encoded = self._encode(query, support, support_mask)
        prior, merged = self._query_input(queries, encoded.features)
        # One pass, since query and supports share the weights of the hierarchy.
        maps = self._maybe_checkpointed(self.hierarchy, torch.cat([merged, encoded.merged]))
        supports = self._with_stages(encoded, [both[len(query) :] for both in maps])
        query_maps = [both[: len(query)] for both in maps]
        return self._output(queries, supports, prior, query_maps, (height, width), class_index)

    def reference_forward(
        self,
        query: Tensor,
        support: Tensor,
        support_mask: Tensor,
        class_index: Tensor | None = None,
    ) -> HDMNetOutput:
        """Return what `forward` returns, by `model.reference`, which calls every layer as a module.

        So hooks, counters of operations and replaced layers work, at the cost of time and memory.
        `backbone_dtype` has no effect. The arguments are those of `forward`.

        Raises:
            ValueError: the shapes do not fit together.
        """
        self._check_episode(query, support, support_mask)
        return reference_forward(self, query, support, support_mask, class_index)

    def segment(
        self,
        query: QueryFeatures,
        support: SupportFeatures,
        size: tuple[int, int],
        class_index: Tensor | None = None,
    ) -> HDMNetOutput:
        """Segment query images by supports, all of which are encoded.

        Args:
            query: features of B images.
            support: features of K supports for each.
            size: (H, W) of the logits.
            class_index: see `forward`.

        Raises:
            ValueError: the model is built for another number of supports.
        """
        self._check_shot(support.prototype.shape[1])
        prior, merged = self._query_input(query, support)
        maps = self._maybe_checkpointed(self.hierarchy, merged)
        return self._output(query, support, prior, maps, size, class_index)

    def _query_input(self, query: QueryFeatures, support: SupportFeatures) -> tuple[Tensor, Tensor]:
        """Return the prior (B, 2, h, w) and what enters the hierarchy (B, 64, h, w): (4), (6)."""
        size = query.base.shape[-2:]
        with torch.no_grad(), full_precision(query.base.device):
            pairs = ((query.f5, support.f5), (query.f4, support.f4))
            prior = torch.stack([similarity_prior(*pair) for pair in pairs], dim=1)
            prior = prior.unflatten(2, tuple(size))
            if self.prior == "minmax":
                prior = stretched(prior)
        _, of_prototype, of_prior = self._merge_weights(self.merge_query)
        # `query.merged` holds the image's own part.
        merged = query.merged + F.conv2d(support.prototype.mean(1)[..., None, None], of_prototype)
        return prior, F.relu(merged + F.conv2d(prior * 10, of_prior))

    def _output(
        self,
        query: QueryFeatures,
        support: SupportFeatures,
        prior: Tensor,
        maps: list[Tensor],
        size: tuple[int, int],
        class_index: Tensor | None,
    ) -> HDMNetOutput:
        """Return the output for query maps of the hierarchy, with logits of `size`: (10)–(22)."""
        meta, correlations = self._match(maps, support, prior)
        with full_precision(query.base.device):
            with torch.no_grad():
                distances = style_distance(query.gram, support.gram)  # (19)
            adjustment = self.ensemble.adjustment(distances)  # (20)
            final = widened(meta)
            if self.base.base_classes:
                final = self.ensemble(final, query.base, adjustment, class_index)  # (21), (22)
        final, meta = (
            resize(logits, size=size, mode="bilinear", align_corners=True)
            for logits in (final, widened(meta))
        )
        return HDMNetOutput(final, meta, query.base, correlations, adjustment, prior)

    def _match(
        self, query_maps: list[Tensor], support: SupportFeatures, prior: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the meta logits (B, 2, h, w) and the correlation maps, coarsest first: (10)–(18)."""
        matched, correlations = [], []
        for layer, query, tokens in zip(self.matching, query_maps, support.stages, strict=True):
            resized = resize(prior, size=query.shape[-2:], mode="bilinear", align_corners=True)
            fused, correlation = self._maybe_checkpointed(
                layer, query, tokens, resized, self.match_scale
            )
            matched.append(fused)
            correlations.append(correlation)
        return self.decoder(matched), correlations[::-1]

    def _check_episode(self, query: Tensor, support: Tensor, mask: Tensor) -> None:
        check_support(support, mask)
        if query.shape != support.shape[:1] + support.shape[2:]:
            raise ValueError(
                "expected query (B, 3, H, W) of the size of support (B, K, 3, H, W), "
                f"got {tuple(query.shape)} and {tuple(support.shape)}"
            )
        self._check_shot(support.shape[1])

    def _check_shot(self, shot: int) -> None:
        if shot != self.ensemble.shot:
            raise ValueError(f"the model is built for {self.ensemble.shot} supports, got {shot}")


def build_hdmnet(backbone: str, base_classes: int, **options: Any) -> HDMNet:
    """Return HDMNet with random weights.

    Args:
        backbone: see `model.backbone.find_backbone`.
        base_classes: number N of base classes; 0: without a base learner.
        **options: the other arguments of `HDMNet`.
    """
    return HDMNet(build_pspnet(backbone, base_classes), **options)
