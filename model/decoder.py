"""Coarse-to-fine decoding of the matched maps into two logits (paper, section 3.2)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.mm import resize
from model.norms import learning_norms, scale_and_shift
from model.precision import full_precision


class LinearBottleneck(nn.Sequential):
    """1×1, 3×3 and 1×1 convolutions with batch norms between them and no activation.

    Where the batch norms are in eval mode, all layers are multiplied out to one 3×3 convolution; see
    docs/fast_path.md, "The decoder".

    Args:
        channels: of the input; four times as many lie between the convolutions.
        outputs: channels of the output.
        normalised: whether a batch norm follows at the end.
    """

    def __init__(self, channels: int, outputs: int, normalised: bool):
        hidden = 4 * channels
        super().__init__(
            nn.Conv2d(channels, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.BatchNorm2d(hidden),
            nn.Conv2d(hidden, outputs, 1),
            *([nn.BatchNorm2d(outputs)] if normalised else []),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, h, w) of x (B, channels, h, w)."""
        if learning_norms(self):
            return super().forward(x)
        with full_precision(x.device):
            weight, constant, bias = self._multiplied_out()
        inside = x.new_ones(1, 1, *x.shape[-2:])
        return F.conv2d(x, weight, bias, padding=1) + F.conv2d(inside, constant, padding=1)

    def _multiplied_out(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weight W (outputs, channels, 3, 3), k (outputs, 1, 3, 3) and β (outputs,).

        k is the weight of a map of ones, since the 3×3 convolution pads with zeros what the first
        convolution makes of x, its bias included.
        """
        layers: list[Any] = list(self)
        first, first_norm, middle, middle_norm, last, *end = layers
        scale, shift = scale_and_shift(first_norm)
        enter, added = first.weight.flatten(1) * scale[:, None], first.bias * scale + shift
        enter = torch.cat([enter, added[:, None]], dim=1)  # (hidden, channels + 1)
        scale, shift = scale_and_shift(middle_norm)
        leave, bias = last.weight.flatten(1), last.bias
        bias = leave @ (middle.bias * scale + shift) + bias
        leave = leave * scale
        for norm in end:
            scale, shift = scale_and_shift(norm)
            leave, bias = leave * scale[:, None], bias * scale + shift
        taps = (leave @ middle.weight.flatten(1)).unflatten(1, middle.weight.shape[1:])
        weight = torch.einsum("ohyx,hc->ocyx", taps, enter)
        return weight[:, :-1], weight[:, -1:], bias


class Decoder(nn.Module):
    """The decoder, which parses the coarsest map and adds each finer one to the enlarged result.

    This is (17) and (18) of docs/method.md. Each parse has one ReLU, at its end, as in the published
    model.

    Args:
        channels: C, of the maps.
        stages: number of maps.
    """

    def __init__(self, channels: int, stages: int = 3):
        super().__init__()
        self.parse = nn.ModuleList(
            LinearBottleneck(channels, channels, normalised=True) for _ in range(stages)
        )
        self.classifier = LinearBottleneck(channels, 2, normalised=False)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return logits (B, 2, h_0, w_0) of matched maps (B, C, h_i, w_i), finest first."""
        out = F.relu(self.parse[-1](maps[-1]))
        for x, parse in zip(maps[-2::-1], list(self.parse)[-2::-1], strict=True):
            out = resize(out, size=x.shape[-2:], mode="bilinear", align_corners=False)
            out = out + F.relu(parse(x + out))
        return self.classifier(out)
