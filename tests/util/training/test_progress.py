from util.training.progress import Progress, ProgressTable

VALUES = {"loss": 1.23456, "main": 0.98765, "distillation": 0.12345, "base": 0.12346}
VALUES |= {"gradient": 3.0, "rate": 9.8e-5, "samples_per_s": 12.34, "data_wait": 0.05}
VALUES |= {"peak_gb": 11.52, "skipped": 0}


def test_rows_stand_under_a_header_that_every_epoch_repeats():
    table = ProgressTable(200, 297600)
    header, first = table.lines(Progress(12, 17856, -1.0, "99:59:59"), VALUES)
    (second,) = table.lines(Progress(12, 17866, 0.51234, "9:59:59"), VALUES)
    again, third = table.lines(Progress(13, 123456, 0.51234, "0:59:59"), VALUES)
    assert header == again
    assert {len(line) for line in (header, first, second, third)} == {len(header)}
    assert 100 <= len(header) <= 120
    titles = "epoch iteration loss main distill base best mIoU rate items/s data GB left"
    assert header.split() == titles.split()
    expected = "12/200 17866/297600 1.2346 0.9877 0.1235 0.1235 0.5123 9.8e-05 12.3 5% 11.5 9:59:59"
    assert second.split() == expected.split()
    assert first.split()[6] == "-"


def test_skipped_iterations_are_told_and_losses_may_be_missing():
    values = {key: VALUES[key] for key in ("rate", "samples_per_s", "data_wait", "peak_gb")}
    table = ProgressTable(2, 8)
    *_, row = table.lines(Progress(1, 4, -1.0, "0:00:01"), values | {"skipped": 4})
    assert row.endswith("0:00:01  4 skipped: not finite")
