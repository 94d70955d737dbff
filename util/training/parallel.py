"""Training in several processes: averaged gradients, and batch norms that learn."""

import warnings
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from model.norms import learning_norms
from util.runtime.distributed import Processes


def distributed(net: nn.Module, processes: Processes) -> nn.Module:
    """Return the module to call in training, which averages gradients over several processes.

    Its batch norms that learn, if it has any, are synchronised where torch can.
    """
    net.train()
    if processes.world_size == 1:
        return net
    if synchronises(processes):
        synchronise(net)
    devices = [processes.device] if processes.device.type == "cuda" else None
    # A dimension of size one may have any stride, and those of 1×1 convolutions differ.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    wrapped = DistributedDataParallel(net, device_ids=devices)
    # Without batch norms that learn no buffer changes: no need to broadcast them in every step. Set
    # here, for the argument has another name in newer releases of torch.
    wrapped.broadcast_buffers = bool(learning_norms(net))
    return wrapped


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over all processes, as DistributedDataParallel does."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    mean = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(mean)
    mean /= dist.get_world_size()
    parts = mean.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


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


def running_statistics(net: nn.Module) -> list[Tensor]:
    """Return the buffers of the batch norms that learn."""
    return [buffer for norm in learning_norms(net) for buffer in norm.buffers(recurse=False)]
