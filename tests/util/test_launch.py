"""The launcher: torchrun's options from the environment, and readable ends of its processes."""

import json
import os
import signal
import socket
import time

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from tests.paths import ROOT
from tests.processes import start_python
from util.launch import _explain, main, torchrun_arguments
from util.runtime.distributed import LOST_CONNECTION
from util.runtime.errors import UserError
from util.training.signals import STOPPED

NAMES = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "STOP_TIMEOUT")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def options(processes=2):
    return dict(word.lstrip("-").split("=") for word in torchrun_arguments(processes))


def test_one_node_gets_a_port_that_can_be_bound():
    found = options(3)
    assert (found["nnodes"], found["node-rank"], found["nproc-per-node"]) == ("1", "0", "3")
    with socket.socket() as probe:
        probe.bind((found["master-addr"], int(found["master-port"])))


def test_the_wanted_port_is_taken_or_refused(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("MASTER_PORT", port)
        with pytest.raises(UserError, match=f"MASTER_PORT = {port}: "):
            torchrun_arguments(2)
    assert options()["master-port"] == port


STEP = {
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_NODEID": "2",
    "SLURM_JOB_ID": "1234567",
}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[03-05]", "gpu03"),
        ("a-[7,9-10].cluster,b1", "a-7.cluster"),
        ("login1,gpu[1-2]", "login1"),
        ("r[1-2]n[03-04].cluster,b1", "r1n03.cluster"),
    ],
)
def test_a_step_of_slurm_needs_no_settings(monkeypatch, nodes, first):
    with monkeypatch.context() as patch:
        for name, value in (STEP | {"SLURM_STEP_NODELIST": nodes}).items():
            patch.setenv(name, value)
        patch.setattr(os, "environ", os.environ.copy())
        found = options()
        assert (found["nnodes"], found["node-rank"], found["master-addr"]) == ("3", "2", first)
        assert found["master-port"] == "24567"
        # What is set by hand wins.
        os.environ |= {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "x", "MASTER_PORT": "5"}
        assert options()["nnodes"] == "2" and options()["master-addr"] == "x"


@pytest.mark.parametrize("job", ["", "job", None])
def test_a_step_of_slurm_without_the_number_of_its_job_starts_too(monkeypatch, job):
    with monkeypatch.context() as patch:
        for name, value in (STEP | {"SLURM_STEP_NODELIST": "a[1-3]"}).items():
            patch.setenv(name, value)
        patch.delenv("SLURM_JOB_ID") if job is None else patch.setenv("SLURM_JOB_ID", job)
        patch.setattr(os, "environ", os.environ.copy())
        assert options()["master-port"] == "20000"


def test_a_step_of_slurm_has_one_task_on_each_node(monkeypatch):
    for name, value in (STEP | {"SLURM_STEP_NUM_TASKS": "12"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"12 tasks on 3 nodes.*srun --ntasks-per-node=1"):
        options()


def test_several_nodes_agree_on_address_and_port(monkeypatch):
    monkeypatch.setenv("NNODES", "3")
    monkeypatch.setenv("NODE_RANK", "2")
    monkeypatch.setenv("MASTER_ADDR", "node-a")
    found = options()
    assert found == {
        "nnodes": "3",
        "node-rank": "2",
        "nproc-per-node": "2",
        "master-addr": "node-a",
        "master-port": "29500",
        "max-restarts": "0",
    }


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"NNODES": "two"}, "NNODES = two: must be a whole number"),
        ({"NNODES": "0"}, "NNODES = 0: must be a whole number"),
        ({"NNODES": "2", "NODE_RANK": "2"}, r"NODE_RANK = 2: must be a whole number in 0\.\.1"),
        ({"NNODES": "2", "NODE_RANK": "1"}, "set NODE_RANK .* and MASTER_ADDR"),
        ({"NNODES": "2", "MASTER_ADDR": "a"}, "set NODE_RANK .* and MASTER_ADDR"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT = 70000: must be a whole number"),
    ],
)
def test_wrong_settings_are_named(monkeypatch, settings, text):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=text):
        torchrun_arguments(2)


WORKER = """
import json, os, signal, sys, time
how = sys.argv[1]
if how == "fine":
    # one write, since two processes share the pipe
    sys.stdout.write(f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}\\n")
elif os.environ["RANK"] == "0":
    time.sleep(30)
elif how == "says":
    print("error: said by the script", file=sys.stderr, flush=True)
    sys.exit(2)
elif how == "replies":
    with open(os.environ["TORCHELASTIC_ERROR_FILE"], "w") as reply:
        json.dump({"message": "handed to the launcher", "timestamp": 1}, reply)
    sys.exit(2)
elif how == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
else:
    sys.exit(5)
"""


def launched(folder, script, *words, **environment):
    """Start the launcher with a script of two processes; returns it and its two output files."""
    path, out, err = (folder / name for name in ("a script.py", "out", "err"))
    path.write_text(script)
    out.touch()
    words = ["-m", "util.launch", "2", path, *words]
    environment["PYTHONPATH"] = str(ROOT)
    return start_python(words, out, err, environment, ranks=False), out, err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code", "stderr"),
    [
        ("fine", 0, ""),
        ("says", 2, "error: said by the script\n"),
        ("replies", 2, "error: handed to the launcher\n"),
        ("dies", 137, "error: process 1 was ended by SIGKILL (out of memory?)\n"),
        ("fails", 5, "error: process 1 failed with exit code 5; see above\n"),
    ],
)
def test_the_processes_end_with_one_line_and_their_code(tmp_path, monkeypatch, how, code, stderr):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    launcher, out, err = launched(tmp_path, WORKER, how, TMPDIR=str(temporary))
    launcher.join(120)
    assert (launcher.exitcode, err.read_text()) == (code, stderr)
    if how == "fine":
        assert sorted(out.read_text().split("\n")) == ["", "rank 0 of 2", "rank 1 of 2"]
    assert list(temporary.iterdir()) == []


def failure(path, code, message=None, timestamp=100):
    """A failure as torchrun finds it; `message` is what the process left for the launcher."""
    file = path / f"{len(list(path.iterdir()))}.json"
    if message is not None:
        file.write_text(json.dumps({"message": message, "timestamp": timestamp}))
    found = ProcessFailure(0, 1, code, str(file))
    found.timestamp = timestamp
    return found


LOST = f"process 0 {LOST_CONNECTION} (closed)"
WRONG = (2, "key = 3: unknown key")
DAMAGED = (2, "image a.jpg is damaged")


@pytest.mark.parametrize(
    ("failures", "code", "line"),
    [
        ([WRONG, WRONG], 2, "key = 3: unknown key"),
        ([WRONG, (-signal.SIGTERM,)], 2, "key = 3: unknown key"),
        ([(2, LOST), DAMAGED], 2, "process 1: image a.jpg is damaged"),
        ([(STOPPED, None, 101), DAMAGED], 2, "process 1: image a.jpg is damaged"),
        ([(-signal.SIGKILL, None, 130), DAMAGED], 2, "process 1: image a.jpg is damaged"),
        ([(2, LOST), (2, LOST.replace("0", "1"))], 2, LOST),
        (
            [(2, LOST), (-signal.SIGKILL, None, 101)],
            137,
            "process 1 was ended by SIGKILL (out of memory?)",
        ),
    ],
)
def test_the_cause_is_told_and_the_process_only_if_it_is_its_own(
    tmp_path, capsys, failures, code, line
):
    found = {rank: failure(tmp_path, *values) for rank, values in enumerate(failures)}
    assert _explain(found) == code
    assert capsys.readouterr().err == f"error: {line}\n"


STOPPING = """
import os, signal, sys, time
from util.runtime.errors import UserError, exits_on_user_error
how = sys.argv[1:][int(os.environ["RANK"])]
def stop(number, frame):
    time.sleep(60 if how == "hangs" else 0.5)
    if how == "replies":
        raise UserError("the disk is full")
    if how == "interrupted":
        raise KeyboardInterrupt
    sys.exit({"saves": 75, "ends": 128 + number, "finishes": 0}[how])
if how != "dies":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
@exits_on_user_error
def main():
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
    time.sleep(60)
try:
    main()
except KeyboardInterrupt:
    sys.exit(130)
"""
TOO_SOON = "processes were ended before they could save; a larger STOP_TIMEOUT gives them more time"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hows", "number", "code", "stderr"),
    [
        (("saves", "saves"), signal.SIGTERM, STOPPED, ""),
        (("ends", "ends"), signal.SIGINT, 130, ""),
        (("interrupted", "interrupted"), signal.SIGINT, 130, ""),
        (("finishes", "finishes"), signal.SIGTERM, 0, ""),
        (("saves", "replies"), signal.SIGTERM, 2, "error: the disk is full\n"),
        (("saves", "dies"), signal.SIGTERM, 143, f"error: SIGTERM: {TOO_SOON}\n"),
        (("saves", "hangs"), signal.SIGINT, 130, f"error: SIGINT: {TOO_SOON}\n"),
    ],
)
def test_after_a_signal_it_waits_and_says_whether_all_was_saved(
    tmp_path, hows, number, code, stderr
):
    launcher, out, err = launched(tmp_path, STOPPING, *hows, STOP_TIMEOUT="2")
    while out.read_text() != "ready\n" * 2:
        assert launcher.exitcode is None
        time.sleep(0.02)
    started = time.monotonic()
    os.kill(launcher.pid, number)
    launcher.join(60)
    assert (err.read_text(), launcher.exitcode) == (stderr, code)
    # Older releases of torch give them 30 seconds.
    newer = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)
    assert time.monotonic() - started < (15 if newer else 45)


def test_the_usage_is_one_line(error_line):
    usage = "error: usage: python -m util.launch PROCESSES SCRIPT [ARGUMENT ...]\n"
    assert error_line(main, ["x"]) == usage
