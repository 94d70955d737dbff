"""HDMNet as three modules that take and return plain tensors, by the functions of model/reference.py.

`util.export` writes each as a graph, which runs without this code. All images have one size S×S. The
first axis counts images: N of any kind, B queries or K supports. `inputs` and `outputs` name the
tensors in their order, and `inputs` gives the letter of their first axis.
"""

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
_SUPPORT_FIELDS = (*Supports._fields[:-1], "map0", "map1", "map2")
SUPPORTS = tuple(f"support_{name}" for name in _SUPPORT_FIELDS)


class Encoder(nn.Module):
    """Images (N, 3, S, S) → `FrozenFeatures`; those of supports are masked."""

    inputs, outputs = {"image": "N"}, FEATURES

    def __init__(self, net: HDMNet):
        super().__init__()
        self.net = net

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of `outputs` for those of `inputs`."""
        return tuple(frozen_features(self.net, *tensors))


class SupportEncoder(Encoder):
    """`FrozenFeatures` of masked images, and masks (N, S, S), 1 on the object → `Supports`."""

    inputs, outputs = dict.fromkeys((*FEATURES, "mask"), "N"), SUPPORTS

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of `outputs` for those of `inputs`."""
        *features, mask = tensors
        *supports, maps = encode_supports(self.net, FrozenFeatures(*features), mask)
        return *supports, *maps


class Matcher(Encoder):
    """`FrozenFeatures` of B queries, `Supports` of them all → final, meta logits (B, 2, S, S)."""

    inputs = dict.fromkeys(FEATURES, "B") | dict.fromkeys(SUPPORTS, "K")
    outputs = ("final", "meta")

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of `outputs` for those of `inputs`."""
        query = FrozenFeatures(*tensors[: len(FEATURES)])
        batch = query.f4.shape[0]
        *parts, map0, map1, map2 = (
            tensor.expand(batch, *tensor.shape) for tensor in tensors[len(FEATURES) :]
        )
        supports = Supports(*parts, (map0, map1, map2))
        height, width = supports.mask.shape[-2:]
        # As `HDMNet.for_shot` does it where K is known.
        scale = self.net.match_scale * self.net.ensemble.shot / supports.mask.shape[1]
        adjustment = self._adjustment(style_distances(query.gram, supports.gram))
        return segment(self.net, query, supports, (height, width), scale, adjustment)[:2]

    def _adjustment(self, distances: Tensor) -> Tensor:
        """Return e of (20) of distances (B, K), with the learned weights where K is that of them."""
        equal, shot = distances.mean(1), self.net.ensemble.shot
        if self.net.ensemble.shot_weights is None:
            return equal
        learned = self.net.ensemble.adjustment(F.pad(distances, (0, shot))[:, :shot])
        return torch.where(torch.ones_like(distances[0]).sum() == shot, learned, equal)
