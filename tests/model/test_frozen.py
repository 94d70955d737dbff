"""The frozen base learner: folded, split and sliced, it computes what the base learner computes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model import frozen
from model.backbone import build_backbone
from model.folding import folded
from model.frozen import FrozenBase
from model.hierarchy import to_tokens
from model.masked import gather_rows
from tests.model.random_nets import random_net

IMAGES = torch.randn(3, 3, 57, 81, generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture(params=["resnet18", "resnet50", "vgg16"])
def base(request):
    return random_net(request.param).base.double()


def f4_of(net):
    return torch.cat([features.f4 for features in net.features(IMAGES)])


@pytest.mark.slow
@torch.no_grad()
def test_features_head_and_logits_are_those_of_the_base_learner(base):
    expected, f5 = base.features(IMAGES)
    fast = FrozenBase(base)
    (features,) = fast.features(IMAGES)
    torch.testing.assert_close(features.f4, expected.f4)
    torch.testing.assert_close(features.f3, expected.f3)
    assert features.f2.shape[-2:] == features.f3.shape[-2:]
    tokens = to_tokens(f5)
    torch.testing.assert_close(fast.head(features.f4), tokens)
    torch.testing.assert_close(fast.logits(f5), base.classifier(f5))
    for count in (11, tokens.shape[1] // 2 + 1):
        positions = torch.stack([torch.randperm(tokens.shape[1])[:count] for _ in range(3)])
        some = torch.stack([tokens[i, index] for i, index in enumerate(positions)])
        torch.testing.assert_close(fast.head_at(features.f4, positions), some)


@pytest.mark.slow
@torch.no_grad()
def test_slices_change_nothing(base, monkeypatch):
    whole = f4_of(FrozenBase(base))
    monkeypatch.setattr(frozen, "CPU_PIXELS", 2 * 57 * 81)
    slices = list(FrozenBase(base).features(IMAGES))
    assert [len(features.f4) for features in slices] == [2, 1]
    torch.testing.assert_close(torch.cat([features.f4 for features in slices]), whole)


def test_the_head_gathers_no_more_at_once_than_it_may(monkeypatch):
    fast, rows = random_net("resnet18").frozen, []
    f4, index = torch.randn(2, 512, 8, 8), torch.arange(22).view(2, 11)
    expected = fast.head_at(f4, index)
    monkeypatch.setattr(
        frozen, "gather_rows", lambda *args: rows.append(args[1].shape[1]) or gather_rows(*args)
    )
    for positions, gathered in ((0, [9] * 11), (4, [36, 36, 27])):
        rows.clear()
        monkeypatch.setattr(frozen, "CPU_GATHERED", positions * 9 * 512 * 2)
        torch.testing.assert_close(fast.head_at(f4, index), expected)
        assert rows == [*gathered, 11], "the last are those of the pools"


@pytest.mark.parametrize(("positions", "gathers"), [(32, True), (33, False)])
def test_the_head_gathers_up_to_half_of_the_positions(positions, gathers, monkeypatch):
    fast, whole = random_net("resnet18").frozen, []
    f4, index = torch.randn(1, 512, 8, 8), torch.arange(positions)[None]
    expected = fast.head(f4)[:, :positions]
    head = fast.head
    monkeypatch.setattr(fast, "head", lambda f4: whole.append(f4) or head(f4))
    torch.testing.assert_close(fast.head_at(f4, index), expected, rtol=1e-4, atol=1e-5)
    assert (not whole) is gathers


def test_the_head_reads_some_channels_at_once(monkeypatch):
    fast, read = random_net("resnet18").frozen, []
    f4 = torch.randn(1, 512, 8, 8)
    expected, conv2d = fast.head(f4), F.conv2d
    monkeypatch.setattr(frozen, "CPU_CHANNELS", 200)
    monkeypatch.setattr(
        F, "conv2d", lambda x, *a, **k: read.append(x.shape[1]) or conv2d(x, *a, **k)
    )
    torch.testing.assert_close(fast.head(f4), expected, rtol=1e-4, atol=1e-5)
    assert read[-3:] == [200, 200, 112]


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("vgg16", "cpu", torch.contiguous_format),
        ("resnet18", "cpu", torch.channels_last),
        ("vgg16", "cuda", torch.channels_last),
    ],
)
def test_memory_formats_are_the_faster_ones(name, device, expected):
    with torch.device("meta"):
        backbone = build_backbone(name)
    assert frozen._memory_format(backbone, torch.device(device)) == expected


@pytest.mark.slow
@torch.no_grad()
def test_changed_weights_are_folded_again():
    base = random_net("resnet18").base.double()
    fast = FrozenBase(base)
    before = f4_of(fast)
    assert torch.equal(f4_of(fast), before)

    other = random_net("resnet18", seed=1).base
    base.load_state_dict(other.state_dict())
    loaded = f4_of(fast)
    torch.testing.assert_close(loaded, base.backbone(IMAGES).f4)
    assert not torch.allclose(loaded, before)

    base.backbone.stages[4][1].bn2.running_mean.add_(1)
    torch.testing.assert_close(f4_of(fast), base.backbone(IMAGES).f4)
    base.float().double()
    torch.testing.assert_close(f4_of(fast), base.backbone(IMAGES).f4)


class NormAndActivation(nn.BatchNorm2d):
    """A batch norm with an activation, as timm's BatchNormAct2d."""

    def forward(self, x):
        return super().forward(x).sigmoid()


class DoubledConv(nn.Conv2d):
    """A convolution that computes with another weight than it holds."""

    def forward(self, x):
        return 2 * super().forward(x)


@torch.no_grad()
def test_subclasses_that_do_more_are_not_folded():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        NormAndActivation(4),
        DoubledConv(4, 4, 1),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4),
    ).eval()
    for norm in module[1::2]:
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    copied = folded(module, torch.float32, torch.channels_last)
    kinds = [nn.Conv2d, NormAndActivation, DoubledConv, nn.BatchNorm2d, nn.Conv2d, nn.Identity]
    assert [type(layer) for layer in copied] == kinds
    torch.testing.assert_close(copied(IMAGES.float()), module(IMAGES.float()))


@pytest.mark.slow
@pytest.mark.parametrize("run_under", [torch.inference_mode, torch.no_grad])
def test_a_model_built_under_inference_mode_runs_and_notices_new_weights(run_under):
    episode = (IMAGES[:1].float(), IMAGES[None, 1:2].float(), torch.ones(1, 1, 57, 81).long())
    with torch.inference_mode():
        net = random_net("resnet18")
    for seed in (0, 1):
        expected = random_net("resnet18", seed=seed)
        with torch.inference_mode():
            net.load_state_dict(expected.state_dict())
        with run_under():
            torch.testing.assert_close(net(*episode).final, expected(*episode).final)


def test_a_model_that_ran_under_inference_mode_can_be_trained():
    net = random_net("resnet18")
    episode = (IMAGES[:1].float(), IMAGES[None, 1:2].float(), torch.ones(1, 1, 57, 81).long())
    with torch.inference_mode():
        net(*episode)
    net.train()(*episode).meta.sum().backward()
    assert net.merge_query[0].weight.grad.isfinite().all()


@torch.no_grad()
def test_folding_leaves_the_model_and_its_state_dict_alone():
    net = random_net("resnet18")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    next(net.frozen.features(IMAGES.float()))
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert len(list(net.parameters())) == len({id(p) for p in net.parameters()})


def test_nothing_frozen_keeps_what_gradients_need():
    base = random_net("resnet18").base.requires_grad_()
    fast, images = FrozenBase(base), IMAGES[:1].float().requires_grad_()
    (features,) = fast.features(images)
    f4, f5 = features.f4.requires_grad_(), torch.randn(1, 512, 8, 8, requires_grad=True)
    index = torch.arange(3)[None]
    found = [features.f2, features.f3, fast.head(f4), fast.head_at(f4, index), fast.logits(f5)]
    assert not any(tensor.requires_grad for tensor in found)


@pytest.mark.slow
@torch.no_grad()
def test_a_reduced_type_of_the_backbone_is_close():
    net = random_net("resnet50")
    reduced = random_net("resnet50", backbone_dtype=torch.bfloat16)
    images = IMAGES.float()
    (features,) = reduced.frozen.features(images)
    assert features.f4.dtype == torch.bfloat16
    inputs = (images[:1], images[None, 1:2], torch.ones(1, 1, 57, 81).long())
    actual, expected = reduced(*inputs), net(*inputs)
    assert actual.final.dtype == actual.prior.dtype == torch.float32
    error = (actual.meta - expected.meta).abs().max() / expected.meta.abs().max()
    assert 0 < error < 0.1


@torch.no_grad()
def test_autocast_is_the_type_where_none_is_given():
    base = random_net("resnet18").base
    fast = FrozenBase(base)
    with torch.autocast("cpu", torch.bfloat16):
        assert next(fast.features(IMAGES.float())).f4.dtype == torch.bfloat16
    assert next(fast.features(IMAGES.float())).f4.dtype == torch.float32
    kept = FrozenBase(base, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert next(kept.features(IMAGES.float())).f4.dtype == torch.float32
