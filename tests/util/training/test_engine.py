"""The training loop: exact resuming, validation, reports, and losses that are not finite."""

import json
import os
import random
import re
import signal
import sys
import traceback
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset, RandomSampler

from tests.processes import spawn_two
from util.checkpoints.run_files import find_best
from util.config.schema import Config
from util.data.data_loader import TrainLoader
from util.runtime.distributed import Processes
from util.runtime.errors import UserError
from util.runtime.log import get_logger
from util.runtime.seed import seed_everything, untouched_random_streams
from util.training import engine, iteration
from util.training.engine import Run, Trainer, open_run
from util.training.iteration import Recipe, to_device
from util.training.progress import Progress, Scalars
from util.training.resume import RunState, find_saved
from util.training.signals import STOPPED

ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True, scope="module")
def drawn():
    """The number of validations written when the curves were drawn, each time; draws nothing."""
    times = []

    def draw(folder, logger):
        times.append((folder / "scalars.jsonl").read_text().count("val/"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "draw_curves", draw)
        yield times


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
    """A small net with dropout and batch norm, trained for three epochs of four iterations.

    Its methods `losses_of`, `validate` and `before_iteration` may be replaced before it runs.
    """

    def __init__(
        self,
        folder,
        broken=(),
        batch_size=3,
        accumulated=1,
        processes=ALONE,
        halves=False,
        **settings,
    ):
        settings = {"epochs": 3, "print_freq": 2, "save_iters": 1, "workers": 0} | settings
        cfg = Config(num_classes=2, folds=[[2]], data_set="points", **settings)
        seed_everything(1)
        self.net = nn.Sequential(
            nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1)
        )
        data = Points(broken)
        recipe = Recipe(
            self.net,
            torch.optim.AdamW([{"params": self.net.parameters(), "lr": 0.1, "ratio": 1.0}]),
            TrainLoader(data, RandomSampler(data), batch_size, cfg.workers),
            accumulated,
            3,
            {"base_classes": [1]},
            lambda forward, batch: self.losses_of(forward, batch),
            self.rate_of,
            lambda _: self.validate(),
            lambda _: True,
        )
        if halves:
            recipe = replace(recipe, halves=True)
        logger = get_logger(folder, processes.is_main)
        scalars = Scalars(folder if processes.is_main else None)
        saved = find_saved("auto", folder / "snapshot", processes, logger)
        self.trainer = Trainer(Run(cfg, folder, processes, logger, scalars, saved), recipe)
        self.validated = []
        self.before_iteration = lambda _: None

    @property
    def position(self):
        return self.trainer.state.epoch, self.trainer.state.step

    def losses_of(self, forward, batch):
        return {"loss": (forward(batch["x"]) - 1).square().mean()}

    def rate_of(self, iteration):
        self.before_iteration(iteration)
        return 0.1 / iteration

    def validate(self):
        seed_everything(99)
        self.validated.append(self.position)
        return {"mIoU": [0.2, 0.5, 0.3][self.trainer.state.epoch]}

    def run(self):
        self.trainer.train()
        return self.net.state_dict()

    def stop_at(self, iteration):
        """Run until a signal comes in an iteration, and return the exit code."""
        self.before_iteration = lambda number: (
            os.kill(os.getpid(), signal.SIGTERM) if number == iteration else None
        )
        with pytest.raises(SystemExit) as stop:
            self.run()
        # Ends the loader processes. Left to the garbage collector, each would be waited for 5 s.
        traceback.clear_frames(stop.tb)
        return stop.value.code

    def stop_in_validation(self, step):
        """Run until a signal comes in the first validation at a step of an epoch."""
        plain = self.validate

        def interrupted():
            if self.trainer.state.step == step:
                os.kill(os.getpid(), signal.SIGINT)
            return plain()

        self.validate = interrupted
        with pytest.raises(SystemExit):
            self.run()


def same(one, other):
    return all(one[key].equal(other[key]) for key in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A function that returns a training with halves which was not interrupted, and its weights."""
    done = {}

    def trained(workers):
        if workers not in done:
            folder = tmp_path_factory.mktemp("whole")
            training = Training(folder, workers=workers, halves=True)
            done[workers] = training, training.run()
        return done[workers]

    return trained


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Folder and weights of a training after one that was killed while it saved and reported."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "snapshot").mkdir()
    (folder / "snapshot" / "next.pth.123.tmp").touch()
    (folder / "scalars.jsonl").write_text('{"step": 1}\n{"ste')
    return folder, Training(folder).run()


@pytest.mark.slow
def test_a_run_that_goes_on_says_which_settings_are_others(tmp_path):
    assert Training(tmp_path).stop_at(3) == STOPPED
    other = {"base_lr": 0.5, "train_h": 105, "train_w": 105, "test_num": 7, "resume": "last.pth"}
    Training(tmp_path)
    Training(tmp_path, **other)
    resumed, same_again, changed = (
        line.split(maxsplit=2)[2]
        for line in (tmp_path / "log.txt").read_text().splitlines()
        if "resumed" in line or "differ" in line
    )
    assert (
        resumed
        == same_again
        == (f"resumed from {tmp_path}/snapshot/last.pth: 0 epochs and 3 iterations done")
    )
    assert changed == (
        "settings that differ from those before: train_h 105 (before: 473), "
        "train_w 105 (before: 473), base_lr 0.5 (before: 0.0001); exp_name NAME trains a run of its own"
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("at", [1, 2, 4, 5, 6, 7, 10, 11])
def test_a_run_that_is_stopped_goes_on_bit_for_bit(workers, at, whole, tmp_path):
    uninterrupted, expected = whole(workers)
    cut = Training(tmp_path, workers=workers, halves=True)
    assert cut.stop_at(at) == STOPPED
    again = Training(tmp_path, workers=workers, halves=True)
    epoch, step = again.position
    assert 4 * epoch + step == at
    assert same(again.run(), expected)
    assert again.trainer.state == RunState(3, 0, 0.5, 2, half_validated=3)
    assert cut.validated + again.validated == uninterrupted.validated


@pytest.mark.slow
@pytest.mark.parametrize(("fails_at", "position"), [(4, (0, 3)), (6, (1, 0))])
def test_an_exception_loses_what_came_after_the_last_checkpoint(
    fails_at, position, plain, tmp_path
):
    cut = Training(tmp_path, save_iters=3)

    def fail(iteration):
        if iteration == fails_at:
            raise ZeroDivisionError

    cut.before_iteration = fail
    with pytest.raises(ZeroDivisionError):
        cut.run()
    again = Training(tmp_path, save_iters=3)
    assert again.position == position
    assert same(again.run(), plain[1])


@pytest.mark.slow
def test_what_a_kill_left_is_removed_or_passed_over(plain):
    folder, _ = plain
    assert {path.name for path in (folder / "snapshot").iterdir()} == {
        "last.pth",
        "previous.pth",
        "best_epoch_2_0.5000.pth",
    }
    lines = (folder / "scalars.jsonl").read_text().splitlines()
    assert lines[:2] == ['{"step": 1}', '{"ste'] and json.loads(lines[2])["step"] == 2


def test_validation_can_be_left_at_once(tmp_path):
    Training(tmp_path).stop_in_validation(4)
    again = Training(tmp_path)
    assert again.position == (0, 4)
    again.run()
    assert again.validated == [(0, 4), (1, 4), (2, 4)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("settings", "validated", "expected"),
    [
        ({"save_iters": 0, "save_freq": 2}, {}, [(0, 0), (2, 0), (3, 0)]),
        ({"save_iters": 0, "save_freq": 1}, {}, [(0, 0), (1, 0), (2, 0), (3, 0)]),
        # Before each validation, and after one that brought a better value.
        (
            {"save_iters": 0, "save_freq": 9},
            {1: 0.5, 2: 0.5, 3: 0.4},
            [(0, 0), (0, 4), (1, 0), (1, 4), (2, 4), (3, 0)],
        ),
        ({"save_iters": 5, "save_freq": 9}, {}, [(0, 0), (1, 1), (2, 2), (3, 0)]),
        (
            {"save_iters": 1, "save_freq": 9},
            {},
            [(0, 0), *((epoch, step) for epoch in range(3) for step in (1, 2, 3, 4)), (3, 0)],
        ),
    ],
)
def test_checkpoints_come_as_often_as_set_and_at_the_end(
    settings, validated, expected, tmp_path, monkeypatch
):
    training, saved = Training(tmp_path, **settings), []
    training.trainer.recipe = replace(
        training.trainer.recipe,
        validates=validated.__contains__,
        validate=lambda epochs: {"mIoU": validated[epochs + 1]},
    )
    monkeypatch.setattr(engine, "save_run", lambda *args: saved.append(training.position))
    training.run()
    assert saved == expected
    best = 1 if validated else 0
    assert training.trainer.state.best_epoch == best, "of two that are equal, the first"


def test_a_training_that_is_complete_does_nothing_more(tmp_path):
    Training(tmp_path).run()
    before = (tmp_path / "scalars.jsonl").read_text()
    for epochs in (3, 2):
        again = Training(tmp_path)
        again.trainer.recipe = replace(again.trainer.recipe, epochs=epochs)
        again.run()
        assert again.position == (3, 0) and not again.validated
    assert (tmp_path / "scalars.jsonl").read_text() == before


def test_the_time_left_is_counted_from_where_a_training_goes_on(tmp_path, monkeypatch):
    Training(tmp_path).stop_at(10)
    given = []
    monkeypatch.setattr(engine, "Progress", lambda *args: given.append(args[2:]) or Progress(*args))
    Training(tmp_path).run()
    assert given == [(3, 12, 10)], "epochs, iterations, and those done before"


def test_a_validation_in_the_middle_of_an_epoch_that_was_left_is_done_again(whole, tmp_path):
    uninterrupted, expected = whole(0)
    cut = Training(tmp_path, save_iters=0, halves=True)
    cut.stop_in_validation(2)
    again = Training(tmp_path, save_iters=0, halves=True)
    assert again.position == (1, 2)
    assert same(again.run(), expected)
    assert cut.validated + again.validated == uninterrupted.validated
    assert (tmp_path / "log.txt").read_text().count("epoch 1.5/3  mIoU 0.5000") == 1


def test_the_middle_of_an_odd_number_of_iterations_comes_after_the_middle_one(tmp_path):
    training = Training(tmp_path, batch_size=4, halves=True)
    training.run()
    assert training.validated == [(0, 3), (1, 2), (1, 3), (2, 2), (2, 3)]


# Of epochs that had four iterations and have two or, with batches of 4, three.
@pytest.mark.parametrize(
    ("stopped_at", "batch_size", "step"), [(5, 6, 0), (6, 6, 1), (7, 6, 1), (5, 4, 1)]
)
def test_the_rest_of_an_epoch_with_other_batches_has_an_order_of_its_own(
    stopped_at, batch_size, step, tmp_path, monkeypatch
):
    Training(tmp_path).stop_at(stopped_at)
    orders = []
    monkeypatch.setattr(TrainLoader, "set_epoch", lambda _, epoch: orders.append(epoch))
    again = Training(tmp_path, batch_size=batch_size)
    assert again.position == (1, step)
    assert "the rest of the epoch is drawn again" in (tmp_path / "log.txt").read_text()
    again.run()
    # No epoch has this order, and no other place where a training may be continued.
    assert orders == [1 + 3 * (step + 1), 2]
    assert again.position == (3, 0)


def test_other_batches_are_drawn_by_a_seed_that_no_other_place_has(tmp_path, monkeypatch):
    folders = [tmp_path / str(iteration) for iteration in (1, 3, 5)]
    for folder in folders:
        Training(folder).stop_at(int(folder.name))
    seeds = []
    monkeypatch.setattr(engine, "seed_everything", seeds.append)
    for folder in folders:
        again = Training(folder, batch_size=6)
    first = again.trainer.cfg.manual_seed + 3  # Those of the epochs come before.
    assert seeds == [first, first + 1, first + 2]


def test_only_the_epochs_that_the_recipe_names_end_with_a_validation(tmp_path):
    training, asked, validated = Training(tmp_path), [], []

    def validates(epoch):
        asked.append(epoch)
        return epoch == 2

    def validate(epochs):
        validated.append((epochs, training.position))
        return {"mIoU": 0.5}

    recipe = training.trainer.recipe
    training.trainer.recipe = replace(recipe, validates=validates, validate=validate)
    training.run()
    assert asked == [1, 2, 3] and validated == [(1, (1, 4))]


@pytest.mark.parametrize(("amp", "dtype"), [("bf16", torch.bfloat16), ("off", torch.float32)])
def test_iterations_and_validations_compute_in_the_chosen_precision(amp, dtype, tmp_path):
    training, types = Training(tmp_path, amp=amp), {"pass": set(), "loss": set(), "val": set()}
    ones = torch.ones(2, 2)

    def losses_of(forward, batch):
        output = forward(batch["x"])
        types["pass"].add(output.dtype)
        types["loss"].add((ones @ ones).dtype)
        return {"loss": (output.float() - 1).square().mean()}

    def validate():
        types["val"].add(training.net(ones).dtype)
        return {"mIoU": 0.5}

    training.losses_of, training.validate = losses_of, validate
    training.run()
    # The loss is computed in float32 either way.
    assert types == {"pass": {dtype}, "loss": {torch.float32}, "val": {dtype}}


def test_the_best_is_kept_and_waiting_for_a_better_one_ends(tmp_path):
    training = Training(tmp_path, stop_interval=1)
    training.run()
    assert find_best(tmp_path / "snapshot")[:2] == (0.5, 2)
    assert training.trainer.state == RunState(3, 0, 0.5, 2)
    assert "no better mIoU for 1 epochs: stopping" in (tmp_path / "log.txt").read_text()


def test_the_log_says_once_what_computes_and_what_is_trained(tmp_path):
    cfg = Config(num_classes=2, folds=[[2]], data_set="points")
    with open_run(cfg, tmp_path, ALONE, viz=False) as run:
        assert run.snapshot == tmp_path / "snapshot" and run.saved is None
    Training(tmp_path, batch_size=2, accumulated=3).run()
    log = (tmp_path / "log.txt").read_text()
    assert log.count(f"torch {torch.__version__}, CUDA ") == log.count("; commit ") == 1
    assert "12 images, global batch 6 (2 × 1 process × 3 accumulated), 6 iterations" in log
    assert "0.00 M parameters, 0.00 M trained, rates 1.0e-01 for 0.00 M" in log
    assert "batch norms learn" not in log


def test_the_log_counts_the_parameters_of_each_rate(tmp_path):
    training = Training(tmp_path)
    net = nn.Sequential(nn.Linear(999, 1000), nn.Linear(499, 1000), nn.Linear(249, 1000))
    groups = [
        {"params": part.parameters(), "lr": lr, "ratio": 1.0}
        for part, lr in zip(net[:2], (1e-4, 1e-3), strict=True)
    ]
    optimizer = torch.optim.SGD(groups)
    training.trainer.recipe = replace(training.trainer.recipe, net=net, optimizer=optimizer)
    training.trainer._describe()
    log = (tmp_path / "log.txt").read_text()
    assert "1.75 M parameters, 1.50 M trained, rates 1.0e-04 for 1.00 M, 1.0e-03 for 0.50 M" in log


def test_curves_are_drawn_after_every_validation_and_at_the_end(tmp_path, drawn):
    for validates, expected in ((True, [1, 2, 3]), (False, [0])):
        training = Training(tmp_path / str(validates))
        recipe = replace(training.trainer.recipe, validates=lambda _, wanted=validates: wanted)
        training.trainer.recipe = recipe
        drawn.clear()
        training.run()
        assert drawn == expected
    drawn.clear()
    other = Training(tmp_path / "second", processes=Processes(1, 1, torch.device("cpu")))
    other.trainer._draw_curves()
    assert not drawn


def test_a_second_training_in_the_folder_is_refused(tmp_path, monkeypatch):
    def taken(path, is_main):
        raise UserError(f"{path} is in use")

    monkeypatch.setattr(engine, "exclusive", taken)
    cfg = Config(num_classes=2, folds=[[2]], data_set="points")
    refused = pytest.raises(UserError, match=r"\.lock is in use")
    with refused, open_run(cfg, tmp_path, ALONE, viz=False):
        pass
    assert not (tmp_path / "log.txt").exists()


@pytest.mark.slow
def test_reports_are_lines_and_json(plain):
    folder, _ = plain
    log = (folder / "log.txt").read_text()
    assert re.search(r"^\S+ \S+ +2/3 +6/12 +\d\.\d{4} +0\.2000 ", log, re.MULTILINE)
    lines = (folder / "scalars.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[2:]]
    train = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in train] == [2, 4, 6, 8, 10, 12]
    names = {"loss", "gradient", "rate", "samples_per_s", "data_wait", "peak_gb", "skipped"}
    assert {f"train/{name}" for name in names} == set(train[0]) - {"step"}
    assert train[1]["train/rate"] == 0.1 / 4 and 0 <= train[0]["train/data_wait"] <= 1
    assert [row["val/mIoU"] for row in rows if "val/mIoU" in row] == [0.2, 0.5, 0.3]


@pytest.mark.parametrize(
    ("print_freq", "steps"), [(3, [3, 4, 6, 8, 9, 12]), (1, [*range(1, 13)]), (99, [4, 8, 12])]
)
def test_reports_come_as_often_as_set_and_at_the_end_of_an_epoch(print_freq, steps, tmp_path):
    Training(tmp_path, print_freq=print_freq, halves=True).run()
    rows = [json.loads(line) for line in (tmp_path / "scalars.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == steps
    # In the middle of each epoch but the first, and at its end.
    assert [row["step"] for row in rows if "val/mIoU" in row] == [4, 6, 8, 10, 12]
    epochs = re.findall(r"epoch (\S+)  mIoU (\S+)", (tmp_path / "log.txt").read_text())
    values = ("0.2000", "0.5000", "0.5000", "0.3000", "0.3000")
    assert epochs == [
        (f"{n}/3", value) for n, value in zip(("1", "1.5", "2", "2.5", "3"), values, strict=True)
    ]


def test_what_is_reported_is_the_mean_over_batches_and_iterations(tmp_path):
    training, number = Training(tmp_path, accumulated=2), iter(range(1, 13))
    training.losses_of = lambda net, batch: {"loss": 0 * net(batch["x"]).sum() + next(number)}
    training.run()
    rows = map(json.loads, (tmp_path / "scalars.jsonl").read_text().splitlines())
    # Batches 1 to 4, then 5 to 8 and 9 to 12.
    assert [row["train/loss"] for row in rows if "train/loss" in row] == [2.5, 6.5, 10.5]


def test_a_loss_that_is_not_finite_is_skipped_and_counted(tmp_path):
    training = Training(tmp_path, broken=[5])
    before = []
    training.before_iteration = lambda _: before.append(
        {key: value.clone() for key, value in training.net.state_dict().items()}
    )
    before.append(training.run())
    assert all(value.isfinite().all() for value in before[-1].values())
    pairs = list(pairwise(before))
    skipped = [pair for pair in pairs if pair[0]["0.weight"].equal(pair[1]["0.weight"])]
    assert len(skipped) == 3 and all(same(*pair) for pair in skipped)
    rows = [json.loads(line) for line in (tmp_path / "scalars.jsonl").read_text().splitlines()]
    assert sum(row.get("train/skipped", 0) for row in rows) == 3
    assert (tmp_path / "log.txt").read_text().count("1 skipped: not finite") == 3


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
    training.losses_of = lambda net, batch: {"loss": 16 * net(batch["x"]).square().mean()}
    training.run()
    assert training.trainer.precision.scaler.get_scale() < 2.0**127
    assert "Infinity" not in (tmp_path / "scalars.jsonl").read_text()


def test_gradients_that_no_scale_mends_end_the_training(tmp_path):
    training = scaled(tmp_path, 2.0, max_nonfinite=3)
    # Its value is 0, its slope there is not.
    training.losses_of = lambda net, batch: {"loss": (0 * net(batch["x"])).sqrt().sum()}
    # In the first iteration the scale is lowered to 1.
    with pytest.raises(UserError, match="3 times in a row, last at iteration 4 "):
        training.run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"broken": range(12), "max_nonfinite": 3}, r"3 times .* iteration 3 with \d+.jpg, \d+"),
        # An epoch has four.
        ({"broken": range(12), "max_nonfinite": 6}, r"6 times in a row, last at iteration 6 with"),
        (
            {"broken": [5], "batch_size": 2, "accumulated": 6, "max_nonfinite": 1},
            r"iteration 1 with (5\.jpg, \d+\.jpg|\d+\.jpg, 5\.jpg); lower the rate",
        ),
    ],
)
def test_training_stops_when_losses_stay_non_finite_and_names_the_files(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        Training(tmp_path, **options).run()


@pytest.mark.parametrize("accumulated", [1, 2])
def test_accumulated_batches_give_the_gradient_of_one(accumulated, tmp_path):
    training = Training(tmp_path, batch_size=4 // accumulated, accumulated=accumulated)
    trainer = training.trainer
    assert trainer.global_batch == 4 and trainer.steps == 3
    net, expected = nn.Linear(2, 1), nn.Linear(2, 1)
    nn.init.ones_(net.weight)
    expected.load_state_dict(net.state_dict())
    optimizer = torch.optim.SGD([{"params": net.parameters(), "lr": 1.0, "ratio": 1.0}])
    trainer.recipe = replace(trainer.recipe, net=net, optimizer=optimizer)
    fixed = torch.arange(8.0).view(4, 2)
    parts = iter(fixed.split(4 // accumulated))
    (expected(fixed) - 1).square().mean().backward()

    def leave(iteration):
        if iteration == 2:
            raise ZeroDivisionError

    training.losses_of = lambda forward, _: {"loss": (forward(next(parts)) - 1).square().mean()}
    training.before_iteration = leave
    with pytest.raises(ZeroDivisionError):
        training.run()
    for parameter, wanted in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, wanted.grad, rtol=1e-6, atol=1e-6)


def train_together(processes, folder):
    """Train with other batches in each process, and stop by a signal to the main one."""
    training = Training(folder, processes=processes)
    # Batches of its own: dropout and points differ.
    torch.manual_seed(processes.rank)
    training.losses_of = lambda forward, batch: {
        "loss": (forward(batch["x"] + processes.rank) - 1).square().mean()
    }
    seen = []
    plain = training.validate

    def validate():
        seen.append(training.net[1].running_mean.clone())
        return plain()

    training.validate = validate
    if processes.is_main:
        code = training.stop_at(10)
    else:
        with pytest.raises(SystemExit) as stop:
            training.run()
        code = stop.value.code
    torch.save([code, dist.is_initialized(), seen], folder / f"{processes.rank}.pth")
    sys.exit(0)


@pytest.mark.slow
def test_two_processes_validate_alike_and_save_and_leave_together_after_a_signal(tmp_path):
    spawn_two(train_together, tmp_path)
    (code, grouped, one), (other_code, other_grouped, other) = (
        torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1)
    )
    assert (code, other_code, grouped, other_grouped) == (STOPPED, STOPPED, False, False)
    # The statistics of batch norms are those of the main process.
    assert len(one) == 2 and one[0].any()
    assert all(a.equal(b) for a, b in zip(one, other, strict=True))
    assert "their running statistics are those of process 0" in (tmp_path / "log.txt").read_text()
    assert Training(tmp_path).position == (2, 2)


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


def test_processes_draw_alike_unless_each_has_its_own_seed(tmp_path, monkeypatch):
    # As if the other process did the same.
    monkeypatch.setattr(Processes, "sum", lambda self, counts: counts * self.world_size)
    monkeypatch.setattr(Processes, "agree", lambda *_: True)

    def draw(rank, **settings):
        cfg = Config(num_classes=2, folds=[[2]], data_set="points", **settings)
        folder, processes = tmp_path / str(rank), Processes(rank, 2, torch.device("cpu"))
        with open_run(cfg, folder, processes, viz=False):
            at_the_start = torch.rand(1).item()
        Training(folder, processes=processes, **settings).trainer._start_epoch()
        return at_the_start, torch.rand(1).item()

    assert draw(0) == draw(1) == draw(0, seed_per_rank=True)
    assert not {*draw(0)} & {*draw(1, seed_per_rank=True)}
    assert not {*draw(0)} & {*draw(0, manual_seed=7)}


@pytest.mark.parametrize(
    ("manual_seed", "rank", "seed_per_rank", "seed"),
    [(7, 0, True, 7), (7, 2, True, 2_000_007), (7, 2, False, 7), (None, 1, True, 1_000_000)],
)
def test_seeds_of_processes_are_further_apart_than_epochs(manual_seed, rank, seed_per_rank, seed):
    settings = {"manual_seed": manual_seed, "seed_per_rank": seed_per_rank}
    cfg = Config(num_classes=2, folds=[[2]], data_set="points", **settings)
    assert engine._seed(cfg, Processes(rank, 3, torch.device("cpu"))) == seed


@pytest.mark.parametrize(
    ("settings", "seeds"), [({}, [7, 8, 9]), ({"fix_random_seed_val": False}, [])]
)
def test_each_epoch_has_a_seed_of_its_own(settings, seeds, tmp_path, monkeypatch):
    training, found = Training(tmp_path, manual_seed=7, **settings), []
    monkeypatch.setattr(engine, "seed_everything", found.append)
    training.run()
    assert found == seeds


@pytest.mark.parametrize(
    ("batch_size", "accumulated", "said"),
    [
        (3, 1, "3 processes instead of 1; global batch 9, it was 4"),
        (2, 2, "3 processes instead of 1; global batch 12, it was 4"),
    ],
)
def test_the_global_batch_counts_all_processes(
    batch_size, accumulated, said, tmp_path, monkeypatch
):
    Training(tmp_path, batch_size=4).stop_at(2)
    monkeypatch.setattr(Processes, "agree", lambda *_: True)
    processes = Processes(0, 3, torch.device("cpu"))
    Training(tmp_path, processes=processes, batch_size=batch_size, accumulated=accumulated)
    assert said in (tmp_path / "log.txt").read_text()


def test_as_many_items_as_before_and_other_workers_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(Processes, "agree", lambda *_: True)
    Training(tmp_path, batch_size=4).stop_at(2)
    drawn_again = "the rest of the epoch is drawn again"
    Training(tmp_path, batch_size=4)
    log = tmp_path / "log.txt"
    assert "instead of" not in log.read_text() and drawn_again not in log.read_text()
    Training(tmp_path, batch_size=4, workers=2)
    assert log.read_text().count(drawn_again) == 1
    Training(tmp_path, batch_size=2, processes=Processes(0, 2, torch.device("cpu")))
    assert "2 processes instead of 1; global batch 4, as before" in log.read_text()
    assert log.read_text().count(drawn_again) == 2


def test_the_time_of_waiting_for_data_is_that_of_all_batches(tmp_path, monkeypatch):
    training, waited = Training(tmp_path, accumulated=2, print_freq=1), []
    seconds = iter(n**2 for n in range(99))
    monkeypatch.setattr(iteration, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.setattr(Progress, "count", lambda *args: waited.append(args[-1]))
    monkeypatch.setattr(Progress, "report", lambda *_: None)
    training.run()
    # 1 - 0 and 9 - 4, then 25 - 16 and 49 - 36.
    assert waited[:2] == [6, 22]


def test_what_a_setting_needs_is_asked_for_at_once(tmp_path, monkeypatch):
    def start(processes, **settings):
        cfg = Config(num_classes=2, folds=[[2]], data_set="points", **settings)
        with open_run(cfg, tmp_path, processes, viz=False) as run:
            return run.cfg

    for device in (torch.device("cpu"), torch.device("xpu", 0)):
        with pytest.raises(UserError, match="cuda_graphs True needs a GPU"):
            start(Processes(0, 1, device), cuda_graphs=True)
    with pytest.raises(
        UserError, match="with several processes, cuda_graphs True needs fix_bn True"
    ):
        start(Processes(0, 2, torch.device("cuda", 0)), cuda_graphs=True, fix_bn=False)
    assert start(ALONE, amp="auto").amp in ("off", "bf16")
    start(ALONE, compile=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"compile True needs a C\+\+ compiler"):
        start(ALONE, compile=True)
