"""The model gives the outputs and the gradients of the reference, which calls every layer."""

import pytest
import torch

from benchmark.cases import difference
from model import hdmnet_loss
from tests.model.random_nets import in_double, random_episode, random_net

# Backbone, shot, and the kinds of the two episodes' masks.
CASES = [
    ("resnet18", 1, "be"),
    ("resnet18", 3, "bfpibe"),
    ("resnet50", 2, "bpfb"),
    ("vgg16", 1, "bf"),
    ("vgg16", 2, "bepb"),
]
SIZE = (57, 73)


def random_case(backbone, shot, masks):
    return random_net(backbone, shot), random_episode(SIZE, 2, shot, masks)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "shot", "masks"), CASES)
@torch.no_grad()
def test_outputs_of_the_test(backbone, shot, masks):
    net, episode = random_case(backbone, shot, masks)
    fast, expected = net(*episode[:3]), net.reference_forward(*episode[:3])
    assert difference(fast, expected) < 1e-4
    for name in ("base", "adjustment", "prior"):
        torch.testing.assert_close(
            getattr(fast, name), getattr(expected, name), rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(fast.correlations, expected.correlations, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("backbone", "shot"), [("resnet18", 2), ("resnet50", 1), ("vgg16", 1)])
@torch.no_grad()
def test_hooks_fire_on_every_layer(backbone, shot):
    net = random_net(backbone, shot)
    layers = {name for name, module in net.named_modules() if not list(module.children())}
    called = set()
    for name in layers:
        net.get_submodule(name).register_forward_hook(lambda *_, name=name: called.add(name))
    net.reference_forward(*random_episode(SIZE, 1, shot))
    assert called == layers
    with_weights = {name for name, _ in net.named_parameters()}
    assert {name.rpartition(".")[0] for name in with_weights} <= called


def test_wrong_shapes_are_named():
    net = random_net("resnet18", 2)
    with pytest.raises(ValueError, match="built for 2 supports, got 1"):
        net.reference_forward(*random_episode(SIZE))


def losses_and_gradients(net, forward, episode):
    query_mask = episode[2][:, 0].flip(1)
    base_mask = torch.where(query_mask == 1, 1 + episode[3][:, None, None], query_mask)
    losses = hdmnet_loss(forward(*episode), query_mask, base_mask)
    net.zero_grad(set_to_none=True)
    losses.total.backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return torch.stack(losses), gradients


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "shot", "masks"), CASES)
def test_losses_and_gradients_of_a_training_step(backbone, shot, masks):
    net, episode = random_case(backbone, shot, masks)
    net.double().train()
    episode = in_double(episode)
    losses, gradients = losses_and_gradients(net, net, episode)
    expected_losses, expected = losses_and_gradients(net, net.reference_forward, episode)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected.keys()
    assert len(gradients) > 100 and not any(name.startswith("base.") for name in gradients)
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(
            gradients[name], gradient, rtol=1e-4, atol=1e-6 * largest.item(), msg=name
        )
