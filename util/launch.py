"""Start a script as several processes with torchrun, and keep its errors readable.

    python -m util.launch PROCESSES SCRIPT [ARGUMENT ...]

Several machines: the same command on each, with NNODES, NODE_RANK and MASTER_ADDR in the
environment; in a step of Slurm with one task on each node they are known. MASTER_PORT chooses the
port; on one machine a free one is taken if it is not set.
MAX_RESTARTS=N starts all processes again, up to N times, when one fails; a training then continues.
After SIGTERM or Ctrl-C the processes have STOP_TIMEOUT seconds (300) to finish what they save; where
torch is older than 2.12 they have 30. torchrun answers a failing process with a page of its own
traceback; this command prints only the message of the process, and exits with its code.
"""

import json
import logging
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from util.runtime.device import count_gpus
from util.runtime.distributed import LOST_CONNECTION
from util.runtime.errors import EXIT_CODE, UserError, exits_on_user_error
from util.runtime.machine import available_cores
from util.training.signals import STOPPED

PORT_OF_SEVERAL_NODES = 29500
STOP_TIMEOUT = 300  # seconds for the iteration and its checkpoint
DEATH_TIMEOUT = 30  # seconds, after which torchrun kills the others of a process that died


def _whole_number(name: str, default: int, least: int, most: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or not least <= int(text) <= most:
        raise UserError(f"{name} = {text}: must be a whole number in {least}..{most}")
    return int(text)


def torchrun_arguments(processes: int) -> list[str]:
    """Return torchrun's options for `processes` processes on this node, from the environment.

    Raises UserError if the environment's settings are wrong or incomplete, or the port is taken.
    """
    _read_slurm()
    nodes = _whole_number("NNODES", 1, 1, 10**6)
    rank = _whole_number("NODE_RANK", 0, 0, nodes - 1)
    address = os.environ.get("MASTER_ADDR")
    if nodes == 1:
        address = address or "127.0.0.1"
        port = _free_port(address, _whole_number("MASTER_PORT", 0, 0, 65535))
    elif address and os.environ.get("NODE_RANK"):
        port = _whole_number("MASTER_PORT", PORT_OF_SEVERAL_NODES, 1, 65535)
    else:
        raise UserError(
            f"NNODES = {nodes}: set NODE_RANK (0..{nodes - 1}) and MASTER_ADDR (node 0) as well"
        )
    return [
        f"--nnodes={nodes}",
        f"--node-rank={rank}",
        f"--nproc-per-node={processes}",
        f"--master-addr={address}",
        f"--master-port={port}",
        f"--max-restarts={_whole_number('MAX_RESTARTS', 0, 0, 1000)}",
    ]


def _read_slurm() -> None:
    """Set what torchrun has to know in a step of Slurm on several nodes, unless NNODES is set.

    Raises:
        UserError: the step has another number of tasks than nodes.
    """
    nodes = os.environ.get("SLURM_STEP_NUM_NODES", "1")
    if nodes == "1" or os.environ.get("NNODES"):
        return
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", nodes)
    if tasks != nodes:
        raise UserError(
            f"Slurm started {tasks} tasks on {nodes} nodes; one on each node starts its processes: "
            "srun --ntasks-per-node=1"
        )
    # Such as "gpu[03-05,09],login1" or "a-[1-2].cluster": the first node.
    first = re.match(
        r"([^\[,]+)(?:\[(\d+)[^]]*\]([^,]*))?", os.environ.get("SLURM_STEP_NODELIST", "")
    )
    os.environ["NNODES"] = nodes
    os.environ.setdefault("NODE_RANK", os.environ.get("SLURM_NODEID", ""))
    os.environ.setdefault("MASTER_ADDR", "".join(filter(None, first.groups())) if first else "")
    # Another port for each job, since they may share a node.
    job = int(os.environ.get("SLURM_JOB_ID", "0"))
    os.environ.setdefault("MASTER_PORT", str(20000 + job % 10000))


def _free_port(address: str, wanted: int) -> int:
    """Return the wanted port if it is free, for 0 any free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, wanted))
        except OSError as error:
            raise UserError(
                f"MASTER_ADDR = {address}, MASTER_PORT = {wanted}: {error.strerror}"
            ) from None
        return probe.getsockname()[1]


def _end(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _explain_stop(number: signal.Signals, logs: str, processes: int) -> int:
    """Say in one line if not all processes ended in order after a signal; returns the exit code.

    Args:
        number: the signal.
        logs: torchrun's folder, where each process of the last start has left how it ended.
        processes: their number.
    """
    starts = sorted(Path(logs).glob("*/attempt_*"), key=lambda path: int(path.name[8:]))
    paths = [path for start in starts[-1:] for path in start.glob("*/error.json")]
    replies = [json.loads(path.read_text()) for path in paths]
    for reply in replies:
        if reply["message"]:
            return _end(reply["message"], EXIT_CODE)
    if len(replies) < processes:
        return _end(
            f"{number.name}: processes were ended before they could save; a larger STOP_TIMEOUT "
            "gives them more time",
            128 + number,
        )
    codes = {reply["exitcode"] for reply in replies}
    return codes.pop() if codes in ({0}, {STOPPED}) else 128 + number


def _explain(failures: dict[int, ProcessFailure]) -> int:
    """Say in one line what ended the processes, unless they said it; returns the exit code."""
    rank, failure = _cause(failures)
    code, message = failure.exitcode, str(failure.message)
    if code == STOPPED:
        return code
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return _end(f"process {rank} was ended by {name}{hint}", 128 - code)
    if failure.message and os.path.isfile(failure.error_file):
        # Named where the failures differ: all processes meet a wrong setting in time.
        others = [other for other in failures.values() if other.exitcode != -signal.SIGTERM]
        differ = any(other.message != failure.message for other in others)
        own = differ and LOST_CONNECTION not in message
        return _end(f"process {rank}: {message}" if own else message, code)
    if code != EXIT_CODE:
        return _end(f"process {rank} failed with exit code {code}; see above", code)
    return code


def _cause(failures: dict[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """Return the failure that caused the others: a killed process, else the first own reason."""
    first = min(failure.timestamp for failure in failures.values())

    def order(item: tuple[int, ProcessFailure]) -> tuple[bool, bool, int]:
        _, failure = item
        by_torchrun = (
            failure.exitcode == -signal.SIGTERM or failure.timestamp - first >= DEATH_TIMEOUT
        )
        return (
            failure.exitcode >= 0 or by_torchrun,
            LOST_CONNECTION in str(failure.message),
            failure.timestamp,
        )

    return min(failures.items(), key=order)


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv` (this process's if None); exits with the code of the script."""
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) < 2 or not argv[0].isdecimal() or int(argv[0]) < 1:
        raise UserError("usage: python -m util.launch PROCESSES SCRIPT [ARGUMENT ...]")
    processes = int(argv[0])
    gpus = count_gpus()
    if 0 < gpus < processes:
        raise UserError(f"GPUS = {processes}: this machine has {gpus}")
    options = torchrun_arguments(processes)
    timeout = _whole_number("STOP_TIMEOUT", STOP_TIMEOUT, 1, 10**6)
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(timeout)  # from torch 2.12 on
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    logging.disable(logging.ERROR)  # torchrun's loggers have levels of their own
    with tempfile.TemporaryDirectory(prefix="hdmnet-") as logs:
        try:
            torchrun.run(torchrun.parse_args([*options, f"--log-dir={logs}", *argv[1:]]))
        except ChildFailedError as error:
            sys.exit(_explain(error.failures))
        except SignalException as stop:
            sys.exit(_explain_stop(signal.Signals(stop.sigval), logs, processes))


if __name__ == "__main__":
    main()
