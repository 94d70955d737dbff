"""What the golden files do not cover: shapes, modes, options, and wrong input."""

from functools import partial
from inspect import signature

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from model import HDMNet, HDMNetOutput, PSPNet, build_hdmnet, build_pspnet, hdmnet_loss
from model.backbone import OWN_BACKBONES, build_backbone
from model.decoder import Decoder
from model.ensemble import Ensemble
from model.hierarchy import MixFFN, TransformerLayer
from model.matching import MatchingAttention, MatchingLayer
from model.pspnet import PyramidPooling
from model.query_softmax import query_softmax_attention
from model.timm_backbone import TimmBackbone
from tests.golden import golden_episode
from tests.model.random_nets import random_net

CONFIG = {"size": 65, "shot": 2, "batch": 2, "base_classes": 5, "seed": 1, "empty": False}

STAGES = [f"hierarchy.stages.{stage}.layers.{layer}" for stage in range(3) for layer in range(2)]
MATCHING = [f"matching.{stage}" for stage in range(3)]
# Kind and p of every dropout, as published, and how often one forward pass in training drops there.
# The base learner is frozen, so its own dropout does not act.
DROPOUTS = {
    "base.classifier.1": (nn.Dropout2d, 0.1, 0),
    "reduce_query.2": (nn.Dropout2d, 0.5, 1),
    "reduce_support.2": (nn.Dropout2d, 0.5, 1),
    **{f"{layer}.dropout": (nn.Dropout, 0.1, 1) for layer in STAGES + MATCHING},
    **{f"{layer}.ffn.dropout": (nn.Dropout, 0.1, 2) for layer in STAGES + MATCHING},
}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return build_hdmnet("resnet18", 5, shot=2, kshot_trans_dim=0)


@pytest.fixture(scope="module")
def batch():
    return golden_episode(CONFIG)


@pytest.mark.parametrize(
    ("function", "defaults"),
    [
        (HDMNet, {"shot": 1, "kshot_trans_dim": 2, "fix_bn": True}),
        (HDMNet, {"low_fea": "layer2", "prior": "max", "checkpoint_activations": False}),
        *((function, {"kshot_order": "sorted"}) for function in (HDMNet, Ensemble)),
        (MixFFN, {"expansion": 4, "dropout": 0.1}),
        (TransformerLayer, {"dropout": 0.1}),
        (MatchingAttention, {"heads": 2, "temperature": 0.1}),
        (MatchingLayer, {"dropout": 0.1, "temperature": 0.1}),
        (MatchingLayer.forward, {"scale": 1.0}),
        (Decoder, {"stages": 3}),
        (PyramidPooling, {"bins": (1, 2, 3, 6)}),
        (hdmnet_loss, {"distillation_weight": 1.0, "base_weight": 1.0}),
        (query_softmax_attention, {"largest": float("inf")}),
        (TimmBackbone, {"stride": None, "taps": None, "foldable": False}),
        *((function, {"mode": True}) for function in (HDMNet.train, PSPNet.train)),
    ],
)
def test_what_is_not_given_is_as_published(function, defaults):
    parameters = signature(function).parameters
    assert {name: parameters[name].default for name in defaults} == defaults


@pytest.mark.parametrize("name", OWN_BACKBONES)
def test_backbones_have_their_channels_and_stride(name):
    with torch.device("meta"):
        backbone = build_backbone(name)
        features = backbone(torch.empty(1, 3, 97, 65))
    wide = name in ("resnet50", "resnet101", "resnet152")
    expected = (256, 512, 512) if name == "vgg16" else (128, 256, 512)
    assert backbone.channels == tuple(4 * c if wide else c for c in expected)
    assert tuple(f.shape[1] for f in features) == backbone.channels
    grid = (7, 5) if name == "vgg16" else (13, 9)
    assert features.f3.shape[2:] == features.f4.shape[2:] == grid
    assert features.f2.shape[2:] == (13, 9)


def test_unknown_backbone_is_named():
    with pytest.raises(ValueError, match="'resnet5' is none of resnet18"):
        build_backbone("resnet5")


@pytest.mark.parametrize("backbone", ["resnet18", "vgg16"])
def test_non_square_images(backbone):
    net = build_hdmnet(backbone, 5).eval()
    with torch.no_grad():
        out = net(
            torch.rand(1, 3, 65, 97), torch.rand(1, 1, 3, 65, 97), torch.ones(1, 1, 65, 97).long()
        )
    assert out.final.shape == out.meta.shape == (1, 2, 65, 97)
    assert out.base.shape == (1, 6, 65, 97)
    sizes = [tuple(c.shape) for c in out.correlations]
    finest = (5, 7) if backbone == "vgg16" else (9, 13)
    assert sizes[2] == (1, *finest)
    assert sizes[1] == (1, (finest[0] + 1) // 2, (finest[1] + 1) // 2)


def test_episodes_of_a_batch_do_not_mix(net, batch):
    net.eval()
    arguments = [batch[key] for key in ("query", "support", "support_mask")]
    with torch.no_grad():
        together = net(*arguments)
        alone = net(*(a[1:] for a in arguments))
    torch.testing.assert_close(together.final[1:], alone.final, rtol=1e-4, atol=1e-5)


def test_an_empty_support_mask_gives_a_zero_correlation(net, batch):
    net.eval()
    with torch.no_grad():
        out = net(batch["query"], batch["support"], torch.zeros_like(batch["support_mask"]))
    assert all((c == 0).all() for c in out.correlations)
    assert torch.isfinite(out.final).all()


def test_training_mode_leaves_the_base_learner_and_batch_norms_alone():
    net = build_hdmnet("resnet18", 5)
    before = {k: v.clone() for k, v in net.state_dict().items() if "running" in k}
    net.train()
    assert net.training and net.hierarchy.training and not net.base.training
    query = torch.rand(2, 3, 65, 65)
    out = net(query, query[:, None], torch.ones(2, 1, 65, 65).long(), torch.tensor([0, 4]))
    out.meta.sum().backward()
    after = net.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert all(p.grad is None for p in net.base.parameters())

    free = build_hdmnet("resnet18", 5, fix_bn=False).train()
    norms = [m for m in free.modules() if isinstance(m, nn.BatchNorm2d)]
    frozen = set(free.base.modules())
    assert all(m.training == (m not in frozen) for m in norms)


def dropouts_of(net):
    return {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, nn.modules.dropout._DropoutNd)
    }


def dropped_in(net, forward):
    """How often each dropout of a net gives something else than it gets, in a call of `forward`."""
    modules = dropouts_of(net)
    times = dict.fromkeys(modules, 0)

    def count(name, inputs, output):
        times[name] += not torch.equal(inputs[0], output)

    handles = [
        module.register_forward_hook(lambda _, *given, name=name: count(name, *given))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        forward()
    for handle in handles:
        handle.remove()
    return times


def test_every_dropout_has_its_rate_and_acts_in_training_alone(batch):
    torch.manual_seed(0)
    net = build_hdmnet("resnet18", 5, shot=2)
    found = {name: (type(module), module.p) for name, module in dropouts_of(net).items()}
    assert found == {name: (kind, p) for name, (kind, p, _) in DROPOUTS.items()}
    episode = [batch[key][..., :33, :33] for key in ("query", "support", "support_mask")]
    times = {name: passes for name, (_, _, passes) in DROPOUTS.items()}
    assert dropped_in(net.train(), lambda: net(*episode)) == times
    # The reference takes queries and supports through the hierarchy one after the other.
    twice = {name: (1 + name.startswith("hierarchy")) * passes for name, passes in times.items()}
    assert dropped_in(net, lambda: net.reference_forward(*episode)) == twice
    assert not any(dropped_in(net.eval(), lambda: net(*episode)).values())


@pytest.mark.parametrize("classes", [0, 1, 2])
def test_without_base_classes_there_is_the_backbone_alone(classes):
    with torch.device("meta"):
        net = build_pspnet("resnet18", classes)
    parts = ["backbone", "pyramid", "head", "classifier"]
    assert [name for name, _ in net.named_children()] == (parts if classes else parts[:1])


def test_layers_drop_what_they_are_told():
    layer = TransformerLayer(8, 2, 1, dropout=0.3)
    matching = MatchingLayer(8, dropout=0.4)
    found = [module.p for net in (layer, matching) for module in dropouts_of(net).values()]
    assert found == [0.3, 0.3, 0.4, 0.4] and MixFFN(8).dropout.p == 0.1


def test_the_dropout_of_the_base_learner_acts_in_its_training_alone(batch):
    torch.manual_seed(0)
    net = build_pspnet("resnet18", 5)
    (module,) = dropouts_of(net).values()
    assert type(module) is nn.Dropout2d and module.p == 0.1
    for mode in (True, False):
        net.train(mode)
        assert dropped_in(net, lambda: net(batch["query"])) == {"classifier.1": mode}


@pytest.mark.parametrize("classes", [0, 1, 5])
def test_each_weight_of_the_loss_is_that_of_its_term(classes):
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 2, 9, 9)
    base, correlations = torch.randn(2, classes + 1, 9, 9), [torch.randn(2, 3, 3)]
    out = HDMNetOutput(*logits, base, correlations, torch.ones(2), torch.ones(2, 2, 9, 9))
    labels = torch.randint(0, 2, (2, 9, 9))
    terms = hdmnet_loss(out, labels, labels, 0.5, 3.0)
    assert terms.distillation > 0 and (terms.base > 0) == (classes > 0)
    total = terms.main + 0.5 * terms.distillation + 3 * terms.base
    torch.testing.assert_close(terms.total, total)


def test_every_trained_parameter_gets_a_gradient(net, batch):
    net.train()
    out = net(batch["query"], batch["support"], batch["support_mask"], batch["class_index"])
    net.zero_grad()
    hdmnet_loss(out, batch["query_mask"], batch["base_mask"]).total.backward()
    missing = [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.requires_grad)


def test_the_own_class_is_left_out_of_the_base_map(net, batch):
    net.eval()
    with torch.no_grad():
        # Merging weights of (1, 0) hide the base map.
        net.ensemble.background_merge.weight.copy_(torch.tensor([0.0, 1.0]).view(1, 2, 1, 1))
        arguments = [batch[key] for key in ("query", "support", "support_mask")]
        known = net(*arguments).final[:, 0]
        without = net(*arguments, torch.tensor([0, 0])).final[:, 0]
        net.ensemble.background_merge.weight.copy_(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))
    assert (known > without).all()


@pytest.mark.slow
def test_equal_supports_weigh_like_one_when_scaled_to_the_shot_of_training(batch):
    torch.manual_seed(0)
    single = build_hdmnet("resnet18", 5, shot=1).eval()
    triple = build_hdmnet("resnet18", 5, shot=3, kshot_trans_dim=0, trained_shot=1).eval()
    state = single.state_dict()
    own = triple.state_dict()
    triple.load_state_dict(own | state)
    support, mask = batch["support"][:, :1], batch["support_mask"][:, :1]
    with torch.no_grad():
        one = single(batch["query"], support, mask)
        three = triple(batch["query"], support.repeat(1, 3, 1, 1, 1), mask.repeat(1, 3, 1, 1))
    torch.testing.assert_close(three.final, one.final, rtol=1e-4, atol=1e-5)


def test_the_orders_of_the_support_weights_differ():
    torch.manual_seed(0)
    nets = [
        build_hdmnet("resnet18", 5, shot=3, kshot_order=order) for order in ("sorted", "restored")
    ]
    nets[1].ensemble.load_state_dict(nets[0].ensemble.state_dict())
    distances = torch.tensor([[0.9, 0.1, 0.5]])
    published, restored = (net.ensemble.adjustment(distances) for net in nets)
    ascending = distances.sort().values
    weights = nets[0].ensemble.shot_weights(ascending[..., None, None]).flatten(1).softmax(1)
    torch.testing.assert_close(published, (weights * distances).sum(1))
    torch.testing.assert_close(restored, (weights * ascending).sum(1))
    assert not torch.allclose(published, restored)


@pytest.mark.parametrize(("options", "hidden"), [({}, 2), ({"kshot_trans_dim": 1}, 1)])
def test_hidden_weights_of_supports_have_their_width(options, hidden):
    with torch.device("meta"):
        first, _, last = build_hdmnet("resnet18", 5, shot=3, **options).ensemble.shot_weights
        assert build_hdmnet("resnet18", 5, **options).ensemble.shot_weights is None
    assert first.weight.shape[:2] == (hidden, 3) and last.weight.shape[:2] == (3, hidden)


@pytest.mark.parametrize("low_fea", ["layer3", "layer4"])
@torch.no_grad()
def test_the_style_of_other_features_is_that_of_the_reference(low_fea, batch):
    net = random_net(shot=2, low_fea=low_fea)
    inputs = [batch[key][..., :33, :33] for key in ("query", "support", "support_mask")]
    found, expected = net(*inputs), net.reference_forward(*inputs)
    torch.testing.assert_close(found.adjustment, expected.adjustment)


@pytest.mark.parametrize("forward", ["forward", "reference_forward"])
def test_what_is_frozen_passes_no_gradient_to_images(forward, net, batch):
    images = [batch[key].clone().requires_grad_() for key in ("query", "support")]
    out = getattr(net.eval(), forward)(*images, batch["support_mask"])
    assert not out.base_map.requires_grad and not out.prior.requires_grad
    gradients = torch.autograd.grad(out.final.sum(), images, allow_unused=True)
    assert gradients == (None, None)


def test_a_backbone_of_the_base_learner_that_does_not_learn_stays_in_eval_mode():
    net = build_pspnet("resnet18", 2)
    net.backbone.requires_grad_(False)
    assert net.train() is net and net.training and not net.backbone.training
    next(net.backbone.parameters()).requires_grad_()
    assert net.train().backbone.training and not net.eval().backbone.training


def test_the_ensemble_begins_as_the_meta_learner_alone():
    ensemble = Ensemble(shot=1, kshot_trans_dim=None)
    for merge in (ensemble.adjustment_merge, ensemble.background_merge):
        assert merge.weight.flatten().tolist() == [1, 0]


def test_linear_weights_of_supports_begin_as_equal_shares():
    weights = Ensemble(shot=4, kshot_trans_dim=0).shot_weights.weight
    assert weights.shape == (4, 4, 1, 1) and (weights == 0.25).all()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 3, 65, 65), (1, 3, 65, 65), (1, 1, 65, 65)), "expected support"),
        (((1, 3, 65, 65), (1, 2, 3, 65, 65), (1, 2, 65, 97)), "expected support"),
        (((2, 3, 65, 65), (1, 2, 3, 65, 65), (1, 2, 65, 65)), "expected query"),
        (((1, 3, 65, 65), (1, 2, 3, 65, 65), (1, 2, 65, 33)), "expected support"),
        (((1, 3, 65, 65), (2, 2, 3, 65, 65), (2, 2, 65, 65)), "expected query"),
        (((1, 3, 65, 65), (1, 1, 3, 65, 65), (1, 1, 65, 65)), "built for 2 supports, got 1"),
        (((1, 3, 65, 65), (1, 3, 3, 65, 65), (1, 3, 65, 65)), "built for 2 supports, got 3"),
    ],
)
def test_wrong_shapes_are_named(net, shapes, message):
    with pytest.raises(ValueError, match=message):
        net(*(torch.zeros(shape) for shape in shapes))


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="low_fea 'layer9'"):
        build_hdmnet("resnet18", 5, low_fea="layer9")
    with pytest.raises(ValueError, match="kshot_order 'random'"):
        build_hdmnet("resnet18", 5, kshot_order="random")


def test_prior_and_ensemble_stay_in_float32_in_mixed_precision(net, batch):
    types = []
    handle = net.ensemble.shot_weights.register_forward_hook(
        lambda _, inputs, output: types.extend([inputs[0].dtype, output.dtype])
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = net(batch["query"], batch["support"], batch["support_mask"])
    handle.remove()
    tensors = (out.final, out.meta, out.base, out.adjustment, out.prior)
    assert {*types, *(tensor.dtype for tensor in tensors)} == {torch.float32}


def test_a_net_for_another_shot_shares_the_weights(net, batch):
    net.eval()
    other = net.for_shot(1)
    assert net.for_shot(2) is net and net.ensemble.shot == 2 and net.match_scale == 1
    torch.manual_seed(0)
    built = build_hdmnet("resnet18", 5, shot=1, trained_shot=2)
    built.load_state_dict(other.state_dict())
    episode = batch["query"], batch["support"][:, :1], batch["support_mask"][:, :1]
    with torch.no_grad():
        out, expected = other(*episode), built.eval()(*episode)
    assert torch.equal(out.final, expected.final)
    shared = {id(parameter) for parameter in net.parameters()}
    assert {id(parameter) for parameter in other.parameters()} < shared


@pytest.mark.slow
def test_compiled_parts_compute_the_same_and_keep_the_names_of_weights(batch, monkeypatch):
    # What makes code of the graphs is left out, since it takes minutes.
    backend = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    net = random_net(shot=2)
    names = list(net.state_dict())
    inputs = [batch[key] for key in ("query", "support", "support_mask")]
    with torch.no_grad():
        expected = net(*inputs)
        net.compile_parts()
        actual = net(*inputs)
    # Backbone, hierarchy, three matching modules and the decoder.
    assert backend.frame_count == 6
    assert list(net.state_dict()) == names
    torch.testing.assert_close(actual.final, expected.final)
