"""Activations that are computed again change memory and time, nothing else."""

import pytest
import torch

from model import build_hdmnet, hdmnet_loss


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
