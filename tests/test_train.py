"""What stage 2 starts from, and the loss that it minimises."""

import json
import logging
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import train
from model import build_hdmnet
from train import build_model
from util.checkpoints.io import is_shot_weight, save_checkpoint
from util.checkpoints.run_files import RunFiles
from util.config.schema import Config
from util.runtime.distributed import Processes
from util.runtime.errors import UserError

BASE_CLASSES = (1, 2, 3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Path and state of a model trained with two supports."""
    torch.manual_seed(0)
    state = build_hdmnet("resnet18", len(BASE_CLASSES), shot=2).state_dict()
    path = tmp_path_factory.mktemp("weights") / "two.pth"
    save_checkpoint(path, {"state_dict": state, "shot": 2, "base_classes": list(BASE_CLASSES)})
    return path, state


def built(**settings):
    cfg = Config(num_classes=4, folds=[[4]], data_set="parts", layers=18, **settings)
    return build_model(cfg, BASE_CLASSES, None, logging.getLogger())


@pytest.mark.parametrize("shot", [1, 2, 5])
def test_weights_of_another_shot_can_be_trained_further(shot, saved):
    path, expected = saved
    state = built(pre_weight=str(path), shot=shot).state_dict()
    same = {key for key, value in state.items() if key in expected and value.equal(expected[key])}
    weights = {key for key in state if is_shot_weight(key)}
    assert same >= state.keys() - weights
    assert bool(weights) == (shot > 1)
    assert (weights <= same) == (shot != 5)


def test_weights_of_another_network_are_refused(saved):
    with pytest.raises(UserError, match="does not fit the configured model"):
        built(pre_weight=str(saved[0]), shot=2, kshot_trans_dim=0)


class OverlapLoss(NamedTuple):
    total: Tensor
    overlap: Tensor


def test_another_loss_is_minimised_and_logged_and_what_is_not_trained_gets_no_gradient(
    tiny_voc, tmp_path, monkeypatch
):
    def overlap_loss(output, query_mask, base_mask, distillation_weight, base_weight):
        assert (distillation_weight, base_weight) == (0.5, 2)
        overlap = output.final[:, 1][query_mask == 1].mean()
        return OverlapLoss(1 - overlap, overlap)

    nets = []

    def build_and_keep(*arguments):
        nets.append(build_model(*arguments))
        return nets[-1]

    monkeypatch.setattr(train, "build_model", build_and_keep)
    images = (tiny_voc / "train.txt").read_text().splitlines()[:80]
    (tmp_path / "train.txt").write_text("\n".join(images))
    path = tmp_path / "start.pth"
    save_checkpoint(path, {"state_dict": build_hdmnet("resnet18", 15, shot=2).state_dict()})
    cfg = Config(
        data_root=str(tiny_voc),
        train_list=str(tmp_path / "train.txt"),
        val_list=str(tiny_voc / "val.txt"),
        list_dir=str(tmp_path / "lists"),
        exp_dir=str(tmp_path / "exp"),
        num_classes=20,
        data_set="tiny",
        layers=18,
        shot=2,
        train_h=33,
        train_w=33,
        batch_size=15,
        epochs=1,
        workers=0,
        print_freq=1,
        evaluate=False,
        aux_weight1=0.5,
        aux_weight2=2,
        pre_weight=str(path),
    )
    train.train(cfg, Processes(0, 1, torch.device("cpu")), False, loss=overlap_loss)
    lines = (RunFiles(cfg).folder / "scalars.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "train/overlap" in row]
    assert len(rows) > 1 and not any("train/distillation" in row for row in rows)
    for row in rows:
        assert row["train/loss"] == pytest.approx(1 - row["train/overlap"], abs=1e-5)
    (net,) = nets
    assert all(p.grad is None for p in net.ensemble.shot_weights.parameters())
    assert all(p.grad is not None for p in net.matching.parameters())
