"""Processes and devices: one process a GPU, launched by torchrun; gloo on the CPU."""

import datetime
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from util.runtime.device import choose_device
from util.runtime.errors import UserError, is_out_of_memory

TIMEOUT = datetime.timedelta(minutes=30)
START_TIMEOUT = datetime.timedelta(minutes=10)  # until all processes have started
LOST_CONNECTION = "lost the connection to another process"
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # of torchrun
_UNSET = "to run one process, unset RANK, WORLD_SIZE and LOCAL_RANK"


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
        """Return the sum of an array over all processes, on each of them."""
        if self.world_size == 1:
            return counts
        tensor = torch.from_numpy(np.array(counts))
        dist.all_reduce(tensor)
        return tensor.numpy()

    def gather(self, value: Any) -> list[Any]:
        """Return the plain values of all processes by rank; an empty list unless the main one."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size if self.is_main else None
        dist.gather_object(value, values)
        return values or []

    def agree(self, value: Any) -> bool:
        """Return, on all processes the same, whether plain values are the same on all of them."""
        alike = len({repr(one) for one in self.gather(value)}) == 1  # on the main process
        return bool(self.sum(np.array([alike], np.int64))[0])

    def share(self, tensors: list[torch.Tensor]) -> None:
        """Overwrite the tensors of every process by those of the main one."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.sum(np.zeros(1))

    def leave(self) -> None:
        """Close the connections to the others, where all processes do so at the same point."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def number(self) -> str:
        """Their number with its noun, for messages."""
        return f"{self.world_size} process{'es' * (self.world_size > 1)}"

    def describe(self) -> str:
        """Return one line on what computes."""
        if self.device.type == "cuda":
            return f"{self.number}, one GPU each" if self.world_size > 1 else "1 process on a GPU"
        return f"{self.number} on the CPU" + " (gloo)" * (self.world_size > 1)


@contextmanager
def start_processes(timeout: datetime.timedelta = TIMEOUT) -> Iterator[Processes]:
    """Join the processes that torchrun started, or be the only one.

    Args:
        timeout: how long a process waits for the others in what they compute together.

    Raises:
        UserError: there are fewer GPUs than processes, torch cannot use the GPU, the variables of
            torchrun are incomplete, or the other processes do not come.
    """
    rank, world_size, local_rank = _read_place()
    device = choose_device(local_rank)
    processes = Processes(rank, world_size, device)
    if world_size == 1:
        yield processes
        return
    _join(processes, timeout)
    try:
        yield processes
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        reason = str(error).partition("\n")[0]
        raise UserError(f"process {rank} {LOST_CONNECTION} ({reason})") from error
    except (SystemExit, KeyboardInterrupt):
        # A signal ended this process alone: gloo closes its connections at once, NCCL would wait.
        if device.type == "cpu":
            processes.leave()
        raise
    # Not after an error: what this process has begun with the others may have no end.
    processes.leave()


def _read_place() -> tuple[int, int, int]:
    """Return rank, number of processes and local rank; raises UserError where variables are missing.

    Some may be left from another command.
    """
    given = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    if given.get("WORLD_SIZE", "1") == "1" and given.get("RANK", "0") == "0":
        return 0, 1, 0
    settings = ", ".join(f"{name} = {value}" for name, value in given.items())
    missing = [name for name in _VARIABLES if name not in given]
    if missing:
        raise UserError(
            f"the environment sets {settings}, but not {', '.join(missing)}; {_UNSET}, start "
            "several by torchrun or `python -m util.launch`"
        )
    numbers = [given[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if not all(number.isdecimal() for number in numbers) or int(numbers[0]) >= int(numbers[1]):
        raise UserError(f"the environment sets {settings}: these are no ranks; {_UNSET}")
    return int(numbers[0]), int(numbers[1]), int(numbers[2])


def _join(processes: Processes, timeout: datetime.timedelta) -> None:
    """Connect this process to the others."""
    rank, world_size = processes.rank, processes.world_size
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        settings = f"RANK = {rank}, WORLD_SIZE = {world_size}"
        print(f"{settings}: waiting for the other processes at {where}", file=sys.stderr)
    try:
        store, *_ = next(dist.rendezvous("env://", timeout=START_TIMEOUT))
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"RANK = {rank}, WORLD_SIZE = {world_size}: cannot meet the other processes at {where} "
            f"({reason}); {_UNSET}"
        ) from error
    # torchrun keeps its store when it starts all processes again, with the addresses of those before.
    store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    cuda = processes.device.type == "cuda"
    dist.init_process_group(
        # Counts and flags of the host go through gloo: they never wait for the GPU's queue.
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=processes.device if cuda else None,
    )


def _is_lost_connection(error: RuntimeError) -> bool:
    if is_out_of_memory(error):
        return False  # NCCL allocates too
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "nccl", "connection closed", "connection reset")
    )
