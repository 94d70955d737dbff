"""The registry of backbones: sizes, grids, and the weights they start from."""

import pytest
import torch
import torchvision
from torch import nn

from model.backbone import (
    BACKBONES,
    OWN_BACKBONES,
    Sizes,
    build_backbone,
    check_size,
    find_backbone,
)


@pytest.mark.parametrize("name", OWN_BACKBONES)
@torch.no_grad()
def test_the_dry_run_tells_grid_and_channels(name):
    backbone = build_backbone(name).eval()
    features = backbone(torch.randn(1, 3, 57, 81))
    assert backbone.grid((57, 81)) == features.f3.shape[-2:] == features.f4.shape[-2:]
    assert backbone.channels == tuple(feature.shape[1] for feature in features)
    assert backbone.grid((473, 473)) == ((30, 30) if name == "vgg16" else (60, 60))
    assert not any(parameter.is_meta for parameter in backbone.parameters())


@pytest.mark.parametrize("name", OWN_BACKBONES)
def test_blocks_are_those_of_torchvision(name):
    with torch.device("meta"):
        nets = build_backbone(name), getattr(torchvision.models, name)()
    own, theirs = (
        [
            module.out_channels
            for module in net.modules()
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
        ]
        for net in nets
    )
    # The stem of three convolutions has the place of one of 7×7.
    assert own[0 if name == "vgg16" else 3 :] == theirs


@pytest.mark.parametrize("name", [name for name in OWN_BACKBONES if name != "vgg16"])
def test_the_last_two_stages_of_a_resnet_dilate_instead_of_halving_the_grid(name):
    """Shapes alone do not tell, nor do golden numbers of other depths."""
    with torch.device("meta"):
        backbone = build_backbone(name)
        theirs = getattr(torchvision.models, name)()
    convs = [
        [(c.stride[0], c.padding[0], c.dilation[0]) for c in stage.modules() if c_is_3x3(c)]
        for stage in backbone.stages
    ]
    depths = [
        sum(c_is_3x3(c) for c in getattr(theirs, f"layer{n}").modules()) for n in (1, 2, 3, 4)
    ]
    first = [(2, 1, 1), (1, 1, 1), (1, 1, 1)], [(1, 1, 1)] * depths[0]
    second = [(2, 1, 1)] + [(1, 1, 1)] * (depths[1] - 1)
    assert convs == [*first, second, [(1, 2, 2)] * depths[2], [(1, 4, 4)] * depths[3]]
    pool = backbone.stages[0][-1]
    assert (pool.kernel_size, pool.stride, pool.padding) == (3, 2, 1)


def c_is_3x3(module):
    return isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)


def test_weights_begin_as_published():
    torch.manual_seed(0)
    weight = build_backbone("resnet18").stages[4][1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def test_sizes():
    corners, patches = find_backbone("resnet50").sizes, Sizes(14, 0, 70)
    assert [corners.fit(size) for size in (473, 633, 472, 25)] == [True, True, False, False]
    assert [corners.nearest(size) for size in (472, 9)] == [473, 33]
    assert corners.fit(33) and find_backbone("vgg16").sizes == Sizes(8, 1, 57)
    assert corners.describe() == "8·n + 1 and at least 33"
    assert patches.describe() == "a multiple of 14 and at least 70"
    with pytest.raises(ValueError, match=r"size 57: dinov2_vits takes .*; the nearest is 70"):
        check_size("dinov2_vits", 57)
    check_size("vgg16", 57)
    assert [patches.nearest(size) for size in (473, 633, 97, 9)] == [476, 630, 98, 70]
    assert patches.fit(476) and not patches.fit(473) and not patches.fit(56)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"'resnet51' is none of resnet18, resnet34, resnet50"):
        build_backbone("resnet51")


def test_what_has_weights_has_a_licence():
    for entry in BACKBONES.values():
        assert (entry.hub is None) == (entry.licence is None)


def test_the_published_code_has_files_of_these_names():
    files = {name: BACKBONES[name].file for name in BACKBONES if BACKBONES[name].file}
    resnets = {f"resnet{depth}": f"resnet{depth}_v2.pth" for depth in (50, 101, 152)}
    assert files == resnets | {"vgg16": "vgg16_bn.pth"}
    assert {name for name in OWN_BACKBONES if BACKBONES[name].hub} == files.keys()
