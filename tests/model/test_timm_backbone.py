"""Models of timm as backbones: their features, and the same model by every way of computing it."""

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from benchmark.cases import difference
from model import hdmnet_loss
from model.backbone import BACKBONES, OWN_BACKBONES, Sizes, build_backbone, find_backbone
from model.frozen import FrozenBase
from model.preprocessing import MEAN, STD
from tests.model.random_nets import in_double, random_episode, random_net
from tests.model.test_reference import losses_and_gradients

MODELS = ("test_resnet", "test_convnext", "test_vit", "test_efficientnet")
SIZES = {"test_resnet": 57, "test_convnext": 64, "test_vit": 96, "test_efficientnet": 57}


def images(model, count=2):
    return torch.randn(count, 3, SIZES[model], SIZES[model])


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_features_are_those_of_the_model_on_images_of_its_own_statistics(model):
    torch.manual_seed(0)
    backbone = build_backbone(f"timm:{model}").eval()
    own, here = timm.get_pretrained_cfg(model), (torch.tensor(value) / 255 for value in (MEAN, STD))
    mean, std, here_mean, here_std = (
        torch.as_tensor(value).view(3, 1, 1) for value in (own.mean, own.std, *here)
    )
    picture = torch.rand(2, 3, SIZES[model], SIZES[model])
    expected = backbone.net.forward_intermediates(
        (picture - mean) / std,
        indices=list(backbone.taps),
        norm=model == "test_vit",
        intermediates_only=True,
    )
    features = backbone((picture - here_mean) / here_std)
    torch.testing.assert_close(list(features), expected, rtol=1e-3, atol=1e-4)
    assert backbone.channels == tuple(feature.shape[1] for feature in features)
    assert backbone.grid(picture.shape[-2:]) == features.f3.shape[-2:] == features.f4.shape[-2:]


@torch.no_grad()
def test_the_coarsest_feature_is_brought_to_the_grid_of_the_one_before():
    backbone = build_backbone("timm:test_resnet/stride=32").eval()
    image, given = torch.randn(1, 3, 97, 97), []
    backbone.net.layer4.register_forward_hook(lambda *call: given.append(call[-1]))
    features = backbone(image)
    assert given[0].shape[-2:] == (4, 4) and features.f3.shape[-2:] == (7, 7)
    expected = F.interpolate(given[0], size=(7, 7), mode="bilinear", align_corners=True)
    torch.testing.assert_close(features.f4, expected)


@torch.no_grad()
def test_the_last_norm_of_a_transformer_is_kept():
    features = build_backbone("timm:test_vit").eval()(images("test_vit"))
    for feature in features:
        torch.testing.assert_close(feature.mean(1), torch.zeros(2, 6, 6), rtol=0, atol=1e-4)


def test_stride_and_taps_are_settings():
    assert build_backbone("timm:test_resnet/stride=16").grid((65, 65)) == (5, 5)
    # The last three stages; of six blocks those after a half, three quarters and all.
    assert build_backbone("timm:test_resnet").taps == (2, 3, 4)
    assert build_backbone("timm:test_vit").taps == (2, 3, 5)
    with torch.device("meta"):
        assert build_backbone("dinov2_vits").taps == (5, 8, 11)  # of twelve
    backbone = build_backbone("timm:test_vit/taps=1-2-3")
    assert backbone.taps == (1, 2, 3) and len(backbone.net.blocks) == 4
    for name, message in (
        ("timm:no_such_model", "timm 1.* has no model no_such_model"),
        ("timm:test_vit.no_tag", "timm 1.* has no model test_vit.no_tag"),
        ("timm:test_vit/stride=16", "test_vit cannot have the stride 16"),
        ("timm:test_vit/stride=7", "'stride=7' is neither"),
        ("timm:test_vit/taps=1-2-9", "taps of test_vit have to be three of 0 to 5"),
        ("timm:mixer_s32_224", "mixer_s32_224 cannot be used: .* other sizes than 224×224"),
    ):
        with pytest.raises(ValueError, match=message):
            find_backbone(name)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("test_resnet", Sizes(8, 1, 33)),
        ("test_resnet/stride=16", Sizes(8, 1, 65)),
        ("test_convnext", Sizes(8, 0, 40)),
        ("test_convnext/stride=32", Sizes(32, 0, 96)),
        ("test_vit", Sizes(16, 0, 80)),
    ],
)
def test_the_smallest_image_has_five_positions_a_side(name, sizes):
    with torch.device("meta"):
        backbone = build_backbone(f"timm:{name}").eval()
    assert backbone.sizes == sizes
    assert min(backbone.grid((sizes.smallest,) * 2)) in (5, 6)


def test_sizes_and_channels_are_those_of_a_run():
    # Its batch norms see single values, which they refuse in training.
    assert find_backbone("timm:rexnet_100").sizes == Sizes(8, 1, 33)
    with torch.device("meta"):
        backbone = build_backbone("timm:samvit_base_patch16")
    assert backbone.channels == (256, 256, 256)  # Its last norm maps 768 channels to these.
    assert backbone.training and backbone.net.training


@pytest.mark.slow
def test_every_entry_says_what_timm_says():
    for name in sorted(BACKBONES.keys() - set(OWN_BACKBONES)):
        entry = find_backbone(name)
        with torch.device("meta"):
            backbone = entry.build()
        said = (entry.sizes, entry.hub, entry.licence)
        assert said == (backbone.sizes, backbone.hub, backbone.licence), name
        size = entry.sizes.nearest(473)
        assert min(backbone.grid((size, size))) >= 30


def test_a_file_of_weights_is_loaded(tmp_path):
    source = build_backbone("timm:test_vit")
    plain = timm.create_model("test_vit")
    save_file(plain.state_dict(), tmp_path / "model.safetensors")
    source.load_file(tmp_path / "model.safetensors")
    state = plain.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in source.net.state_dict().items())
    with pytest.raises((RuntimeError, KeyError, ValueError)):
        build_backbone("timm:test_vit2").load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_the_frozen_copy_keeps_norms_and_activations(model):
    net = random_net(f"timm:{model}")
    x = images(model)
    (features,) = FrozenBase(net.base).features(x)
    for feature, expected in zip(features[1:], net.base.backbone(x)[1:], strict=True):
        torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-5)
    (reduced,) = FrozenBase(net.base, torch.bfloat16).features(x)
    assert reduced.f4.dtype == torch.bfloat16
    torch.testing.assert_close(reduced.f4.float(), features.f4, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("classes", [0, 5])
@torch.no_grad()
def test_outputs_are_those_of_the_reference(model, classes):
    net = random_net(f"timm:{model}", shot=2, classes=classes, prior="minmax")
    episode = random_episode((SIZES[model],) * 2, 2, 2, "bpfb")[:3]
    fast, expected = net(*episode), net.reference_forward(*episode)
    assert difference(fast, expected) < 1e-4
    for name in ("base", "adjustment", "prior"):
        torch.testing.assert_close(
            getattr(fast, name), getattr(expected, name), rtol=1e-3, atol=1e-3
        )
    assert fast.prior.min() == 0 and 0.99 < fast.prior.max() <= 1
    assert fast.base.shape[1] == classes + 1
    assert torch.equal(fast.final, fast.meta) == (classes == 0)
    # Features that were computed before, as in tests.
    features = net.encode_query(episode[0]), net.encode_support(*episode[1:])
    assert difference(net.segment(*features, episode[0].shape[-2:]), expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "classes"), [("timm:test_vit", 5), ("resnet18", 0)])
def test_losses_and_gradients_are_those_of_the_reference(backbone, classes):
    net = random_net(backbone, 2, classes=classes).double().train()
    episode = in_double(random_episode((96 if "vit" in backbone else 57,) * 2, 2, 2, "bepb"))
    losses, gradients = losses_and_gradients(net, net, episode)
    expected_losses, expected = losses_and_gradients(net, net.reference_forward, episode)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected.keys()
    assert any(name.startswith("ensemble.") for name in gradients) == (classes > 0)
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(
            gradients[name], gradient, rtol=1e-4, atol=1e-6 * largest.item(), msg=name
        )


def test_without_a_base_learner_the_meta_learner_counts_once():
    net = random_net("resnet18", classes=0)
    assert not hasattr(net.base, "head")
    episode = random_episode((57, 57))
    mask = episode[2][:, 0]
    losses = hdmnet_loss(net(*episode[:3]), mask, mask)
    assert losses.base == 0
    torch.testing.assert_close(losses.total, losses.main + losses.distillation)
