"""The benchmark of a GPU also runs on the CPU, with small cases."""

import json
import os
import subprocess
import sys

import pytest

from tests.paths import ROOT


@pytest.mark.slow
def test_steps_and_profiles_are_measured_and_kept(tmp_path):
    result = subprocess.run(
        [
            "sh",
            ROOT / "benchmark" / "gpu.sh",
            tmp_path / "out",
            "--small",
            "steps",
            "profile",
            "base",
        ],
        env=os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    steps, profile = (
        json.loads((tmp_path / "out" / f"{piece}.json").read_text())
        for piece in ("steps", "profile")
    )
    ways = {"reference", "fast", "bf16", "cached"}
    assert ways <= set().union(*steps["results"])
    assert all(one.get("fast", one.get("bf16")) > 0 for one in steps["results"])
    assert {"float32", "TF32", "bf16", "copy"} == set(steps["ceilings"])
    for one in profile["results"]:
        assert 0.5 < sum(one["parts"].values()) <= 1 and one["operators"]
    assert "| training step" in (tmp_path / "out" / "steps.md").read_text()
    assert "| resnet18, 65 px, batch 2 |" in (tmp_path / "out" / "base.log").read_text()
