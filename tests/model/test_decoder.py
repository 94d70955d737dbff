"""The decoder's convolutions, multiplied out, compute what they compute in turn."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.decoder import LinearBottleneck


def random_bottleneck(normalised):
    torch.manual_seed(0)
    layers = LinearBottleneck(6, 3, normalised).double()
    for norm in layers:
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.running_var):
                nn.init.uniform_(tensor, 0.5, 2)
            for tensor in (norm.bias, norm.running_mean):
                nn.init.uniform_(tensor, -1, 1)
    return layers


def output_and_gradients(layers, forward, x):
    x = x.clone().requires_grad_()
    out = forward(x)
    weights = dict(layers.named_parameters())
    gradients = torch.autograd.grad(out.sin().sum(), [x, *weights.values()])
    return out, dict(zip(["x", *weights], gradients, strict=True))


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("size", [(5, 7), (2, 1), (1, 1)])
def test_with_fixed_norms(normalised, size):
    layers = random_bottleneck(normalised).eval()
    assert len(layers) == (6 if normalised else 5)
    x = torch.randn(2, 6, *size).double()
    out, gradients = output_and_gradients(layers, layers, x)
    expected, plain = output_and_gradients(layers, lambda x: nn.Sequential.forward(layers, x), x)
    assert out.shape == (2, 3, *size)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients, plain)


def test_norms_that_learn_see_each_map_between():
    layers, plain = random_bottleneck(True).train(), nn.Sequential(*random_bottleneck(True)).train()
    x = torch.randn(2, 6, 5, 7).double()
    torch.testing.assert_close(layers(x), plain(x))
    torch.testing.assert_close(layers.state_dict(), plain.state_dict())
    assert layers[1].num_batches_tracked == 1


def test_mixed_precision_multiplies_out_in_full():
    layers = random_bottleneck(True).float().eval()
    x = torch.randn(2, 6, 5, 7)
    with torch.no_grad():
        weight, constant, bias = layers._multiplied_out()
        with torch.autocast("cpu", torch.bfloat16):
            out = layers(x)
            inside = F.conv2d(torch.ones(1, 1, 5, 7), constant, padding=1)
            expected = F.conv2d(x, weight, bias, padding=1) + inside
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)
