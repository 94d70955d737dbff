"""The base learner: PSPNet over the base classes of a fold (paper, section 3.4; BAM, CVPR 2022).

It is trained first, alone, and then frozen inside HDMNet, which reads its features and its output.
"""

import torch
from torch import Tensor, nn

from model.backbone import Backbone, BackboneFeatures, build_backbone
from model.mm import resize


class PyramidPooling(nn.Module):
    """Average pools of a map, each projected to C/4 channels and resized, and the map itself.

    Args:
        channels: C, of the map.
        bins: cells per side of each pool.
    """

    def __init__(self, channels: int, bins: tuple[int, ...] = (1, 2, 3, 6)):
        super().__init__()
        self.pools = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(size),
                nn.Conv2d(channels, channels // len(bins), 1, bias=False),
                nn.BatchNorm2d(channels // len(bins)),
                nn.ReLU(inplace=True),
            )
            for size in bins
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C + 4·(C/4), h, w) of x (B, C, h, w), where C/4 is rounded down."""
        size = x.shape[-2:]
        pooled = [
            resize(pool(x), size=size, mode="bilinear", align_corners=True) for pool in self.pools
        ]
        return torch.cat([x, *pooled], dim=1)


class PSPNet(nn.Module):
    """The base learner, a PSPNet with `base_classes` + 1 logits, of which 0 is background.

    Args:
        backbone: the feature extractor.
        base_classes: number N of base classes; 0: the backbone alone, without pyramid and head.
    """

    width = 512

    def __init__(self, backbone: Backbone, base_classes: int):
        super().__init__()
        channels = backbone.channels[-1]
        self.base_classes = base_classes
        self.backbone = backbone
        if base_classes == 0:
            return
        self.pyramid = PyramidPooling(channels)
        pooled = len(self.pyramid.pools) * (channels // len(self.pyramid.pools))
        self.head = nn.Sequential(
            nn.Conv2d(channels + pooled, self.width, 3, padding=1, bias=False),
            nn.BatchNorm2d(self.width),
        )
        self.classifier = nn.Sequential(
            nn.ReLU(), nn.Dropout2d(0.1), nn.Conv2d(self.width, base_classes + 1, 1)
        )

    def train(self, mode: bool = True) -> "PSPNet":
        """Set the mode, but keep a backbone that does not learn in eval mode."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            self.backbone.eval()
        return self

    def features(self, image: Tensor) -> tuple[BackboneFeatures, Tensor]:
        """Return the backbone's features of images (B, 3, H, W), and f5 (B, 512, h, w).

        f5 is the output of the head before its ReLU.
        """
        features = self.backbone(image)
        return features, self.head(self.pyramid(features.f4))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, N+1, H, W) of images (B, 3, H, W)."""
        _, f5 = self.features(image)
        return resize(
            self.classifier(f5), size=image.shape[-2:], mode="bilinear", align_corners=True
        )


def build_pspnet(backbone: str, base_classes: int) -> PSPNet:
    """Return a PSPNet with random weights.

    Args:
        backbone: see `model.backbone.find_backbone`.
        base_classes: number N of base classes.
    """
    return PSPNet(build_backbone(backbone), base_classes)
