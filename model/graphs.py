"""HDMNet as three modules that take and return plain tensors, by the functions of model/reference.py.

`util.export` writes each as a graph, which runs without this code. All images have one size S×S. The
first axis counts images: N of any kind, B queries or K supports. `inputs` and `outputs` name the
tensors in their order, and `inputs` gives the letter of their first axis.
"""

import copy
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.hdmnet import HDMNet
from model.reference import (
    FrozenFeatures,
    Supports,
    encode_supports,
    frozen_features,
    segment,
    style_distances,
)

FEATURES = FrozenFeatures._fields
_STAGE_FIELDS = ("map0", "map1", "map2", "mask0", "mask1", "mask2")
SUPPORTS = tuple(f"support_{name}" for name in (*Supports._fields[:-2], *_STAGE_FIELDS))

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def _part(module: AnyModule, *kept: str) -> AnyModule:
    """Return a copy of a module with some of its children only, so that a graph holds no others."""
    part = copy.copy(module)
    part._modules = {name: child for name, child in module._modules.items() if name in kept}
    return part


class Encoder(nn.Module):
    """Images (N, 3, S, S) → `FrozenFeatures`; those of supports are masked."""

    inputs: ClassVar[dict[str, str]] = {"image": "N"}
    outputs: tuple[str, ...] = FEATURES
    parts: tuple[str, ...] = ()
    base_parts: tuple[str, ...] = ("backbone", "pyramid", "head")

    def __init__(self, net: HDMNet):
        super().__init__()
        self.net, base = _part(net, *self.parts), _part(net.base, *self.base_parts)
        if "backbone" not in self.base_parts:
            base.backbone = _part(net.base.backbone)
        self.net.base = base

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of `outputs` for those of `inputs`."""
        return tuple(frozen_features(self.net, *tensors))


class SupportEncoder(Encoder):
    """`FrozenFeatures` of masked images, and masks (N, S, S), 1 on the object → `Supports`."""

    inputs, outputs = dict.fromkeys((*FEATURES, "mask"), "N"), SUPPORTS
    parts, base_parts = ("reduce_support", "merge_support", "hierarchy"), ()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of `outputs` for those of `inputs`."""
        *features, mask = tensors
        f5, f4, gram, prototype, maps, masks = encode_supports(
            self.net, FrozenFeatures(*features), mask
        )
        return f5, f4, gram, prototype, *maps, *masks


class Matcher(Encoder):
    """`FrozenFeatures` of B queries, `Supports` of them all → final, meta logits (B, 2, S, S).

    Args:
        net: the model.
        size: S.
    """

    inputs = dict.fromkeys(FEATURES, "B") | dict.fromkeys(SUPPORTS, "K")
    outputs = ("final", "meta")
    parts = ("reduce_query", "merge_query", "hierarchy", "matching", "decoder", "ensemble")
    base_parts = ("classifier",)

    def __init__(self, net: HDMNet, size: int):
        super().__init__(net)
        self.size = size

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of `outputs` for those of `inputs`."""
        query = FrozenFeatures(*tensors[: len(FEATURES)])
        batch = query.f4.shape[0]
        f5, f4, gram, prototype, *stages = (
            tensor.expand(batch, *tensor.shape) for tensor in tensors[len(FEATURES) :]
        )
        supports = Supports(f5, f4, gram, prototype, tuple(stages[:3]), tuple(stages[3:]))
        # As `HDMNet.for_shot` does it where K is known.
        scale = self.net.match_scale * self.net.ensemble.shot / f5.shape[1]
        adjustment = self._adjustment(style_distances(self.net, query, supports))
        size = self.size, self.size
        return segment(self.net, query, supports, size, scale, adjustment)[:2]

    def _adjustment(self, distances: Tensor) -> Tensor:
        """Return e of (20) of distances (B, K), with the learned weights where K is that of them."""
        equal, shot = distances.mean(1), self.net.ensemble.shot
        if self.net.ensemble.shot_weights is None:
            return equal
        learned = self.net.ensemble.adjustment(F.pad(distances, (0, shot))[:, :shot])
        return torch.where(torch.ones_like(distances[0]).sum() == shot, learned, equal)
