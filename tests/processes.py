"""Two processes of a test, joined as torchrun would join them."""

import os
import socket

import torch
import torch.multiprocessing as mp

from util.runtime.distributed import start_processes


def spawn_two(function, *arguments):
    """Run function(processes, *arguments) in two processes on the CPU; raises what one raises."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_run, (2, port, function, arguments), nprocs=2)


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
