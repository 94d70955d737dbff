"""Processes of a test, forked from a server that has loaded torch and this project once."""

import multiprocessing
import os
import socket

import torch
import torch.multiprocessing as mp

from util.runtime.distributed import start_processes

# A process starts in milliseconds this way; to import torch takes seconds.
multiprocessing.set_forkserver_preload(["train", "train_base"])


def spawn_two(function, *arguments):
    """Run function(processes, *arguments) in two processes on the CPU, joined as by torchrun.

    Raises what one of them raises.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(_run, (2, port, function, arguments), nprocs=2, start_method="forkserver")


def _run(rank, world_size, port, function, arguments):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    with start_processes() as processes:
        function(processes, *arguments)
        processes.barrier()
