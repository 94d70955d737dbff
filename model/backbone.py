"""Feature extractors: dilated deep-stem ResNets and VGG16-BN (paper, section 4.1).

Every backbone is five stages; stage 0 is the stem (VGG: the first block). `forward` returns the
outputs of stages 2, 3 and 4, the feature maps that the rest of the method reads.
"""

from typing import NamedTuple

from torch import Tensor, nn


class BackboneFeatures(NamedTuple):
    """Outputs of stages 2, 3 and 4.

    Attributes:
        f2: (B, C2, h2, w2).
        f3: (B, C3, h, w).
        f4: (B, C4, h, w).
    """

    f2: Tensor
    f3: Tensor
    f4: Tensor


class Backbone(nn.Module):
    """A feature extractor of five stages.

    Args:
        stages: the five stages, from the stem on.
        channels: output channels of stages 2, 3 and 4.
        stride: pixels of the image per position of the grid of stages 3 and 4.
    """

    def __init__(self, stages: list[nn.Module], channels: tuple[int, int, int], stride: int):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.channels = channels
        self.stride = stride

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the grid (h, w) of stages 3 and 4 for images of `size` = (H, W)."""
        height, width = size
        return -(-height // self.stride), -(-width // self.stride)

    def forward(self, image: Tensor) -> BackboneFeatures:
        """Return the features of images (B, 3, H, W)."""
        f2 = self.stages[2](self.stages[1](self.stages[0](image)))
        f3 = self.stages[3](f2)
        return BackboneFeatures(f2, f3, self.stages[4](f3))


def _conv3x3(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a residual connection (ResNet-18/34)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, dilation: int):
        super().__init__()
        self.conv1 = _conv3x3(inputs, width, stride, dilation)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, 1, dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, h, w) of x (B, inputs, H, W)."""
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)).add_(self.downsample(x)))


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions with a residual connection; the 3×3 carries the stride."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, dilation: int):
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride, dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 4·width, h, w) of x (B, inputs, H, W)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)).add_(self.downsample(x)))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


_RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
BACKBONES = (*_RESNETS, "vgg16")


def _deep_stem() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 64, 2), (64, 64, 1), (64, 128, 1)):
        layers += [
            _conv3x3(inputs, outputs, stride),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.MaxPool2d(3, 2, 1))


def _resnet(name: str) -> Backbone:
    block, depths = _RESNETS[name]
    stages: list[nn.Module] = [_deep_stem()]
    inputs = 128
    # Stages 3 and 4 keep the resolution (output stride 8) and dilate instead.
    for depth, width, stride, dilation in zip(
        depths, (64, 128, 256, 512), (1, 2, 1, 1), (1, 1, 2, 4), strict=True
    ):
        blocks: list[nn.Module] = []
        for index in range(depth):
            blocks.append(block(inputs, width, stride if index == 0 else 1, dilation))
            inputs = width * block.expansion
        stages.append(nn.Sequential(*blocks))
    expansion = block.expansion
    return Backbone(stages, (128 * expansion, 256 * expansion, 512 * expansion), 8)


def _vgg16() -> Backbone:
    # Each stage ends with the pool that follows its convolutions, but for the last one, which has
    # none: the grid of f3 and f4 has stride 16.
    stages: list[nn.Module] = []
    inputs = 3
    for index, (outputs, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
            inputs = outputs
        if index < 4:
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
        stages.append(nn.Sequential(*layers))
    return Backbone(stages, (256, 512, 512), 16)


def build_backbone(name: str) -> Backbone:
    """Return a backbone with random weights.

    Args:
        name: one of `BACKBONES`.

    Raises:
        ValueError: the name is none of these.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone {name!r} is none of {', '.join(BACKBONES)}")
    backbone = _vgg16() if name == "vgg16" else _resnet(name)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return backbone
