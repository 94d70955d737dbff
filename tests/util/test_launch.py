"""The launcher: torchrun's options from the environment, and readable ends of its processes."""

import os
import socket
import subprocess
import sys

import pytest

from tests.paths import ROOT
from util.errors import UserError
from util.launch import torchrun_arguments

NAMES = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


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
def test_the_processes_end_with_one_line_and_their_code(tmp_path, how, code, stderr):
    script = tmp_path / "a worker.py"
    script.write_text(WORKER)
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-m", "util.launch", "2", str(script), how],
        cwd=ROOT,
        env=env | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (code, stderr)
    if how == "fine":
        assert sorted(done.stdout.split("\n")) == ["", "rank 0 of 2", "rank 1 of 2"]
    assert [path.name for path in tmp_path.iterdir()] == ["a worker.py"]


def test_the_usage_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "util.launch", "x"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "error: usage: python -m util.launch PROCESSES SCRIPT [ARGUMENT ...]\n"
