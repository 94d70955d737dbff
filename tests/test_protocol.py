"""test.py gives the scores that the published test code gives."""

import json
import sys

import pytest
import torch

import test as command
from tests.golden import DATA, published_state
from util.evaluation.metrics import SCORES

pytestmark = pytest.mark.slow
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
def test_scores_equal_the_published_ones(name, tiny_voc, tmp_path, monkeypatch):
    golden = PROTOCOL[name]
    checkpoint = tmp_path / "train_epoch_1.pth"
    torch.save({"epoch": 1, "state_dict": weights(golden)}, checkpoint)
    settings = [f"{key}={golden[key]}" for key in ("split", "shot", "workers", "vgg", "test_num")]
    settings += [f"{part}_list={tiny_voc}/{part}.txt" for part in ("train", "val")]
    settings += [f"data_root={tiny_voc}", f"list_dir={tmp_path}/lists", "vis_num=1"]
    settings += [f"weight={checkpoint}", f"val_size={golden['size']}"]
    config = "config/pascal/pascal_split0_resnet50.yaml"
    settings += [f"exp_dir={tmp_path}/exp", "test_runs=3"]
    monkeypatch.setattr(sys, "argv", ["test.py", "--config", config, "--opts", *settings])
    command.main()
    results = tmp_path / "exp"
    assert list(results.rglob("episode-*.png")) and not list(results.rglob("journal-*"))
    (path,) = results.rglob("test-*.json")
    report = json.loads(path.read_text())
    assert report["environment"]["torch"] == torch.__version__
    used = golden["test_num"] * golden["shot"] * len(golden["rows"])
    assert report["work"]["misses"] == used - report["work"]["hits"] < used
    for run, row in zip(report["runs"], golden["rows"], strict=True):
        for column, expected in zip(golden["columns"], row, strict=True):
            assert run[column] == pytest.approx(expected, abs=1e-3), column
    for score in SCORES:
        values = [run[score] for run in report["runs"]]
        assert report["mean"][score] == pytest.approx(sum(values) / len(values))
        assert report["best"][score] == max(values)
