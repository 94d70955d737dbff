"""What seven commands lose to kills, full disks and folders they cannot write; only with `--faults`.

The table of kills in docs/reliability.md is printed by `python -m pytest tests/faults --faults -s`.
"""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.commands import SAVE_ITERS, Home, build_commands
from tests.util.hub import Hub
from util.runtime.errors import EXIT_CODE
from util.runtime.tables import markdown_table

pytestmark = [pytest.mark.faults, pytest.mark.slow]
KILLS = 10
# The folders that each command writes to.
WRITTEN = {
    "train_base": ("exp",),
    "train": ("exp", "lists"),
    "test": ("exp", "lists"),
    "prepare_custom": ("root", "lists", "config/mine"),
    "prepare_coco": ("root", "lists"),
    "predict": ("labels",),
    "fetch": ("initmodel", "hub"),
}
NAMES = tuple(WRITTEN)
UNWRITABLE = "/sys/kernel"  # The kernel refuses even root.


def errors_of(run):
    """The error lines of a command, which has to print no traceback."""
    assert "Traceback" not in run.text, run.text
    return [line for line in run.text.splitlines() if line.startswith("error: ")]


class Bench:
    """Makes homes for the commands, and knows how each ends without faults."""

    def __init__(self, folder, commands, hub):
        self.folder, self.commands, self.hub = folder, commands, hub
        self.rows, self._ends, self._homes = {}, {}, 0

    def home(self, name):
        self._homes += 1
        return Home(self.folder / f"{name}{self._homes}", self.commands[name], self.hub)

    def end(self, name):
        """The outcome of a run without faults, its seconds and its events."""
        if name not in self._ends:
            home, start = self.home(name), time.monotonic()
            run = home.start()
            assert run.wait() == 0, run.text
            seconds = time.monotonic() - start
            assert not home.leftovers()
            self._ends[name] = home.outcome(), seconds, home.events()
        return self._ends[name]


@pytest.fixture(scope="module")
def bench(lab):
    with Hub() as hub:
        bench = Bench(lab.folder / "homes", build_commands(lab, hub), hub)
        yield bench
    header = ["command", "kill -9", "then the same command", "lost at most", "same end"]
    rows = [bench.rows[name] for name in NAMES if name in bench.rows]
    print(f"\n{markdown_table(header, rows, left=range(len(header)))}")


@pytest.mark.parametrize("name", NAMES)
def test_kills_at_random_moments(bench, name):
    """Half of them at a random time, half before a random file is opened, renamed or removed.

    They come in the first half of a start, as each goes on where the one before was killed.
    """
    expected, seconds, events = bench.end(name)
    rng, kills, lost = random.Random(name), 0, 0
    home, before = bench.home(name), set()
    while kills < KILLS:
        if kills % 2:
            run = home.start(dies_at=rng.randint(1, events // 2))
            run.wait()
        else:
            run = home.start()
            run.process.join(rng.uniform(0, seconds / 2))
            run.kill()
        if run.process.exitcode == 0:
            assert home.outcome() == expected and not home.leftovers()
            home, before = bench.home(name), set()
            continue
        assert run.process.exitcode == -signal.SIGKILL, run.text
        kills += 1
        done = home.done()
        assert before <= done
        before = done
        if name.startswith("train"):
            lost = max(lost, run.iteration() - len(done))
        else:
            # Every file that has its name is complete.
            assert home.outcome().items() <= expected.items()
    run = home.start()
    assert run.wait() == 0, run.text
    assert home.outcome() == expected and not home.leftovers()
    assert home.done() >= before and lost <= SAVE_ITERS
    command = bench.commands[name]
    iterations = f"{lost} iterations" if name.startswith("train") else "what it was at"
    bench.rows[name] = [command.title, str(kills), command.goes_on, iterations, "yes"]


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_gets_full(bench, name):
    """A limit on the size of files cuts the second half of the largest one off."""
    expected, _, events = bench.end(name)
    home = bench.home(name)
    run = home.start(dies_at=events // 2)
    assert run.wait() == -signal.SIGKILL, run.text
    before, done = home.outcome(), home.done()
    largest = max(path.stat().st_size for path in home.folder.rglob("*") if path.is_file())
    limited = home.start(limit=largest // 2)
    assert limited.wait() == EXIT_CODE, limited.text
    assert len(errors_of(limited)) == 1, limited.text
    assert home.done() >= done and home.outcome().items() >= before.items()
    run = home.start()
    assert run.wait() == 0, run.text
    assert home.outcome() == expected and not home.leftovers()


PLACES = [(name, place) for name, places in WRITTEN.items() for place in places]


@pytest.mark.skipif(not Path(UNWRITABLE).is_dir(), reason="Linux has such a folder")
@pytest.mark.parametrize(("name", "place"), PLACES)
def test_a_folder_that_cannot_be_written(bench, name, place):
    """It is one line before the work begins."""
    home = bench.home(name)
    link = home.folder / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(UNWRITABLE)
    run = home.start()
    assert run.wait() == EXIT_CODE, run.text
    assert len(errors_of(run)) == 1, run.text
    assert not home.done()


@pytest.mark.parametrize("name", NAMES)
def test_two_jobs_in_one_folder(bench, name):
    """Both end well, or one of them ends with a line that names the other."""
    expected, _, _ = bench.end(name)
    home = bench.home(name)
    runs = [home.start(), home.start()]
    codes = sorted(run.wait() for run in runs)
    for run in runs:
        if run.process.exitcode:
            (error,) = errors_of(run)
            assert run.process.exitcode == EXIT_CODE and "is in use by process" in error, run.text
    assert codes[0] == 0, runs[0].text + runs[1].text
    assert home.outcome() == expected and not home.leftovers()
