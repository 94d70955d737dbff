"""Batch norms that learn, in one process and in several."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from model.norms import learning_norms
from util.runtime.distributed import Processes
from util.runtime.errors import UserError


def running_statistics(net: nn.Module) -> list[Tensor]:
    """Return the buffers of `learning_norms`."""
    return [buffer for norm in learning_norms(net) for buffer in norm.buffers(recurse=False)]


def synchronises(processes: Processes) -> bool:
    """Return whether batch norms that learn use the batches of all processes, as torch can on CUDA.

    Elsewhere each process normalises by its own batch, and the running statistics are those of
    process 0.
    """
    return processes.world_size > 1 and processes.device.type == "cuda"


def synchronise(net: nn.Module) -> None:
    """Replace every batch norm that learns by a SyncBatchNorm."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and child.training:
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))


@contextmanager
def several_values_a_channel() -> Iterator[None]:
    """Explain in one line, around a forward pass, a batch norm that got too little.

    Raises:
        UserError: a batch norm that learns got one value a channel, which has no variance.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "a batch norm that learns got one value a channel, which has no variance; give each "
            "process two items at a time: a higher batch_size (stage 1: base_batch_size) or a lower "
            "grad_accum"
        ) from error
