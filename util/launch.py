"""Start a script as several processes with torchrun, and keep its errors readable.

    python -m util.launch PROCESSES SCRIPT [ARGUMENT ...]

Several machines: the same command on each, with NNODES, NODE_RANK and MASTER_ADDR in the
environment. MASTER_PORT chooses the port; on one machine a free one is taken if it is not set.
MAX_RESTARTS=N starts all processes again, up to N times, when one fails; a training then goes on.
torchrun answers a failing process with a page of its own traceback; here the process's own
message stands alone, and its exit code is the command's.
"""

import logging
import os
import signal
import socket
import sys
import tempfile

import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from util.data.list_cache import available_cores
from util.distributed import LOST_CONNECTION
from util.errors import EXIT_CODE, UserError, exits_on_user_error
from util.training.signals import STOPPED

PORT_OF_SEVERAL_NODES = 29500


def _whole_number(name: str, default: int, least: int, most: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or not least <= int(text) <= most:
        raise UserError(f"{name} = {text}: must be a whole number in {least}..{most}")
    return int(text)


def _free_port(address: str) -> int:
    """MASTER_PORT, or any free port; raises UserError if MASTER_PORT is taken."""
    wanted = _whole_number("MASTER_PORT", 0, 0, 65535)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, wanted))
        except OSError as error:
            raise UserError(
                f"MASTER_ADDR = {address}, MASTER_PORT = {wanted}: {error.strerror}"
            ) from None
        return probe.getsockname()[1]


def torchrun_arguments(processes: int) -> list[str]:
    """torchrun's options for `processes` processes on this node, from the environment.

    Raises UserError if the environment's settings are wrong or incomplete.
    """
    nodes = _whole_number("NNODES", 1, 1, 10**6)
    rank = _whole_number("NODE_RANK", 0, 0, nodes - 1)
    address = os.environ.get("MASTER_ADDR")
    if nodes > 1:
        if not address or not os.environ.get("NODE_RANK"):
            raise UserError(
                f"NNODES = {nodes}: set NODE_RANK (0..{nodes - 1}) and MASTER_ADDR (node 0) as well"
            )
        port = _whole_number("MASTER_PORT", PORT_OF_SEVERAL_NODES, 1, 65535)
    else:
        address = address or "127.0.0.1"
        port = _free_port(address)
    return [
        f"--nnodes={nodes}",
        f"--node-rank={rank}",
        f"--nproc-per-node={processes}",
        f"--master-addr={address}",
        f"--master-port={port}",
        f"--max-restarts={_whole_number('MAX_RESTARTS', 0, 0, 1000)}",
    ]


def _explain(error: ChildFailedError) -> int:
    """Say in one line what ended the processes, unless they said it; returns the exit code."""
    rank, failure = _cause(error)
    if failure.exitcode == STOPPED:
        return STOPPED
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        print(f"error: process {rank} was ended by {name}{hint}", file=sys.stderr)
        return 128 - failure.exitcode
    if os.path.isfile(failure.error_file):
        print(f"error: {failure.message}", file=sys.stderr)
    elif failure.exitcode != EXIT_CODE:
        print(
            f"error: process {rank} failed with exit code {failure.exitcode}; see above",
            file=sys.stderr,
        )
    return failure.exitcode


def _cause(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """The failure that made the others fail: a killed process, else the first with its own reason."""

    def order(item: tuple[int, ProcessFailure]) -> tuple[bool, bool, int]:
        _, failure = item
        return (
            failure.exitcode >= 0 or failure.exitcode == -signal.SIGTERM,
            LOST_CONNECTION in str(failure.message),
            failure.timestamp,
        )

    return min(error.failures.items(), key=order)


@exits_on_user_error
def main(argv=None) -> None:
    """Run the command line `argv` (the process's own if None); exits with the script's code."""
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) < 2 or not argv[0].isdecimal() or int(argv[0]) < 1:
        raise UserError("usage: python -m util.launch PROCESSES SCRIPT [ARGUMENT ...]")
    processes = int(argv[0])
    if torch.cuda.is_available() and torch.cuda.device_count() < processes:
        raise UserError(f"GPUS = {processes}: this machine has {torch.cuda.device_count()}")
    options = torchrun_arguments(processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="hdmnet-") as logs:
        try:
            torchrun.run(torchrun.parse_args([*options, f"--log-dir={logs}", *argv[1:]]))
        except ChildFailedError as error:
            sys.exit(_explain(error))
        except SignalException:
            sys.exit(STOPPED)


if __name__ == "__main__":
    main()
