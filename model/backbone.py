"""Feature extractors and their registry: the paper's (section 4.1), and any model of timm.

`BACKBONES` names them, and settings, scripts and commands read it. A backbone of the paper is five
stages; stage 0 is the stem (VGG: the first block). `forward` returns the outputs of stages 2, 3 and
4, the feature maps that the rest of the method reads.
"""

import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
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
    """

    # Whether each batch norm directly follows, in the order of definition, what it normalises.
    foldable = True

    def __init__(self, stages: list[nn.Module], channels: tuple[int, int, int]):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.channels = channels
        self._grids: dict[tuple[int, int], tuple[int, int]] = {}

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the grid (h, w) of f3 and f4 for images of `size` = (H, W)."""
        if size not in self._grids:
            height, width = self.shapes(size)[1][-2:]
            self._grids[size] = height, width
        return self._grids[size]

    def shapes(self, size: tuple[int, int]) -> list[torch.Size]:
        """Return the shapes of f2, f3 and f4 for one image of `size` = (H, W).

        They are read off a run of an empty batch, which costs nothing. The backbone has to be in eval
        mode, since batch norms would learn from the empty batch.
        """
        assert not self.training
        weight = next(self.parameters())
        with torch.no_grad():
            return [feature.shape for feature in self(weight.new_empty(0, 3, *size))]

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
    return Backbone(stages, (128 * expansion, 256 * expansion, 512 * expansion))


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
    return Backbone(stages, (256, 512, 512))


def _published(build: Callable[[], Backbone]) -> Backbone:
    backbone = build()
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return backbone


class Sizes(NamedTuple):
    """Sides of square images, in pixels, that a backbone takes: step·n + rest, from `smallest` on.

    A smaller image has fewer positions on the coarsest grid than its attention reduces to one.
    """

    step: int
    rest: int
    smallest: int

    def fit(self, size: int) -> bool:
        """Tell whether the backbone takes images of this size."""
        return size >= self.smallest and size % self.step == self.rest

    def nearest(self, size: int) -> int:
        """Return the nearest size that fits."""
        return max(self.smallest, self.step * round((size - self.rest) / self.step) + self.rest)

    def describe(self) -> str:
        """Return the rule in words."""
        steps = f"{self.step}·n + {self.rest}" if self.rest else f"a multiple of {self.step}"
        return f"{steps} and at least {self.smallest}"


# The corners of the grid lie on the corners of the image. VGG16's grid is half as fine.
_CORNERS, _CORNERS_VGG = Sizes(8, 1, 33), Sizes(8, 1, 57)


class Entry(NamedTuple):
    """What is known of a backbone by name.

    Attributes:
        build: returns it with random weights.
        sizes: of the images that it takes.
        hub: repository of huggingface.co with ImageNet weights, or others to start from; None where
            there are none of this architecture.
        licence: of these weights.
        file: name of their file in initmodel/, as in the published code; None: timm loads them.
        sha256: first digits of the digest of the file that their authors serve, where known.
    """

    build: Callable[[], Backbone]
    sizes: Sizes
    hub: str | None = None
    licence: str | None = None
    file: str | None = None
    sha256: str | None = None


def _timm(model: str, sizes: Sizes, licence: str, foldable: bool = False) -> Entry:
    build = partial(_build_timm, model, foldable=foldable)
    return Entry(build, sizes, f"timm/{model}", licence)


def _build_timm(model: str, **options: Any) -> Backbone:
    # Imported here: it takes seconds, and the published backbones do without.
    from model.timm_backbone import TimmBackbone

    return TimmBackbone(model, **options)


def _resnet_entry(name: str, sha256: str | None = None) -> Entry:
    build = partial(_published, partial(_resnet, name))
    if sha256 is None:
        return Entry(build, _CORNERS)
    return Entry(
        build, _CORNERS, f"timm/{name}s.gluon_in1k", "apache-2.0", f"{name}_v2.pth", sha256
    )


_OWN = {
    "resnet18": _resnet_entry("resnet18"),
    "resnet34": _resnet_entry("resnet34"),
    "resnet50": _resnet_entry("resnet50", "1762acc0"),
    "resnet101": _resnet_entry("resnet101", "60fe0cc1"),
    "resnet152": _resnet_entry("resnet152", "dcc41b81"),
    "vgg16": Entry(
        partial(_published, _vgg16),
        _CORNERS_VGG,
        "timm/vgg16_bn.tv_in1k",
        "bsd-3-clause",
        "vgg16_bn.pth",
        "6c64b313",
    ),
}
# Backbones whose layers are in this file; the entries of a checkpoint tell which of them it is of.
OWN_BACKBONES = tuple(_OWN)
BACKBONES = _OWN | {
    "tv_resnet50": _timm("resnet50.tv_in1k", _CORNERS, "bsd-3-clause", foldable=True),
    "convnext_tiny": _timm("convnext_tiny.fb_in1k", Sizes(8, 0, 40), "apache-2.0"),
    "swin_tiny": _timm("swin_tiny_patch4_window7_224.ms_in1k", Sizes(32, 0, 96), "mit"),
    "dinov2_vits": _timm("vit_small_patch14_dinov2.lvd142m", Sizes(14, 0, 70), "apache-2.0"),
    "dinov2_vitb": _timm("vit_base_patch14_dinov2.lvd142m", Sizes(14, 0, 70), "apache-2.0"),
    "dinov3_vits": _timm("vit_small_patch16_dinov3.lvd1689m", Sizes(16, 0, 80), "dinov3-license"),
    "dinov3_convnext_tiny": _timm(
        "convnext_tiny.dinov3_lvd1689m", Sizes(8, 0, 40), "dinov3-license"
    ),
}


def find_backbone(name: str) -> Entry:
    """Return the entry of a backbone.

    Args:
        name: one of `BACKBONES`, or "timm:MODEL" for any model of timm. "timm:MODEL/stride=16" and
            "timm:MODEL/taps=5-8-11" set the arguments of `model.timm_backbone.TimmBackbone`.

    Raises:
        ValueError: there is none of this name.
    """
    if name.startswith("timm:"):
        return _timm_entry(name)
    if name not in BACKBONES:
        raise ValueError(f"backbone {name!r} is none of {', '.join(BACKBONES)}, timm:MODEL")
    return BACKBONES[name]


@cache
def _timm_entry(name: str) -> Entry:
    model, *settings = name.removeprefix("timm:").split("/")
    options: dict[str, Any] = {}
    for setting in settings:
        match = re.fullmatch(r"stride=(8|16|32)|taps=(\d+-\d+-\d+)", setting)
        if match is None:
            raise ValueError(f"{setting!r} is neither stride=8, 16 or 32 nor taps=A-B-C")
        if match[1]:
            options["stride"] = int(match[1])
        else:
            options["taps"] = tuple(map(int, match[2].split("-")))
    build = partial(_build_timm, model, **options)
    with torch.device("meta"):
        backbone: Any = build()
    return Entry(build, backbone.sizes, backbone.hub, backbone.licence)


def check_size(name: str, size: int) -> None:
    """Check that a backbone takes images of a size.

    Raises:
        ValueError: it does not; the message names the nearest size that fits.
    """
    sizes = find_backbone(name).sizes
    if not sizes.fit(size):
        raise ValueError(
            f"size {size}: {name} takes {sizes.describe()}; the nearest is {sizes.nearest(size)}"
        )


def build_backbone(name: str) -> Backbone:
    """Return a backbone with random weights; arguments and errors are those of `find_backbone`."""
    return find_backbone(name).build()
