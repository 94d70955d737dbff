"""A small training of stage 2 to do things to: `benchmark.faults` and its tests."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from util.checkpoints.io import read_checkpoint
from util.demo_data import write_demo
from util.runtime.files import ROOT

EPOCHS, SAVE_ITERS = 6, 4
# Of the table that a training logs: epoch/epochs, iteration/iterations.
_ITERATION = re.compile(r"^\S+ \S+ +\d+/\d+ +(\d+)/(\d+) ", re.MULTILINE)
_RESUMED = re.compile(r"resumed from .*: (\d+) epochs and (\d+) iterations done")
_TOTAL = re.compile(r"accumulated\), (\d+) iterations")
_LIMIT = 240  # seconds until a run counts as hanging


class Run:
    """One start of the training command, its output in a file."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str], limit: int = 0):
        self.log = log
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(_limit_file_size, limit) if limit else None,
            )

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def iteration(self) -> int:
        """The last iteration that was reported, 0 before the first."""
        found = _ITERATION.findall(self.text)
        return int(found[-1][0]) if found else 0

    def has_begun(self) -> bool:
        """Whether it has said how many iterations an epoch has."""
        return _TOTAL.search(self.text) is not None

    def resumed_at(self) -> int:
        """Iterations done at the checkpoint that this run went on from."""
        found, total = _RESUMED.search(self.text), _TOTAL.search(self.text)
        return int(found[1]) * int(total[1]) // EPOCHS + int(found[2]) if found and total else 0

    def wait_for(self, happened: Callable[[], bool]) -> bool:
        """Wait until something happened; False if the run ended before."""
        deadline = time.monotonic() + _LIMIT
        while not happened():
            if self.process.poll():
                raise RuntimeError(f"ended by itself:\n{self.text}")
            if self.process.poll() == 0:
                return happened()
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"hangs:\n{self.text}")
            time.sleep(0.02)
        return True

    def wait(self) -> int:
        """The exit code, at the end."""
        try:
            return self.process.wait(_LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"hangs:\n{self.text}") from None

    def kill(self) -> None:
        """kill -9 of the process and all that it started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def children(self) -> list[int]:
        """Process ids of what the command's own process started."""
        table = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True)
        pairs = [tuple(map(int, line.split())) for line in table.stdout.splitlines()]
        return [pid for pid, parent in pairs if parent == self.process.pid]


class Laboratory:
    """Pictures, a base learner, and the command of a small stage 2.

    Args:
        folder: for everything that is written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        data = folder / "data"
        write_demo(str(data), train=64, val=24, size=160)
        sizes = [f"{key}=33" for key in ("train_h", "train_w", "val_size", "base_h", "base_w")]
        self.settings = [
            *sizes,
            *(f"{part}_list={data}/{part}.txt" for part in ("train", "val")),
            f"data_root={data}",
            f"list_dir={folder}/lists",
            "folds=[[20]]",
            "save_freq=1",
            *("batch_size=6", "workers=1", "print_freq=1", "evaluate=False", "min_pixels=1"),
            *(f"epochs={EPOCHS}", f"save_iters={SAVE_ITERS}", "base_epochs=1", "base_batch_size=8"),
        ]
        base = self._start("base", "train_base.py", 1)
        if base.wait():
            raise RuntimeError(base.text)
        (self.base,) = (folder / "base/demo/PSPNet/split0/resnet18/snapshot").glob("best*")
        self._undisturbed: dict[int, Path] = {}

    def start(self, name: str, processes: int = 1, *settings: str, **options) -> Run:
        """Start or continue the run `name`."""
        options.setdefault("limit", 0)
        return self._start(
            name, "train.py", processes, f"base_weight={self.base}", *settings, **options
        )

    def _start(self, name, script, processes, *settings, limit=0, **environment) -> Run:
        command = [sys.executable, script]
        if processes > 1:
            command = [sys.executable, "-m", "util.launch", str(processes), script]
        command += ["--config", "config/demo/demo_split0_resnet18.yaml", "--opts"]
        command += [*self.settings, f"exp_dir={self.folder}/{name}", *settings]
        number = len(list(self.folder.glob(f"{name}-*.log")))
        environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **environment}
        return Run(command, self.folder / f"{name}-{number}.log", environment, limit)

    def snapshot(self, name: str) -> Path:
        """The folder of a run's checkpoints."""
        return self.folder / name / "demo/HDMNet/split0/resnet18/snapshot"

    def ends_alike(self, name: str, processes: int = 1) -> bool:
        """Whether a run's last weights are those of a run that nothing happened to."""
        undisturbed = f"undisturbed{processes}"
        if not self.snapshot(undisturbed).exists():
            run = self.start(undisturbed, processes)
            if run.wait():
                raise RuntimeError(run.text)
        one, other = (
            read_checkpoint(self.snapshot(run) / "last.pth") for run in (undisturbed, name)
        )
        states = one["state_dict"], other["state_dict"]
        return one["run"] == other["run"] and all(
            states[0][key].equal(states[1][key]) for key in states[0]
        )


def _limit_file_size(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
