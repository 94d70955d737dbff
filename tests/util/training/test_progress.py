import json
import logging

import pytest
import torch

from util.training import progress
from util.training.progress import Progress, Scalars, draw_curves

LOSSES = {"loss": 1.23456, "main": 0.98766, "distillation": 0.12345, "base": 0.12346}


@pytest.fixture
def clock(monkeypatch):
    """A list of one number, the time in seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_rows_stand_under_a_header_that_every_epoch_repeats(clock, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    scalars = Scalars(tmp_path)
    table = Progress(logging.getLogger("table"), scalars, 200, 297600, 17846)
    values = {name: torch.tensor(value) for name, value in LOSSES.items()}
    values["gradient"] = torch.tensor(3.0)
    for epoch, iteration, best in ((12, 17856, -1.0), (12, 17866, 0.51234), (13, 123456, 0.51234)):
        if iteration != 17866:
            table.start_epoch(epoch)
        clock[0] += 10
        table.count(80, values, 0.2)
        table.count(43, values, 0.3)
        table.report(iteration, 9.8e-5, best, 12369505812)
    header, first, second, again, third = (record.message for record in caplog.records)
    assert (
        header
        == again
        == (
            "  epoch      iteration     loss     main  distill     base  best mIoU"
            "     rate  items/s  data     GB      left"
        )
    )
    assert second == (
        " 12/200   17866/297600   1.2346   0.9877   0.1235   0.1235     0.5123"
        "  9.8e-05     12.3    5%   11.5  77:42:14"
    )
    assert first.split()[6] == "-" and len(first) == len(third) == len(header)
    scalars.close()
    row = json.loads((tmp_path / "scalars.jsonl").read_text().splitlines()[0])
    expected = {"samples_per_s": 12.3, "data_wait": 0.05, "skipped": 0, "rate": 9.8e-5}
    expected |= LOSSES | {"gradient": 3.0, "peak_gb": 11.52}
    named = {f"train/{name}": value for name, value in expected.items()}
    assert row.pop("step") == 17856 and row == pytest.approx(named, rel=1e-3)


def report(clock, seconds, iteration=4, total=8, done=0, best=-1.0, values=None):
    """Report four iterations that took some seconds together."""
    table = Progress(logging.getLogger("table"), Scalars(None), 2, total, done)
    table.start_epoch(1)
    for _ in range(4):
        table.count(1, values, 0.0)
    clock[0] += seconds
    table.report(iteration, 1e-4, best, 0)


def test_skipped_iterations_are_told_and_losses_may_be_missing(clock, caplog):
    caplog.set_level(logging.INFO)
    report(clock, 1.0)
    assert caplog.records[-1].message.endswith("0:00:01  4 skipped: not finite")


@pytest.mark.parametrize(
    ("numbers", "left"),
    [
        # Seconds of four iterations, those done now, of all, and before.
        *(((4, 4, 4 + n, 0), text) for n, text in ((0, "0:00:00"), (59, "0:00:59"))),
        *(((4, 4, 4 + n, 0), text) for n, text in ((60, "0:01:00"), (3599, "0:59:59"))),
        *(((4, 4, 4 + n, 0), text) for n, text in ((3600, "1:00:00"), (7199, "1:59:59"))),
        ((4, 14, 17, 10), "0:00:03"),
        ((4, 11, 13, 10), "0:00:08"),
        ((4, 10, 13, 10), "0:00:12"),  # the last iteration of a run that goes on
    ],
)
def test_the_time_left_is_that_of_the_rest_at_the_speed_so_far(numbers, left, clock, caplog):
    caplog.set_level(logging.INFO)
    clock[0] = 50.0  # No clock starts at 0.
    report(clock, *numbers, values={})
    assert caplog.records[-1].message.split()[-1] == left


@pytest.mark.parametrize(("seconds", "speed"), [(0.5, "8.0"), (0.0, "4000000000.0")])
def test_speed_is_that_of_any_span_of_time(seconds, speed, clock, caplog):
    caplog.set_level(logging.INFO)
    report(clock, seconds, best=0.0, values={})
    row = dict(
        zip(
            *(record.message.replace("best mIoU", "best").split() for record in caplog.records),
            strict=True,
        )
    )
    assert (row["items/s"], row["best"]) == (speed, "0.0000")


def test_curves_are_a_file_beside_the_scalars(tmp_path, caplog):
    scalars = Scalars(tmp_path)
    scalars.add("train", {"loss": 2.0, "rate": 0.1}, 10)
    scalars.close()
    with pytest.raises(ValueError, match="closed file"):
        scalars.add("train", {"loss": 1.0}, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["scalars.jsonl"]
    draw_curves(tmp_path, logging.getLogger("table"))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG") and not caplog.records


def test_tensorboard_gets_the_same_scalars_where_it_is_wanted(tmp_path, monkeypatch):
    calls = []

    class Writer:
        def __init__(self, folder):
            calls.append(folder)

        def add_scalar(self, *scalar):
            calls.append(scalar)

        def close(self):
            calls.append("closed")

    monkeypatch.setattr("tensorboardX.SummaryWriter", Writer)
    scalars = Scalars(tmp_path, True)
    scalars.add("val", {"mIoU": 0.5, "FBIoU": 0.25}, 7)
    scalars.close()
    assert calls == [str(tmp_path), ("val/mIoU", 0.5, 7), ("val/FBIoU", 0.25, 7), "closed"]
    for folder in (tmp_path, None):  # Not the process that reports.
        Scalars(folder, tensorboard=folder is None).close()
    assert len(calls) == 4


@pytest.mark.parametrize("before", ["", '{"step": 1}\n', '{"ste'])
def test_a_line_that_a_kill_cut_off_is_ended(before, tmp_path):
    path = tmp_path / "scalars.jsonl"
    path.write_text(before)
    scalars = Scalars(tmp_path)
    scalars.add("val", {"mIoU": 0.5}, 7)
    assert (
        path.read_text() == before + "\n" * (before == '{"ste') + '{"step": 7, "val/mIoU": 0.5}\n'
    )
    scalars.close()


@pytest.mark.parametrize(
    "error", [OSError("disk full"), ImportError("no matplotlib"), MemoryError()]
)
def test_curves_that_fail_are_a_line_in_the_log(error, tmp_path, caplog, monkeypatch):
    def fails(path):
        raise error

    monkeypatch.setattr("util.evaluation.charts.training_curves", fails)
    draw_curves(tmp_path, logging.getLogger("table"))
    (record,) = caplog.records
    assert record.message == f"{tmp_path}/curves.png is not written: {error}"
    assert not list(tmp_path.iterdir())
