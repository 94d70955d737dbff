"""The benchmark of backbones, with small ones."""

import json

import pytest

from tests.processes import start_python


@pytest.mark.slow
def test_backbones_are_measured(tmp_path):
    names = ["resnet18", "timm:test_vit"]
    words = ["--backbones", *names, "--size", "65", "--repeats", "1", "--out", tmp_path]
    out, err = tmp_path / "stdout", tmp_path / "stderr"
    done = start_python(["-m", "benchmark.backbones", *words], out, err)
    done.join()
    assert done.exitcode == 0, err.read_text()
    rows = json.loads((tmp_path / "backbones.json").read_text())
    assert [row["backbone"] for row in rows] == ["resnet18", "timm_test_vit"]
    assert [(row["size, px"], row["grid"]) for row in rows] == [(65, "9×9"), (80, "5×5")]
    assert all(row["episode, s"] > row["features known, s"] > 0 for row in rows)
    assert all(row["multiplications, G"] > 0 for row in rows)
    assert (tmp_path / "backbones.md").read_text().strip() == out.read_text().strip()
