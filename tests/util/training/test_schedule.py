import pytest
import torch

from model import build_hdmnet, build_pspnet
from util.training.schedule import (
    base_optimizer,
    freeze_untrained,
    hdmnet_optimizer,
    poly_rate,
    set_rate,
)


@pytest.fixture
def net():
    with torch.device("meta"):
        return build_hdmnet("resnet18", 5, shot=2)


def ids(parameters):
    return [id(parameter) for parameter in parameters]


@pytest.mark.parametrize("train_kshot_rw", [False, True])
def test_each_trained_parameter_is_in_exactly_one_group(net, train_kshot_rw):
    optimizer = hdmnet_optimizer(net, 1e-4, train_kshot_rw=train_kshot_rw)
    freeze_untrained(net, optimizer)
    grouped = [i for group in optimizer.param_groups for i in ids(group["params"])]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(ids(p for p in net.parameters() if p.requires_grad))
    of_supports = set(ids(net.ensemble.shot_weights.parameters()))
    assert of_supports & set(grouped) == (of_supports if train_kshot_rw else set())


def test_all_but_the_transformer_learns_ten_times_as_fast(net):
    optimizer = hdmnet_optimizer(net, 1e-4)
    slow, fast = optimizer.param_groups
    assert (slow["lr"], fast["lr"]) == (1e-4, pytest.approx(1e-3))
    assert set(ids(net.decoder.parameters())) <= set(ids(slow["params"]))
    assert set(ids(net.merge_query.parameters())) <= set(ids(fast["params"]))
    # As published, the weights of the supports are not trained.
    assert not {*ids(net.ensemble.shot_weights.parameters())} & {*ids(fast["params"])}
    set_rate(optimizer, 5e-5)
    assert (slow["lr"], fast["lr"]) == (5e-5, pytest.approx(5e-4))


def test_base_learner_groups_cover_it_once():
    with torch.device("meta"):
        net = build_pspnet("resnet18", 5)
    optimizer = base_optimizer(net, 0.01, 0.9, 1e-4)
    encoder, head = optimizer.param_groups
    assert (encoder["lr"], head["lr"]) == (0.01, 0.1)
    assert sorted(ids(encoder["params"] + head["params"])) == sorted(ids(net.parameters()))
    assert ids(encoder["params"]) == ids(net.backbone.parameters())
    (head,) = base_optimizer(net, 0.01, 0.9, 1e-4, encoder_ratio=0, head_ratio=3).param_groups
    assert head["lr"] == pytest.approx(0.03)
    assert {*ids(head["params"])}.isdisjoint(ids(net.backbone.parameters()))


def test_poly_rate_decays_to_zero():
    assert poly_rate(1e-4, 1, 10) == pytest.approx(1e-4 * 0.9**0.9)
    assert poly_rate(1e-4, 10, 10) == 0
    assert poly_rate(2.0, 5, 10, power=2) == pytest.approx(0.5)


def test_warmup_rises_from_a_tenth_and_then_joins_the_decay():
    rates = [poly_rate(1.0, it, 100, warmup_steps=10) for it in range(1, 13)]
    assert rates[0] == pytest.approx(0.1 + 0.9 * 0.1)
    assert rates[8] == pytest.approx(0.1 + 0.9 * 0.9)
    assert rates[9] == poly_rate(1.0, 10, 100)


def test_optimisers_have_the_settings_of_the_published_code(net):
    adamw = hdmnet_optimizer(net, 1e-4)
    assert {group["weight_decay"] for group in adamw.param_groups} == {0.01}
    assert {group["betas"] for group in adamw.param_groups} == {(0.9, 0.999)}
    assert {group["ratio"] for group in adamw.param_groups} == {1.0, 10.0}
    sgd = base_optimizer(net.base.requires_grad_(), 0.01, 0.8, 1e-4)
    settings = [(g["momentum"], g["weight_decay"], g["ratio"]) for g in sgd.param_groups]
    assert settings == [(0.8, 1e-4, 1.0), (0.8, 1e-4, 10.0)]


def test_kernels_are_fused_where_that_rounds_as_published():
    """On the CPU, Adam makes large steps of small differences."""
    net = build_hdmnet("resnet18", 1)
    for optimizer, fused in (
        (hdmnet_optimizer(net, 1e-4), False),
        (base_optimizer(net.base, 0.01, 0.9, 1e-4), True),
    ):
        assert {group["fused"] for group in optimizer.param_groups} == {fused}
