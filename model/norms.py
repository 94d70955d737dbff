"""Batch norms in training mode, which learn, and in eval mode, which scale and shift."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def learning_norms(net: nn.Module) -> list[Any]:
    """Return the batch norms in training mode, whose running statistics a forward pass changes."""
    return [m for m in net.modules() if isinstance(m, _BatchNorm) and m.training]


def fix_norms(net: nn.Module) -> None:
    """Put all batch norms in eval mode."""
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """Return what a batch norm in eval mode multiplies each channel by, and then adds, both (C,)."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms as they are inside this context.

    Batch norms in training mode still normalise by the statistics of the batch.
    """
    norms = learning_norms(module)
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
