"""Processes of a test, forked from a server that has loaded torch and this project once.

They start in a fraction of a second; to import torch takes several.
"""

import logging
import multiprocessing
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

from tests.paths import ROOT
from util.runtime.distributed import start_processes

# CUDA cannot be used in a process that is forked from one which has looked for GPUs.
START = "spawn" if torch.cuda.is_available() else "forkserver"
COMMANDS = ("train", "train_base", "test", "predict", "util.launch")
# Loaded for models of timm, and for repeatable kernels.
LATER = ("model.timm_backbone", "torch._inductor.config")
multiprocessing.set_forkserver_preload([*COMMANDS, *LATER])
NO_PROCESS = 2**22 + 1  # beyond the largest process id of Linux


def free_port():
    """A port of this machine that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def spawn_two(function, *arguments):
    """Run function(processes, *arguments) in two processes on the CPU, joined as by torchrun.

    Raises what one of them raises.
    """
    arguments = 2, free_port(), function, arguments
    mp.start_processes(_run, arguments, nprocs=2, start_method=_ready_to_start())


def _ready_to_start():
    """Return how processes start, after starting their server where it finds what it has to load.

    In another folder it could take the package "tests" that mmsegmentation installs for this one.
    """
    if START == "forkserver":
        folder = os.getcwd()
        os.chdir(ROOT)
        try:
            forkserver.ensure_running()
        finally:
            os.chdir(folder)
    return START


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


def start_python(
    words, stdout, stderr=None, environment=None, limit=0, folder=ROOT, ranks=True, prepare=bool
):
    """Start `python WORDS` in a session of its own; returns the process.

    Args:
        words: of the command line: a script or `-m MODULE`, and its arguments.
        stdout, stderr: files that get the output; by default both the same.
        environment: variables that are set beside those of the tests.
        limit: size that no file may exceed, in bytes; 0 for none.
        folder: that it runs in, by default this repository.
        ranks: whether the processes that `-m util.launch` starts are forked, too.
        prepare: called in the process before the command; a function of a module.
    """
    environment = os.environ | (environment or {})
    arguments = (words, environment, (stdout, stderr or stdout), limit, folder, ranks, prepare)
    context = multiprocessing.get_context(_ready_to_start())
    process = context.Process(target=_python, args=arguments)
    process.start()
    return process


def _python(words, environment, outputs=(), limit=0, folder=ROOT, ranks=False, prepare=bool):
    words = [str(word) for word in words]
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ |= environment
    os.fsync = lambda _: None  # as in tests/conftest.py
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    if ranks and START == "forkserver":
        SubprocessHandler._popen = _Rank
    # Loaders start their processes as in a command, not as this one was started.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    prepare()
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.modules.pop(words[1], None)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


class _Rank:
    """What torchrun takes for the Popen of a process: one that is forked from the launcher."""

    def __init__(self, arguments, environment):
        words = arguments[arguments.index("-u") + 1 :]
        fork = multiprocessing.get_context("fork")
        self._process = fork.Process(target=_rank, args=(words, environment))
        self._process.start()
        self.pid = self._process.pid
        # torchrun ends the group of a process, which is there a moment after the process.
        while self.poll() is None and os.getpgid(self.pid) != self.pid:
            time.sleep(0.001)

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("a process of torchrun", timeout)
        return self.poll()


def _rank(words, environment):
    # What the launcher has set up for itself.
    logging.disable(logging.NOTSET)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _python(words, environment)


def is_running(process):
    """Whether a process is there, and not only because nobody asked how it ended."""
    try:
        state = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def wait_for_end(processes):
    """Wait until processes of these ids have ended, and require it."""
    until = time.monotonic() + 60
    while any(map(is_running, processes)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(map(is_running, processes))
