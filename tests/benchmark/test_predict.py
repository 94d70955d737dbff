"""The benchmark of own pictures, with a small network."""

import pytest

from benchmark import predict
from tests.tables import cells_of


@pytest.mark.slow
def test_own_pictures_are_measured(monkeypatch, capsys):
    monkeypatch.setattr(
        predict, "in_new_process", lambda function, *arguments: function(*arguments)
    )
    options = ["--net", "resnet18", "--size", "65", "--shot", "2", "--repeats", "1"]
    predict.main([*options, "--queries", "10", "--amp", "off"])
    head, _, cells = cells_of(capsys.readouterr().out)
    assert len(head) == len(cells) == 10
    assert cells[0] == "off" and min(map(float, cells[1:6])) > 0
    early, late, held, peak = map(float, cells[6:])
    assert early > 0.1 and late < early + 0.1 and 0.1 < held < peak
