"""Processes and devices: one process a GPU, launched by torchrun; gloo on the CPU."""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from util.runtime.errors import UserError, is_out_of_memory

TIMEOUT = datetime.timedelta(minutes=30)
LOST_CONNECTION = "lost the connection to another process"


@dataclass(frozen=True)
class Processes:
    """This process among all of them."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, counts: np.ndarray) -> np.ndarray:
        """Sum of an array over all processes, on each of them."""
        if self.world_size == 1:
            return counts
        tensor = torch.from_numpy(np.array(counts))
        dist.all_reduce(tensor)
        return tensor.numpy()

    def gather(self, value: Any) -> list[Any]:
        """The plain values that all processes give, by rank; in other than the main one empty."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size if self.is_main else None
        dist.gather_object(value, values)
        return values or []

    def share(self, tensors: list[torch.Tensor]) -> None:
        """Overwrite the tensors of every process by those of the main one."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.sum(np.zeros(1))

    def describe(self) -> str:
        """One line on what computes."""
        plural = "es" if self.world_size > 1 else ""
        if self.device.type == "cuda":
            return f"{self.world_size} process{plural}, one GPU each"
        gloo = " (gloo)" if self.world_size > 1 else ""
        return f"no CUDA device: {self.world_size} process{plural} on the CPU{gloo}"


@contextmanager
def start_processes(timeout: datetime.timedelta = TIMEOUT) -> Iterator[Processes]:
    """Join the processes that torchrun started, or be the only one.

    Args:
        timeout: how long one waits for the others before it gives up.

    Raises:
        UserError: more processes than GPUs on a machine that has GPUs.
    """
    rank = int(os.environ.get("RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"{os.environ.get('LOCAL_WORLD_SIZE', world_size)} processes were asked for on a "
                f"machine with {torch.cuda.device_count()} GPUs; give at most that many"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if world_size == 1:
        yield Processes(rank, world_size, device)
        return
    # Counts and flags of the host go through gloo: they never wait for the GPU's queue.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    device_id = device if device.type == "cuda" else None
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    # torchrun keeps its store when it starts all processes again, with the addresses of those before.
    store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=device_id,
    )
    try:
        yield Processes(rank, world_size, device)
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        reason = str(error).partition("\n")[0]
        raise UserError(f"process {rank} {LOST_CONNECTION} ({reason})") from error
    # Not after an error: the others may be waiting in a collective, and this would wait for them.
    dist.destroy_process_group()


def _is_lost_connection(error: RuntimeError) -> bool:
    if is_out_of_memory(error):
        return False  # NCCL allocates too
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "nccl", "connection closed", "connection reset")
    )
