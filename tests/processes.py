"""Processes of a test, forked from a server that has loaded torch and this project once.

They start in a fraction of a second; to import torch takes several.
"""

import multiprocessing
import os
import resource
import runpy
import signal
import socket
import sys

import torch
import torch.multiprocessing as mp

from tests.paths import ROOT
from util.runtime.distributed import start_processes

# CUDA cannot be used in a process that is forked from one which has looked for GPUs.
START = "spawn" if torch.cuda.is_available() else "forkserver"
multiprocessing.set_forkserver_preload(["train", "train_base", "util.launch"])


def spawn_two(function, *arguments):
    """Run function(processes, *arguments) in two processes on the CPU, joined as by torchrun.

    Raises what one of them raises.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(_run, (2, port, function, arguments), nprocs=2, start_method=START)


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


def start_python(words, stdout, stderr=None, environment=None, limit=0):
    """Start `python WORDS` in this repository, in a session of its own; returns the process.

    Args:
        words: of the command line: a script or `-m MODULE`, and its arguments.
        stdout, stderr: files that get the output; by default both the same.
        environment: variables that are set beside those of the tests.
        limit: size that no file may exceed, in bytes; 0 for none.
    """
    arguments = (words, stdout, stderr or stdout, os.environ | (environment or {}), limit)
    process = multiprocessing.get_context(START).Process(target=_python, args=arguments)
    process.start()
    return process


def _python(words, stdout, stderr, environment, limit):
    os.setsid()
    os.chdir(ROOT)
    os.environ.clear()
    os.environ |= environment
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    if words[0] == "-m":
        sys.argv = list(map(str, words[1:]))
        sys.modules.pop(words[1], None)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(map(str, words))
        runpy.run_path(str(words[0]), run_name="__main__")
