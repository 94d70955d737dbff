import json
import os
import random
import re
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset, RandomSampler

from tests.paths import ROOT
from tests.processes import spawn_two
from util.checkpoints.run_files import find_best
from util.config.schema import Config
from util.data.data_loader import TrainLoader
from util.runtime.distributed import Processes
from util.runtime.errors import UserError
from util.runtime.log import Scalars, get_logger
from util.runtime.seed import seed_everything, untouched_random_streams
from util.training.engine import Run, Trainer, open_run
from util.training.iteration import Recipe, to_device
from util.training.memory import peak_memory
from util.training.resume import RunState, find_saved
from util.training.signals import STOPPED

ALONE = Processes(0, 1, torch.device("cpu"))


class Points(Dataset):
    """Twelve points, moved at random; some of them are not numbers."""

    def __init__(self, broken=()):
        self.broken = broken

    def __len__(self):
        return 12

    def __getitem__(self, index):
        x = torch.tensor([index / 12, random.random()])
        return {"x": x * float("nan") if index in self.broken else x, "index": index}

    def file_names(self, batch):
        return ", ".join(f"{index}.jpg" for index in batch["index"].tolist())


class Training:
    """A small net with dropout and batch norm, trained for three epochs of four iterations."""

    def __init__(self, folder, broken=(), batch_size=3, accumulated=1, processes=ALONE, **settings):
        settings = {"epochs": 3, "print_freq": 2, "save_iters": 1, "workers": 0} | settings
        self.cfg = Config(num_classes=2, folds=[[2]], data_set="points", **settings)
        seed_everything(1)
        self.net = nn.Sequential(
            nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1)
        )
        optimizer = torch.optim.AdamW([{"params": self.net.parameters(), "lr": 0.1, "ratio": 1.0}])
        data = Points(broken)
        loader = TrainLoader(data, RandomSampler(data), batch_size, self.cfg.workers)
        recipe = Recipe(self.net, optimizer, loader, accumulated, 3, {"base_classes": [1]})
        logger, main = get_logger(folder, processes.is_main), processes.is_main
        run = Run(self.cfg, folder, processes, logger, Scalars(folder if main else None))
        self.trainer = Trainer(run, recipe)
        self.validated = []
        self.before_iteration = lambda iteration: None
        saved = find_saved("auto", folder / "snapshot", processes, self.trainer.logger)
        if saved:
            self.trainer.restore(saved)

    def losses_of(self, batch):
        return {"loss": (self.net(batch["x"]) - 1).square().mean()}

    def rate_of(self, iteration):
        self.before_iteration(iteration)
        return 0.1 / iteration

    def validate(self):
        seed_everything(99)
        self.validated.append((self.trainer.state.epoch, self.trainer.state.step))
        return {"mIoU": [0.2, 0.5, 0.3][self.trainer.state.epoch]}

    def run(self, **options):
        self.trainer.run(
            options.get("wrapped", self.net),
            self.losses_of,
            self.rate_of,
            self.validate,
            options.get("validates", lambda epoch: True),
            options.get("halves", False),
        )
        return self.net.state_dict()


def same(one, other):
    return all(one[key].equal(other[key]) for key in one)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("at", [1, 2, 4, 5, 6, 7, 10, 11])
def test_a_run_that_is_stopped_goes_on_bit_for_bit(workers, at, tmp_path):
    whole = Training(tmp_path / "whole", workers=workers)
    expected = whole.run(halves=True)
    cut = Training(tmp_path / "cut", workers=workers)
    cut.before_iteration = lambda iteration: (
        os.kill(os.getpid(), signal.SIGTERM) if iteration == at else None
    )
    with pytest.raises(SystemExit) as stop:
        cut.run(halves=True)
    assert stop.value.code == STOPPED
    again = Training(tmp_path / "cut", workers=workers)
    state = again.trainer.state
    assert 4 * state.epoch + state.step == at
    assert same(again.run(halves=True), expected)
    assert again.trainer.state == whole.trainer.state == RunState(3, 0, 0.5, 2, half_validated=3)
    assert cut.validated + again.validated == whole.validated


def test_an_exception_loses_what_came_after_the_last_checkpoint(tmp_path):
    expected = Training(tmp_path / "whole", save_iters=3).run()
    cut = Training(tmp_path / "cut", save_iters=3)

    def fail(iteration):
        if iteration == 6:
            raise ZeroDivisionError

    cut.before_iteration = fail
    with pytest.raises(ZeroDivisionError):
        cut.run()
    again = Training(tmp_path / "cut", save_iters=3)
    assert (again.trainer.state.epoch, again.trainer.state.step) == (1, 0)
    assert same(again.run(), expected)


def test_what_a_kill_during_a_save_left_is_removed(tmp_path):
    torn = tmp_path / "snapshot" / "next.pth.123.tmp"
    torn.parent.mkdir()
    torn.touch()
    Training(tmp_path).run()
    assert {path.name for path in torn.parent.iterdir()} == {
        "last.pth",
        "previous.pth",
        "best_epoch_2_0.5000.pth",
    }


def test_validation_can_be_left_at_once(tmp_path):
    training = Training(tmp_path)
    plain = training.validate

    def interrupted():
        os.kill(os.getpid(), signal.SIGINT)
        return plain()

    training.validate = interrupted
    with pytest.raises(SystemExit):
        training.run()
    again = Training(tmp_path)
    assert (again.trainer.state.epoch, again.trainer.state.step) == (0, 4)
    again.run()
    assert again.validated == [(0, 4), (1, 4), (2, 4)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_validation_in_the_middle_of_an_epoch_that_was_left_is_done_again(tmp_path):
    whole = Training(tmp_path / "whole")
    expected = whole.run(halves=True)
    cut = Training(tmp_path / "cut", save_iters=0)
    plain = cut.validate

    def interrupted():
        if cut.trainer.state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return plain()

    cut.validate = interrupted
    with pytest.raises(SystemExit):
        cut.run(halves=True)
    again = Training(tmp_path / "cut", save_iters=0)
    assert (again.trainer.state.epoch, again.trainer.state.step) == (1, 2)
    assert same(again.run(halves=True), expected)
    assert cut.validated + again.validated == whole.validated


def test_the_rest_of_an_epoch_with_other_batches_has_an_order_of_its_own(tmp_path, monkeypatch):
    cut = Training(tmp_path)
    cut.before_iteration = lambda i: os.kill(os.getpid(), signal.SIGTERM) if i == 6 else None
    with pytest.raises(SystemExit):
        cut.run()
    orders = []
    monkeypatch.setattr(TrainLoader, "set_epoch", lambda _, epoch: orders.append(epoch))
    Training(tmp_path, batch_size=6).run()
    assert orders[0] not in range(3) and orders[1:] == [2]


def test_other_batches_than_before_are_said_and_trained(tmp_path):
    cut = Training(tmp_path)
    cut.before_iteration = lambda i: os.kill(os.getpid(), signal.SIGTERM) if i == 6 else None
    with pytest.raises(SystemExit):
        cut.run()
    again = Training(tmp_path, batch_size=6)
    assert (again.trainer.state.epoch, again.trainer.state.step) == (1, 1)
    assert "the rest of the epoch is drawn again" in (tmp_path / "log.txt").read_text()
    again.run()
    assert again.trainer.state.epoch == 3


def test_the_best_is_kept_and_waiting_for_a_better_one_ends(tmp_path):
    training = Training(tmp_path, stop_interval=1)
    training.run()
    assert find_best(tmp_path / "snapshot")[:2] == (0.5, 2)
    assert training.trainer.state == RunState(3, 0, 0.5, 2)
    assert "no better mIoU for 1 epochs: stopping" in (tmp_path / "log.txt").read_text()


def test_reports_are_lines_and_json(tmp_path):
    training = Training(tmp_path)
    training.run()
    log = (tmp_path / "log.txt").read_text()
    assert re.search(r"^\S+ \S+ +2/3 +6/12 +\d\.\d{4} +0\.2000 ", log, re.MULTILINE)
    rows = [json.loads(line) for line in (tmp_path / "scalars.jsonl").read_text().splitlines()]
    train = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in train] == [2, 4, 6, 8, 10, 12]
    names = {"loss", "gradient", "rate", "samples_per_s", "data_wait", "peak_gb", "skipped"}
    assert {f"train/{name}" for name in names} == set(train[0]) - {"step"}
    assert train[1]["train/rate"] == 0.1 / 4 and 0 <= train[0]["train/data_wait"] <= 1
    assert [row["val/mIoU"] for row in rows if "val/mIoU" in row] == [0.2, 0.5, 0.3]


def test_a_torn_line_of_scalars_does_not_spoil_the_next(tmp_path):
    (tmp_path / "scalars.jsonl").write_text('{"step": 1}\n{"ste')
    scalars = Scalars(tmp_path)
    scalars.add("train", {"loss": 0.5}, 2)
    scalars.close()
    last = (tmp_path / "scalars.jsonl").read_text().splitlines()[-1]
    assert json.loads(last) == {"step": 2, "train/loss": 0.5}


def test_a_loss_that_is_not_finite_is_skipped(tmp_path):
    training = Training(tmp_path, broken=[5])
    before = []
    training.before_iteration = lambda _: before.append(
        {key: value.clone() for key, value in training.net.state_dict().items()}
    )
    state = training.run()
    assert all(value.isfinite().all() for value in state.values())
    skipped = [
        index
        for index in range(11)
        if before[index]["0.weight"].equal(before[index + 1]["0.weight"])
    ]
    assert len(skipped) in (2, 3)
    for index in skipped:
        assert same(before[index], before[index + 1])


def test_skipped_iterations_are_counted(tmp_path):
    Training(tmp_path, broken=[5]).run()
    rows = [json.loads(line) for line in (tmp_path / "scalars.jsonl").read_text().splitlines()]
    assert sum(row.get("train/skipped", 0) for row in rows) == 3
    assert (tmp_path / "log.txt").read_text().count("1 skipped: not finite") == 3


def test_of_accumulated_batches_the_one_that_is_not_finite_is_blamed(tmp_path):
    training = Training(tmp_path, broken=[5], batch_size=2, accumulated=6, max_nonfinite=1)
    blamed = r"iteration 1 with (5\.jpg, \d+\.jpg|\d+\.jpg, 5\.jpg); lower the rate"
    with pytest.raises(UserError, match=blamed):
        training.run()


def scaled(folder, scale, **options):
    """A training whose loss is scaled, as in float16."""
    training = Training(folder, **options)
    training.trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return training


def test_a_scaled_loss_that_is_not_finite_is_skipped_and_the_scale_stays(tmp_path):
    training = scaled(tmp_path, 4.0, broken=[5])
    state = training.run()
    assert all(value.isfinite().all() for value in state.values())
    assert training.trainer.precision.scaler.get_scale() == 4.0


def test_a_scale_that_overflows_is_lowered_and_not_reported_as_a_gradient(tmp_path):
    training = scaled(tmp_path, 2.0**127, print_freq=1)
    training.losses_of = lambda batch: {"loss": 16 * training.net(batch["x"]).square().mean()}
    training.run()
    assert training.trainer.precision.scaler.get_scale() < 2.0**127
    assert "Infinity" not in (tmp_path / "scalars.jsonl").read_text()


def test_gradients_that_no_scale_mends_end_the_training(tmp_path):
    training = scaled(tmp_path, 2.0, max_nonfinite=3)
    # Its value is 0, its slope there is not.
    training.losses_of = lambda batch: {"loss": (0 * training.net(batch["x"])).sqrt().sum()}
    with pytest.raises(UserError, match="3 times in a row"):
        training.run()


def test_training_stops_when_losses_stay_non_finite_and_names_the_files(tmp_path):
    training = Training(tmp_path / "few", broken=range(12), max_nonfinite=3)
    with pytest.raises(UserError, match=r"3 times in a row, last at iteration 3 with \d+.jpg, "):
        training.run()
    # An epoch has four.
    training = Training(tmp_path / "many", broken=range(12), max_nonfinite=6)
    with pytest.raises(UserError, match="6 times in a row, last at iteration 6 with"):
        training.run()


@pytest.mark.parametrize("accumulated", [1, 2])
def test_accumulated_batches_give_the_gradient_of_one(accumulated, tmp_path):
    training = Training(tmp_path, batch_size=4 // accumulated, accumulated=accumulated)
    trainer = training.trainer
    assert trainer.global_batch == 4 and trainer.steps == 3
    net = nn.Linear(2, 1)
    nn.init.ones_(net.weight)
    training.net = net
    optimizer = torch.optim.SGD([{"params": net.parameters(), "lr": 1.0, "ratio": 1.0}])
    trainer.recipe = replace(trainer.recipe, net=net, optimizer=optimizer)
    fixed = torch.arange(8.0).view(4, 2)
    parts = iter(fixed.split(4 // accumulated))
    expected = nn.Linear(2, 1)
    expected.load_state_dict(net.state_dict())
    (expected(fixed) - 1).square().mean().backward()

    def losses_of(_):
        return {"loss": (net(next(parts)) - 1).square().mean()}

    def leave(iteration):
        if iteration == 2:
            raise ZeroDivisionError

    training.losses_of, training.before_iteration = losses_of, leave
    with pytest.raises(ZeroDivisionError):
        training.run()
    gradients = [p.grad for p in net.parameters()]
    for gradient, wanted in zip(gradients, expected.parameters(), strict=True):
        torch.testing.assert_close(gradient, wanted.grad, rtol=1e-6, atol=1e-6)


def test_the_start_says_what_is_trained(tmp_path):
    training = Training(tmp_path, batch_size=2, accumulated=3)
    training.trainer.describe()
    log = (tmp_path / "log.txt").read_text()
    assert "12 images, global batch 6 (2 × 1 processes × 3 accumulated), 6 iterations" in log
    assert "rates 1.0e-01 for 0.00 M" in log


def stop_together(processes, folder):
    training = Training(folder, processes=processes)
    if processes.is_main:
        training.before_iteration = lambda i: (
            os.kill(os.getpid(), signal.SIGTERM) if i == 2 else None
        )
    with pytest.raises(SystemExit) as stop:
        training.run()
    (folder / str(processes.rank)).write_text(f"{stop.value.code} {dist.is_initialized()}")
    sys.exit(0)


def test_stopped_by_a_signal_the_processes_save_and_leave_their_group(tmp_path):
    spawn_two(stop_together, tmp_path)
    assert [(tmp_path / rank).read_text() for rank in "01"] == [f"{STOPPED} False"] * 2


def test_a_second_training_in_the_folder_is_refused(tmp_path):
    cfg = Config(num_classes=2, folds=[[2]], data_set="points")
    code = """if True:
        import sys, time
        from pathlib import Path
        from util.runtime.lock import exclusive
        with exclusive(Path(sys.argv[1]) / ".lock"):
            print("held", flush=True)
            time.sleep(60)"""
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        refused = pytest.raises(UserError, match=rf"is in use by process {other.pid} on ")
        with refused, open_run(cfg, tmp_path, ALONE, viz=False):
            pass
        assert not (tmp_path / "log.txt").exists()
        other.kill()
    with open_run(cfg, tmp_path, ALONE, viz=False) as run:
        assert run.snapshot == tmp_path / "snapshot"


def test_memory_is_measured():
    assert 2**20 < peak_memory(torch.device("cpu")) < 2**40


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write in .*file.*; set exp_dir"):
        get_logger(tmp_path / "file" / "run", is_main=True)


def test_random_streams_go_on_as_if_nothing_happened():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_everything(3)
    draw()
    expected = draw()
    seed_everything(3)
    draw()
    with untouched_random_streams():
        seed_everything(99)
        draw()
    assert draw() == expected


def test_labels_become_int64_on_the_device():
    label, image = torch.tensor([0, 1, 255], dtype=torch.uint8), torch.rand(2)
    moved = to_device({"label": label, "image": image}, ALONE.device)
    assert moved["label"].dtype == torch.int64 and moved["label"].tolist() == [0, 1, 255]
    assert moved["image"].equal(image) and moved["image"].dtype == torch.float32
