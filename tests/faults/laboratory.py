"""A small training of stage 2, whose runs the tests of faults disturb."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.processes import start_python
from util.checkpoints.io import read_checkpoint
from util.config.schema import net_name
from util.demo_data import write_demo
from util.runtime.machine import environment_line

EPOCHS, SAVE_ITERS = 3, 4
BACKBONE = "timm:test_resnet"  # a small one, whose checkpoints are quickly written
UNDISTURBED = "undisturbed{}"  # name of the run on a number of processes
# Of the table that a training logs: epoch/epochs, iteration/iterations.
_ITERATION = re.compile(r"^\S+ \S+ +\d+/\d+ +(\d+)/(\d+) ", re.MULTILINE)
_RESUMED = re.compile(r"resumed from .*: (\d+) epochs and (\d+) iterations done")
_TOTAL = re.compile(r"accumulated\), (\d+) iterations")
_LIMIT = 240  # seconds until a run counts as hanging


class Run:
    """One start of a command, its output in a file; see `start_python`."""

    def __init__(self, words: list[Any], log: Path, environment: dict[str, str], **options: Any):
        self.log = log
        log.touch()
        self.process = start_python(words, log, environment=environment, **options)

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

    def resumed_at(self, epochs: int = EPOCHS) -> int:
        """Iterations done at the checkpoint that this run went on from; only once it has begun.

        Args:
            epochs: of the whole training.
        """
        text = self.text
        found, total = _RESUMED.search(text), _TOTAL.search(text)
        assert total, text
        return int(found[1]) * int(total[1]) // epochs + int(found[2]) if found else 0

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Wait until something has happened, or until the run has ended well."""
        deadline = time.monotonic() + _LIMIT
        while not happened() and self.process.exitcode != 0:
            if self.process.exitcode:
                raise RuntimeError(f"it failed:\n{self.text}")
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"it hangs:\n{self.text}")
            time.sleep(0.02)

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        self.process.join(_LIMIT)
        if self.process.exitcode is None:
            self.kill()
            raise RuntimeError(f"it hangs:\n{self.text}")
        return self.process.exitcode

    def kill(self) -> None:
        """kill -9 of the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):  # It has no group yet, or has just ended.
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()

    def children(self) -> list[int]:
        """Return the ids of the processes that the command has started."""
        table = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True)
        pairs = [tuple(map(int, line.split())) for line in table.stdout.splitlines()]
        return [pid for pid, parent in pairs if parent == self.process.pid]


def require_same(*paths: Path) -> None:
    """Check that two checkpoints hold the same weights, bit for bit, and the same progress."""
    one, other = map(read_checkpoint, paths)
    assert one.get("run") == other.get("run")
    weights = other["state_dict"]
    assert one["state_dict"].keys() == weights.keys()
    assert all(value.equal(weights[key]) for key, value in one["state_dict"].items())


def see_late() -> None:
    """Let process 1 not see a checkpoint when it looks for it first, as on a network file system."""
    exists, hidden = Path.exists, {"last.pth", "previous.pth"}

    def seen(path: Path) -> bool:
        if os.environ.get("RANK") == "1" and path.name in hidden:
            hidden.remove(path.name)
            return False
        return exists(path)

    Path.exists = seen


class Laboratory:
    """Pictures, a base learner, and the command of a small stage 2.

    Args:
        folder: for everything that is written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.data = data = folder / "data"
        write_demo(str(data), train=64, val=60, size=160)
        sizes = [f"{key}=33" for key in ("train_h", "train_w", "val_size", "base_h", "base_w")]
        self.settings = [
            *sizes,
            *(f"{part}_list={data}/{part}.txt" for part in ("train", "val")),
            f"data_root={data}",
            f"backbone={BACKBONE}",
            "backbone_weight=none",
            "folds=[[20]]",
            "save_freq=1",
            *(
                "batch_size=8",
                "workers=1",
                "print_freq=1",
                "evaluate=False",
                "min_pixels=1",
                "amp=off",
            ),
            *(f"epochs={EPOCHS}", f"save_iters={SAVE_ITERS}", "base_epochs=1", "base_batch_size=8"),
        ]
        base = self._start("base", "train_base.py", 1)
        if base.wait():
            raise RuntimeError(base.text)
        self.net = net_name(BACKBONE)
        (self.base,) = (folder / f"base/demo/PSPNet/split0/{self.net}/snapshot").glob("best*")
        self._rows: list[str] = []

    def start(self, name: str, processes: int = 1, *settings: str, **options: Any) -> Run:
        """Start or continue the run `name`.

        Args:
            name: of the run.
            processes: that train.
            settings: over those of the laboratory.
            options: of `start_python`.
        """
        base = f"base_weight={self.base}"
        return self._start(name, "train.py", processes, base, *settings, **options)

    def _start(
        self, name: str, script: str, processes: int, *settings: str, environment=None, **options
    ) -> Run:
        command = [script]
        if processes > 1:
            command = ["-m", "util.launch", str(processes), script]
        command += ["--config", "config/demo/demo_split0_resnet18.yaml", "--opts"]
        command += [*self.settings, f"exp_dir={self.folder}/{name}", *settings]
        command.append(f"list_dir={self.folder}/lists")
        number = len(list(self.folder.glob(f"{name}-*.log")))
        environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **(environment or {})}
        return Run(command, self.folder / f"{name}-{number}.log", environment, **options)

    def snapshot(self, name: str) -> Path:
        """The folder of a run's checkpoints."""
        return self.folder / name / f"demo/HDMNet/split0/{self.net}/snapshot"

    def finish(
        self, fault: str, name: str, reached: int, processes: int = 1, **options: Any
    ) -> Run:
        """Give the command of a disturbed run again and record the fault.

        Args:
            fault: for the table.
            name: of the run.
            reached: the last iteration that it had done.
            processes: that train.
            options: of `start_python`.
        """
        again = self.start(name, processes, **options)
        assert again.wait() == 0, again.text
        self.record(fault, name, max(0, reached - again.resumed_at()), processes)
        return again

    def record(
        self,
        fault: str,
        name: str,
        lost: int,
        processes: int = 1,
        times: int = 1,
        compare: bool = True,
    ) -> None:
        """Check what a finished run has lost, and add a row to the table.

        Args:
            fault: for the table.
            name: of the run.
            lost: iterations that had to be done again, at most.
            processes: that trained.
            times: how often the fault was done.
            compare: whether the weights at the end must equal those of a run without faults.
        """
        # A truncated checkpoint costs the iterations between it and the one before.
        assert 0 <= lost <= SAVE_ITERS
        end = "cannot be: other batches"
        if compare:
            self.check_end(name, processes)
            end = "yes, bit for bit"
        self._rows.append(f"| {fault} | {times} | {lost} | {end} |")

    def undisturbed(self, processes: int = 1) -> Path:
        """Return the last checkpoint of a run without faults."""
        name = UNDISTURBED.format(processes)
        if not self.snapshot(name).exists():
            run = self.start(name, processes)
            assert run.wait() == 0, run.text
        return self.snapshot(name) / "last.pth"

    def check_end(self, name: str, processes: int = 1) -> None:
        """Check that a run has ended with the weights of a run without faults."""
        require_same(self.undisturbed(processes), self.snapshot(name) / "last.pth")

    def table(self) -> str:
        """Return the machine and the table of all faults so far, in Markdown."""
        lost = f"iterations lost (checkpoints every {SAVE_ITERS})"
        header = f"| fault | times | {lost} | same weights at the end |"
        return "\n".join([f"\n{environment_line()}\n", header, "|-|-|-|-|", *self._rows])
