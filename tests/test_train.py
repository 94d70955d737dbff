"""Stage 2 minimises the loss that it is given, and stage 1 does not begin where it could not."""

import json
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import train
import train_base
from model import build_hdmnet
from util.checkpoints.io import read_checkpoint, save_checkpoint
from util.checkpoints.run_files import LAST, RunFiles
from util.config.schema import Config
from util.runtime.distributed import Processes
from util.training.schedule import hdmnet_optimizer


class OverlapLoss(NamedTuple):
    total: Tensor
    overlap: Tensor


@pytest.mark.slow
def test_another_loss_is_minimised_and_logged_and_what_is_not_trained_gets_no_gradient(
    tiny_voc, tmp_path, monkeypatch
):
    def overlap_loss(output, query_mask, base_mask, distillation_weight, base_weight):
        assert (distillation_weight, base_weight) == (0.5, 2)
        overlap = output.final[:, 1][query_mask == 1].mean()
        return OverlapLoss(1 - overlap, overlap)

    nets = []

    def optimizer_and_keep(net, *arguments):
        nets.append(net)
        return hdmnet_optimizer(net, *arguments)

    monkeypatch.setattr(train, "hdmnet_optimizer", optimizer_and_keep)
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
    content = read_checkpoint(RunFiles(cfg).snapshot / LAST)
    names = ("backbone", "data_set", "shot", "size", "low_fea", "kshot_order", "prior")
    told = {key: content[key] for key in names}
    assert told == cfg.model_dump(include={*told}) | {"backbone": "resnet18", "size": cfg.val_size}
    (net,) = nets
    assert all(p.grad is None for p in net.ensemble.shot_weights.parameters())
    assert all(p.grad is not None for p in net.matching.parameters())


@pytest.mark.parametrize("part", ["train", "val"])
def test_stage_1_before_stage_2_asks_for_the_data_of_both(part, tiny_voc, tmp_path, capsys):
    lines = (tiny_voc / f"{part}.txt").read_text().splitlines()
    short = tmp_path / "short.txt"
    # A single image of each class, whether it is held out or not.
    short.write_text("\n".join(lines[:20]))
    settings = {
        "data_root": tiny_voc,
        "train_list": tiny_voc / "train.txt",
        "val_list": tiny_voc / "val.txt",
        "list_dir": tmp_path / "lists",
        "exp_dir": tmp_path / "exp",
        "backbone_weight": "none",
        "shot": 3,
        f"{part}_list": short,
    }
    words = ["--config", "config/pascal/pascal_split0_resnet50.yaml", "--opts"]
    with pytest.raises(SystemExit) as end:
        train_base.main([*words, *(f"{k}={v}" for k, v in settings.items()), "--if-missing"])
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(short) in error and "shot 3 needs" in error, error
    assert not (tmp_path / "exp/pascal/PSPNet").exists()
