"""What the model holds in memory: activations that are computed again, and matching and prior."""

from importlib import import_module

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import build_hdmnet, hdmnet_loss
from model.masked import MaskGrids
from model.matching import MatchingLayer, SupportTokens
from model.prior import similarity_prior, unit_rows


def step(checkpoint_activations, fix_bn=True):
    """The net, its gradients, and the activations kept for the backward pass, in bytes."""
    torch.manual_seed(0)
    net = build_hdmnet(
        backbone="resnet18",
        base_classes=3,
        shot=2,
        fix_bn=fix_bn,
        checkpoint_activations=checkpoint_activations,
    ).train()
    query, support = torch.randn(2, 3, 65, 65), torch.randn(2, 2, 3, 65, 65)
    mask = torch.zeros(2, 2, 65, 65, dtype=torch.long)
    mask[..., 16:48, 16:48] = 1
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net(query, support, mask, torch.zeros(2, dtype=torch.long))
        loss = hdmnet_loss(out, mask[:, 0], mask[:, 0]).total
    size = sum(kept.values())
    loss.backward()
    return net, {n: p.grad for n, p in net.named_parameters() if p.grad is not None}, size


@pytest.mark.slow
@pytest.mark.parametrize("fix_bn", [True, False])
def test_computing_activations_again_keeps_less_and_gives_the_same_gradients(fix_bn):
    plain_net, plain, plain_size = step(False, fix_bn)
    again_net, again, again_size = step(True, fix_bn)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7)
    assert again_size < 0.6 * plain_size
    # Running statistics count each batch once.
    buffers = dict(again_net.named_buffers())
    for name, buffer in plain_net.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=1e-5, atol=1e-7)
    norms = [module for module in again_net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert all(norm.momentum > 0 for norm in norms)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("prior.CPU_TILE", 2_097_152), ("prior.GPU_TILE", 67_108_864)),
        *(("query_softmax.CPU_TILE", 1_048_576), ("query_softmax.GPU_TILE", 67_108_864)),
        *(("frozen.CPU_GATHERED", 4_194_304), ("frozen.GPU_GATHERED", 67_108_864)),
        *(("frozen.CPU_PIXELS", 262_144), ("frozen.CPU_CHANNELS", 512)),
        ("query_softmax.SAFE_SCORE", 40.0),
    ],
)
def test_what_is_computed_at_once_is_as_large_as_was_fastest(name, expected):
    module, constant = name.split(".")
    assert getattr(import_module(f"model.{module}"), constant) == expected


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_matching_and_prior_hold_no_matrix_of_query_by_support_positions(monkeypatch):
    for module in ("prior", "query_softmax"):
        monkeypatch.setattr(f"model.{module}.CPU_TILE", 2**14)
    torch.manual_seed(0)
    side, shot, channels = 24, 4, 16
    count = side**2
    (positions,) = MaskGrids(torch.ones(shot, side, side), [(side, side)]).positions
    layer = MatchingLayer(channels)
    query = torch.randn(1, channels, side, side)
    gathered = torch.randn(shot, count, channels, requires_grad=True)
    with LargestTensor() as largest:
        similarity_prior(query.flatten(2).transpose(1, 2), unit_rows(gathered.detach()[None]))
        tokens = layer.attention.encode_support(layer.norm1(gathered), positions)
        tokens = SupportTokens(*(tensor[None] for tensor in tokens))
        layer(query, tokens, torch.rand(1, 2, side, side))[0].sum().backward()
    assert gathered.grad.any()
    assert largest.elements < count * shot * count / 4
