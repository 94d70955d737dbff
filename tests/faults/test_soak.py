"""A long stage 2 of the demo under kills; only with `--faults --soak EPOCHS -s`, after `sh demo.sh`.

A second training of the same settings runs undisturbed at the same time. Both have to end with the
same weights, bit for bit, and neither may take more and more memory.
"""

import random
import time
from pathlib import Path

import pytest

from tests.faults.laboratory import Run, require_same
from tests.paths import ROOT
from util.checkpoints.run_files import find_best
from util.runtime.machine import environment_line

pytestmark = [pytest.mark.faults, pytest.mark.slow]
PAUSE = (60, 120)  # seconds between two kills
SAVE_ITERS = 20
WARM = 50  # iterations after which a start has taken the memory that it needs
GROWTH = 1.1  # of the memory, at most


class Training:
    """A run of the command, started again after each kill.

    Attributes:
        memory: of each start, (iteration, MB of the main process) whenever a new one was reported.
        resumed: the iteration from which each start after a kill went on.
        lost: iterations that had to be done again.
    """

    def __init__(self, folder: Path, base: Path, epochs: int):
        self.folder, self.base, self.epochs = folder, base, epochs
        self.memory: list[list[tuple[int, int]]] = []
        self.resumed: list[int] = []
        self.lost, self.began = 0, time.monotonic()
        self.start()

    def start(self) -> None:
        settings = [f"exp_dir={self.folder}", f"base_weight={self.base}", f"epochs={self.epochs}"]
        settings += [f"save_iters={SAVE_ITERS}", "print_freq=1", "workers=1"]
        words = ["train.py", "--config", "config/demo/demo_split0_resnet18.yaml", "--opts"]
        log = self.folder.parent / f"{self.folder.name}-{len(self.memory)}.log"
        self.run = Run([*words, *settings], log, {"OMP_NUM_THREADS": "1"})
        self.memory.append([])

    def look(self) -> bool:
        """Note the memory; returns whether the training goes on."""
        code, text = self.run.process.exitcode, self.run.text
        if code is not None:
            assert code == 0, text
            return False
        position = self.run.iteration()
        reports = self.memory[-1]
        if position and (not reports or reports[-1][0] < position):
            status = Path(f"/proc/{self.run.process.pid}/status").read_text()
            reports.append((position, int(status.split("VmRSS:")[1].split()[0]) >> 10))
        return True

    def kill(self) -> None:
        self.run.kill()
        reached = self.run.iteration()
        self.start()
        self.run.wait_for(self.run.has_begun)
        self.resumed.append(self.run.resumed_at(self.epochs))
        self.lost += max(0, reached - self.resumed[-1])
        assert len(set(self.resumed[-9:])) > 1 or len(self.resumed) < 9, "it comes no further"


def test_kills_do_not_change_a_long_training(pytestconfig, tmp_path):
    epochs = pytestconfig.getoption("--soak")  # at least 2
    base = find_best(ROOT / "exp/demo/PSPNet/split0/resnet18/snapshot")
    if not epochs or base is None:
        pytest.skip("it takes --soak EPOCHS, and the base learner of sh demo.sh")
    undisturbed, killed = (
        Training(tmp_path / name, base.path, epochs) for name in ("undisturbed", "killed")
    )
    rng = random.Random(0)
    due, minutes = time.monotonic() + rng.uniform(*PAUSE), {}
    while len(minutes) < 2:
        for training in (undisturbed, killed):
            if training not in minutes and not training.look():
                minutes[training] = (time.monotonic() - training.began) / 60
        if killed not in minutes and time.monotonic() > due:
            killed.kill()
            due = time.monotonic() + rng.uniform(*PAUSE)
        time.sleep(0.5)
    snapshot = "demo/HDMNet/split0/resnet18/snapshot"
    require_same(*(training.folder / snapshot / "last.pth" for training in minutes))

    # In the second epoch, the first after a validation, and in the last one.
    (reports,) = undisturbed.memory
    steps = reports[-1][0] // epochs
    second = _mean(megabytes for position, megabytes in reports if steps < position <= 2 * steps)
    last = _mean(megabytes for position, megabytes in reports if position > (epochs - 1) * steps)
    # At the same number of iterations after each start.
    warm = [reports[WARM][1] for reports in killed.memory if len(reports) > WARM]
    early, late = _mean(warm[: len(warm) // 2]), _mean(warm[len(warm) // 2 :])
    print(
        f"\n{environment_line()}\n",
        f"{epochs} epochs, {epochs * steps} iterations",
        f"undisturbed: {minutes[undisturbed]:.0f} minutes; memory {second:.0f} MB in the second "
        f"epoch, {last:.0f} MB in the last",
        f"killed: {minutes[killed]:.0f} minutes, {len(killed.resumed)} kills, {killed.lost} "
        f"iterations done again; memory {WARM} iterations after a start {early:.0f} MB in the first "
        f"half of the starts, {late:.0f} MB in the second",
        "weights at the end: the same, bit for bit",
        sep="\n",
    )
    assert last < GROWTH * second and late < GROWTH * early


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)
