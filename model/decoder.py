"""Coarse-to-fine decoding of the matched maps into two logits (paper, section 3.2)."""

from torch import Tensor, nn

from model.mm import resize


def _bottleneck(channels: int, outputs: int) -> list[nn.Module]:
    hidden = 4 * channels
    return [
        nn.Conv2d(channels, hidden, 1),
        nn.BatchNorm2d(hidden),
        nn.Conv2d(hidden, hidden, 3, padding=1),
        nn.BatchNorm2d(hidden),
        nn.Conv2d(hidden, outputs, 1),
    ]


class Decoder(nn.Module):
    """Parses the coarsest map, then adds each finer one to the enlarged result.

    The convolutions between batch norms have no activation of their own; each parse has one ReLU at
    its end, as in the published model.
    """

    def __init__(self, channels: int, stages: int = 3):
        super().__init__()
        self.parse = nn.ModuleList(
            nn.Sequential(*_bottleneck(channels, channels), nn.BatchNorm2d(channels), nn.ReLU())
            for _ in range(stages)
        )
        self.classifier = nn.Sequential(*_bottleneck(channels, 2))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Matched maps (B, C, h_i, w_i), finest first → logits (B, 2, h_0, w_0)."""
        out = self.parse[-1](maps[-1])
        for x, parse in zip(maps[-2::-1], list(self.parse)[-2::-1], strict=True):
            out = resize(out, size=x.shape[-2:], mode="bilinear", align_corners=False)
            out = out + parse(x + out)
        return self.classifier(out)
