"""test.py gives the scores that the published test code gives."""

import json
import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch

from tests.golden import DATA, published_state
from util.evaluation.metrics import SCORES

PROTOCOL = json.loads((DATA / "golden_protocol.json").read_text())


class Way(NamedTuple):
    """How a test is run: fewer runs than the golden ones where others have shown the rest."""

    processes: int
    runs: int
    cache_gb: float


EVERYTHING, FEW, NOTHING = 2, 0.005, 0  # of the supports' features, what the cache holds
WAYS = {
    "resnet50_1shot": [
        Way(1, 3, EVERYTHING),
        Way(1, 1, NOTHING),
        Way(1, 1, FEW),
        Way(3, 1, NOTHING),
    ],
    "vgg16_5shot": [Way(3, 3, EVERYTHING)],
}


def weights(golden):
    """The published checkpoint, under its published names, that the golden scores belong to."""
    net = "vgg16" if golden["vgg"] else "resnet50"
    state = published_state(f"hdmnet_pascal_{net}_1shot", meta_bias=golden["meta_bias"])
    if golden["shot"] == 5:
        state |= {
            key: value
            for key, value in published_state("hdmnet_pascal_resnet50_5shot").items()
            if key.startswith("kshot_rw")
        }
    return {f"module.{key}": value for key, value in state.items()}


@pytest.mark.parametrize("name", PROTOCOL)
def test_scores_equal_the_published_ones(name, tiny_voc, tmp_path):
    golden = PROTOCOL[name]
    checkpoint = tmp_path / "train_epoch_1.pth"
    torch.save({"epoch": 1, "state_dict": weights(golden)}, checkpoint)
    config = tmp_path / "tiny.yaml"
    config.write_text(
        f"""
DATA:
  data_root: {tiny_voc}
  train_list: {tiny_voc}/train.txt
  val_list: {tiny_voc}/val.txt
  list_dir: {tmp_path}/lists
TRAIN:
  data_set: 'pascal'
  val_size: {golden["size"]}
  split: {golden["split"]}
  shot: {golden["shot"]}
  workers: {golden["workers"]}
Method:
  vgg: {golden["vgg"]}
Test_Finetune:
  weight: {checkpoint}
  test_num: {golden["test_num"]}
  vis_num: 1
"""
    )
    reports = [
        report_of(config, tmp_path / str(number), way) for number, way in enumerate(WAYS[name])
    ]
    assert len(reports[0]["runs"]) == len(golden["rows"])
    for report, way in zip(reports, WAYS[name], strict=True):
        work = report["work"]
        assert work["processes"] == way.processes
        assert report["environment"]["torch"] == torch.__version__
        used = golden["test_num"] * golden["shot"] * way.runs
        assert work["misses"] == used - work["hits"] and (work["hits"] > 0) == (way.cache_gb > 0)
        # The scores are ratios of counts: equal to the last digit where the counts are.
        assert report["runs"] == reports[0]["runs"][: way.runs]
    for run, row in zip(reports[0]["runs"], golden["rows"], strict=True):
        for column, expected in zip(golden["columns"], row, strict=True):
            assert run[column] == pytest.approx(expected, abs=1e-3), column
    for score in SCORES:
        values = [run[score] for run in reports[0]["runs"]]
        assert reports[0]["mean"][score] == pytest.approx(sum(values) / len(values))
        assert reports[0]["best"][score] == max(values)


def report_of(config, exp_dir, way):
    """The report of the ordinary command."""
    command = [sys.executable]
    if way.processes > 1:
        command += ["-m", "util.launch", str(way.processes)]
    command += ["test.py", "--config", config, "--opts", f"exp_dir={exp_dir}"]
    command += [f"test_runs={way.runs}", f"feature_cache_gb={way.cache_gb}"]
    # As many threads in each process, for sums that are rounded alike.
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert list(exp_dir.rglob("episode-*.png")) and not list(exp_dir.rglob("journal-*"))
    (report,) = exp_dir.rglob("test-*.json")
    return json.loads(report.read_text())
