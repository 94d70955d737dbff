"""test.py gives the scores that the published test code gives."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.golden import DATA, published_state
from util.metrics import SCORES

PROTOCOL = json.loads((DATA / "golden_protocol.json").read_text())


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
  test_runs: {len(golden["rows"])}
  vis_num: 1
"""
    )
    settings = (
        [(3, "feature_cache_gb=2")] if golden["vgg"] else [(1, ""), (3, "feature_cache_gb=0")]
    )
    reports = []
    for processes, setting in settings:
        exp_dir = tmp_path / str(processes)
        report = report_of(config, exp_dir, processes, *filter(None, [setting]))
        assert report["work"]["processes"] == processes
        assert (report["work"]["hits"] == 0) == setting.endswith("=0")
        assert list(exp_dir.rglob("episode-*.png")) and not list(exp_dir.rglob("journal-*"))
        reports.append(report)
    for report in reports:
        # The scores are ratios of counts: equal to the last digit where the counts are.
        assert (report["runs"], report["drawn"]) == (reports[0]["runs"], reports[0]["drawn"])
    assert len(report["runs"]) == len(golden["rows"])
    for run, row in zip(report["runs"], golden["rows"], strict=True):
        for column, expected in zip(golden["columns"], row, strict=True):
            assert run[column] == pytest.approx(expected, abs=1e-3), column
    for score in SCORES:
        values = [run[score] for run in report["runs"]]
        assert report["mean"][score] == pytest.approx(sum(values) / len(values))
        assert report["best"][score] == max(values)


def report_of(config, exp_dir, processes, *settings):
    """The report of the ordinary command."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "util.launch", str(processes)]
    command += ["test.py", "--config", config, "--opts", f"exp_dir={exp_dir}", *settings]
    # As many threads in each process, for sums that are rounded alike.
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    (report,) = exp_dir.rglob("test-*.json")
    return json.loads(report.read_text())
