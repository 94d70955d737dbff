"""Batch norms: those that learn, and what the others do."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def learning_norms(net: nn.Module) -> list[_BatchNorm]:
    """The batch norms whose running statistics a forward pass changes: those in training mode."""
    return [m for m in net.modules() if isinstance(m, _BatchNorm) and m.training]


def scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """What a batch norm in eval mode multiplies each channel by, and then adds, both (C,)."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms that learn normalise as ever, but do not count the batch."""
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
