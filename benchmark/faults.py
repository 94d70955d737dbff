"""What training loses to faults: `python -m benchmark.faults` does them and prints the table.

Each fault hits a small run of stage 2 on drawn pictures, on the CPU, started by the ordinary command.
The weights at its end are compared, bit for bit, with those of a run that nothing happened to.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmark.laboratory import EPOCHS, SAVE_ITERS, Laboratory
from util.checkpoints.io import read_checkpoint
from util.runtime.machine import environment_line
from util.training.signals import STOPPED


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
        run.wait_for(run.has_begun)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("faults", nargs="*", help=f"which of {', '.join(FAULTS)}; all by default")
    chosen = parser.parse_args().faults or list(FAULTS)
    if unknown := set(chosen) - set(FAULTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    print(f"{environment_line()}\n\n{HEADER}", flush=True)
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
