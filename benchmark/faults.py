"""What training loses to faults: `python -m benchmark.faults` does them and prints the table.

Each fault hits a small run of stage 2 on drawn pictures, on the CPU, started by the ordinary command.
The weights at its end are compared, bit for bit, with those of a run that nothing happened to.
"""

import argparse
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmark.machine import describe_machine
from util.checkpoint import read_checkpoint
from util.demo_data import write_demo
from util.files import ROOT
from util.training.signals import STOPPED

EPOCHS, SAVE_ITERS = 6, 4
# Of the table that a training logs: epoch/epochs, iteration/iterations.
_ITERATION = re.compile(r"^\S+ \S+ +\d+/\d+ +(\d+)/(\d+) ", re.MULTILINE)
_RESUMED = re.compile(r"resumed from .*: (\d+) epochs and (\d+) iterations done")
_TOTAL = re.compile(r"accumulated\), (\d+) iterations")
_LIMIT = 240  # seconds until a run counts as hanging


class Outcome(NamedTuple):
    """What a fault did.

    times: how often it was done; lost: iterations that had to be done again, at most; same: whether
    the run ended with the weights of an undisturbed one (None: it cannot); failure: what was not as
    it should be, empty if all was.
    """

    fault: str
    times: int
    lost: int
    same: bool | None
    failure: str = ""


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


def killed(lab: Laboratory, times: int = 10) -> Outcome:
    """kill -9 at random moments: every second time while it trains, else from its start on."""
    rng = random.Random(0)
    lost = position = 0
    run = lab.start("killed")
    for number in range(times):
        if number % 2 == 0:
            run.wait_for(lambda run=run: run.iteration() > 0)
        time.sleep(rng.uniform(0, 0.6 if number % 2 == 0 else 4))
        if run.process.poll() is not None:
            return Outcome("kill -9", number, lost, None, "it was over before the last kill")
        run.kill()
        position = run.iteration() or position
        run = lab.start("killed")
        if number % 2 == 0:
            run.wait_for(lambda run=run: "iterations done" in run.text)
            lost, position = max(lost, position - run.resumed_at()), run.resumed_at()
    code = run.wait()
    failure = f"exit code {code}: {run.text[-500:]}" if code else ""
    same = lab.ends_alike("killed")
    return Outcome("kill -9 at a random moment", times, lost, same, failure)


def told_to_stop(lab: Laboratory, processes: int = 1, number: int = signal.SIGTERM) -> Outcome:
    """SIGTERM or Ctrl-C in the middle of an epoch."""
    name = f"stopped{processes}-{signal.Signals(number).name}"
    run = lab.start(name, processes)
    run.wait_for(lambda: run.iteration() >= 6)
    os.killpg(run.process.pid, number)
    code, reached = run.wait(), run.iteration()
    failure = "" if code == STOPPED and "told to stop: saved" in run.text else run.text[-500:]
    again = lab.start(name, processes)
    code = again.wait()
    failure = failure or (again.text[-500:] if code else "")
    where = "" if processes == 1 else f", {processes} processes"
    lost = reached - again.resumed_at()
    same = lab.ends_alike(name, processes)
    return Outcome(f"{signal.Signals(number).name}{where}", 1, lost, same, failure)


def truncated(lab: Laboratory) -> Outcome:
    """The last checkpoint loses its second half."""
    run = lab.start("truncated")
    run.wait_for(lambda: run.iteration() >= 2 * SAVE_ITERS + 1)
    run.kill()
    last = lab.snapshot("truncated") / "last.pth"
    saved = read_checkpoint(last)
    reached = saved["run"]["epoch"] * saved["steps"] + saved["run"]["step"]
    os.truncate(last, last.stat().st_size // 2)
    again = lab.start("truncated")
    code = again.wait()
    told = "going on from the one before" in again.text and "last.pth" in again.text
    lost = reached - again.resumed_at()
    failure = "" if told and not code else again.text[-500:]
    same = lab.ends_alike("truncated")
    return Outcome("last checkpoint truncated", 1, lost, same, failure)


def disk_full(lab: Laboratory) -> Outcome:
    """No room for a checkpoint: a limit on file sizes that the second half does not fit into."""
    name = "full"
    run = lab.start(name)
    run.wait_for(lambda: run.iteration() > SAVE_ITERS)
    run.kill()
    last = lab.snapshot(name) / "last.pth"
    before = last.read_bytes()
    limited = lab.start(name, limit=len(before) // 2)
    code = limited.wait()
    told = "cannot be written" in limited.text and "Traceback" not in limited.text
    failure = "" if code and told and last.read_bytes() == before else limited.text[-500:]
    again = lab.start(name)
    if again.wait():
        failure = again.text[-500:]
    lost = max(0, limited.iteration() - again.resumed_at())
    return Outcome("no room for a checkpoint", 1, lost, lab.ends_alike(name), failure)


def processes_change(lab: Laboratory) -> Outcome:
    """One process, then two, then one again."""
    name = "changing"
    lost = reached = 0
    failure = ""
    for number, processes in enumerate((1, 2, 1)):
        run = lab.start(name, processes)
        run.wait_for(lambda run=run: _TOTAL.search(run.text) is not None)
        if number:
            lost = max(lost, reached - run.resumed_at())
            if "global batch 6, as before" not in run.text:
                failure = run.text[-500:]
        if number < 2:
            run.wait_for(lambda run=run, goal=8 * (number + 1): run.iteration() >= goal)
            os.killpg(run.process.pid, signal.SIGTERM)
            run.wait()
            reached = run.iteration()
    if run.wait():
        failure = run.text[-500:]
    if read_checkpoint(lab.snapshot(name) / "last.pth")["run"]["epoch"] != EPOCHS:
        failure = failure or "did not reach the last epoch"
    return Outcome("1, then 2, then 1 processes", 2, lost, None, failure)


def rank_killed(lab: Laboratory) -> Outcome:
    """kill -9 of one of two processes: the command ends and says so; then it is given again."""
    name = "rank"
    run = lab.start(name, 2)
    run.wait_for(lambda: run.iteration() > SAVE_ITERS)
    os.kill(run.children()[1], signal.SIGKILL)
    code, reached = run.wait(), run.iteration()
    errors = [line for line in run.text.splitlines() if line.startswith("error:")]
    said = len(errors) == 1 and "was ended by SIGKILL" in errors[0] and "Traceback" not in run.text
    failure = "" if code and said else run.text[-800:]
    again = lab.start(name, 2)
    if again.wait():
        failure = again.text[-500:]
    lost = reached - again.resumed_at()
    return Outcome("kill -9 of one of 2 processes", 1, lost, lab.ends_alike(name, 2), failure)


def restarted(lab: Laboratory) -> Outcome:
    """The same under MAX_RESTARTS: it goes on by itself."""
    name = "restarted"
    run = lab.start(name, 2, MAX_RESTARTS="2")
    run.wait_for(lambda: run.iteration() > SAVE_ITERS)
    os.kill(run.children()[1], signal.SIGKILL)
    reached = run.iteration()
    code = run.wait()
    failure = "" if code == 0 and "resumed from" in run.text else run.text[-800:]
    lost = reached - run.resumed_at()
    same = lab.ends_alike(name, 2)
    return Outcome("kill -9 of one of 2, MAX_RESTARTS=2", 1, lost, same, failure)


def worker_killed(lab: Laboratory) -> Outcome:
    """kill -9 of the process that loads the data, as the system does when memory is short."""
    name = "worker"
    run = lab.start(name)
    run.wait_for(lambda: run.iteration() > SAVE_ITERS)
    os.kill(run.children()[0], signal.SIGKILL)
    code, reached = run.wait(), run.iteration()
    failure = "" if code == 2 and "lower workers" in run.text else run.text[-500:]
    again = lab.start(name)
    if again.wait():
        failure = again.text[-500:]
    lost = reached - again.resumed_at()
    return Outcome("kill -9 of a data worker", 1, lost, lab.ends_alike(name), failure)


FAULTS: dict[str, Callable[[Laboratory], Outcome]] = {
    "killed": killed,
    "sigterm": told_to_stop,
    "sigint": partial(told_to_stop, number=signal.SIGINT),
    "sigterm2": partial(told_to_stop, processes=2),
    "truncated": truncated,
    "disk_full": disk_full,
    "worker_killed": worker_killed,
    "processes_change": processes_change,
    "rank_killed": rank_killed,
    "restarted": restarted,
}


HEADER = f"""\
| fault | times | iterations lost (checkpoints every {SAVE_ITERS}) | same weights at the end |
|-|-|-|-|"""


def row(outcome: Outcome) -> str:
    """An outcome as a row of the markdown table under `HEADER`."""
    words = {True: "yes, bit for bit", False: "no", None: "cannot be: other batches"}
    end = outcome.failure.strip().splitlines()[-1] if outcome.failure else words[outcome.same]
    return f"| {outcome.fault} | {outcome.times} | {outcome.lost} | {end} |"


def _limit_file_size(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("faults", nargs="*", help=f"which of {', '.join(FAULTS)}; all by default")
    chosen = parser.parse_args().faults or list(FAULTS)
    if unknown := set(chosen) - set(FAULTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    print(f"{describe_machine()}\n\n{HEADER}", flush=True)
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="hdmnet-faults-") as folder:
        lab = Laboratory(Path(folder))
        for name in chosen:
            outcomes.append(FAULTS[name](lab))
            print(row(outcomes[-1]), flush=True)
    bad = [o for o in outcomes if o.failure or o.same is False or o.lost > SAVE_ITERS]
    for outcome in bad:
        print(f"\n{outcome.fault}:\n{outcome.failure}", file=sys.stderr)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
