"""What a small training of stage 2 loses to faults; only with `--faults`.

The ordinary commands train on the CPU, in processes forked from one that has loaded torch. The
weights at the end are compared, bit for bit, with those of a run without faults. The table of faults in
docs/reliability.md is printed by `python -m pytest tests/faults --faults -s`.
"""

import os
import signal
import time

import pytest

from tests.faults.laboratory import EPOCHS, SAVE_ITERS, see_late
from util.checkpoints.io import read_checkpoint
from util.training.signals import STOPPED

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@pytest.mark.parametrize(
    ("number", "processes"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)]
)
def test_a_signal_in_the_middle_of_an_epoch(lab, number, processes):
    name = f"{number.name}{processes}"
    run = lab.start(name, processes)
    run.wait_for(lambda: run.iteration() >= 6)
    os.killpg(run.process.pid, number)
    assert run.wait() == STOPPED and "stopped by a signal: saved" in run.text, run.text
    where = "" if processes == 1 else f", {processes} processes"
    lab.finish(f"{number.name}{where}", name, run.iteration(), processes)


def test_the_last_checkpoint_loses_its_second_half(lab):
    run = lab.start("truncated")
    run.wait_for(lambda: run.iteration() >= 2 * SAVE_ITERS + 1)
    run.kill()
    last = lab.snapshot("truncated") / "last.pth"
    saved = read_checkpoint(last)
    os.truncate(last, last.stat().st_size // 2)
    reached = saved["run"]["epoch"] * saved["steps"] + saved["run"]["step"]
    again = lab.finish("last checkpoint truncated", "truncated", reached)
    assert "last.pth" in again.text and "going on from the one before" in again.text


def test_no_room_for_a_checkpoint(lab):
    """A limit on the size of files cuts its second half off."""
    run = lab.start("full")
    run.wait_for(lambda: run.iteration() > SAVE_ITERS)
    run.kill()
    last = lab.snapshot("full") / "last.pth"
    before = last.read_bytes()
    limited = lab.start("full", limit=len(before) // 2)
    assert limited.wait() and last.read_bytes() == before, limited.text
    assert "cannot be written" in limited.text and "Traceback" not in limited.text
    lab.finish("no room for a checkpoint", "full", limited.iteration())


def test_kill_of_a_data_worker(lab):
    """As the system does when memory is short."""
    run = lab.start("worker")
    run.wait_for(lambda: run.iteration() > SAVE_ITERS)
    os.kill(run.children()[0], signal.SIGKILL)
    assert run.wait() == 2 and "lower workers" in run.text, run.text
    lab.finish("kill -9 of a data worker", "worker", run.iteration())


def test_the_number_of_processes_changes(lab):
    lost = reached = 0
    for number, processes in enumerate((1, 4, 2)):
        run = lab.start("changing", processes, "workers=0")
        run.wait_for(run.has_begun)
        if number:
            assert "global batch 8, as before" in run.text
            lost = max(lost, reached - run.resumed_at())
        if number < 2:
            run.wait_for(lambda run=run, goal=7 * (number + 1): run.iteration() >= goal)
            os.killpg(run.process.pid, signal.SIGTERM)
            run.wait()
            reached = run.iteration()
    assert run.wait() == 0, run.text
    last = read_checkpoint(lab.snapshot("changing") / "last.pth")
    assert last["run"]["epoch"] == EPOCHS
    lab.record("1, then 4, then 2 processes", "changing", lost, times=2, compare=False)


def test_the_clock_is_set_back(lab):
    """So the checkpoint before seems to be the newer one, and the files are from tomorrow."""
    run = lab.start("clock")
    run.wait_for(lambda: run.iteration() > SAVE_ITERS)
    run.kill()
    tomorrow = time.time() + 24 * 3600
    for path in lab.snapshot("clock").iterdir():
        os.utime(path, (tomorrow, tomorrow + 3600 * (path.name == "previous.pth")))
    lab.finish("clock set back by a day", "clock", run.iteration())


def test_a_process_that_sees_the_checkpoint_late_waits_for_it(lab):
    run = lab.start("late", 2)
    run.wait_for(lambda: run.iteration() > SAVE_ITERS)
    os.killpg(run.process.pid, signal.SIGTERM)
    assert run.wait() == STOPPED, run.text
    fault = "checkpoint that one of 2 processes sees late"
    lab.finish(fault, "late", run.iteration(), 2, prepare=see_late)


def test_kill_of_one_of_two_processes(lab):
    run = lab.start("rank", 2)
    run.wait_for(lambda: run.iteration() > SAVE_ITERS)
    os.kill(run.children()[1], signal.SIGKILL)
    assert run.wait(), run.text
    errors = [line for line in run.text.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "was ended by SIGKILL" in errors[0], run.text
    assert "Traceback" not in run.text
    lab.finish("kill -9 of one of 2 processes", "rank", run.iteration(), 2)


def test_after_a_kill_max_restarts_starts_all_processes_again(lab):
    run = lab.start("restarted", 2, environment={"MAX_RESTARTS": "2"})
    run.wait_for(lambda: run.iteration() > SAVE_ITERS)
    os.kill(run.children()[1], signal.SIGKILL)
    reached = run.iteration()
    assert run.wait() == 0 and "resumed from" in run.text, run.text
    lost = reached - run.resumed_at()
    lab.record("kill -9 of one of 2, MAX_RESTARTS=2", "restarted", lost, 2)
