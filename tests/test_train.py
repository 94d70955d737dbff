"""What the settings mean in both stages, the loss of stage 2, and data that stage 1 asks for."""

import json
from types import SimpleNamespace
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
from util.data.draws import draw_test_episodes
from util.runtime.distributed import Processes
from util.training.resume import RunState
from util.training.schedule import hdmnet_optimizer

ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture
def make_config(tiny_settings, tmp_path):
    def make_config(**settings):
        defaults = {
            "exp_dir": str(tmp_path / "exp"),
            "layers": 18,
            "train_h": 33,
            "train_w": 33,
            "val_size": 33,
        }
        return Config(**(tiny_settings | defaults | settings))

    return make_config


@pytest.fixture(scope="module")
def net():
    return build_hdmnet("resnet18", 15)


@pytest.fixture
def recipe_of(make_config, monkeypatch, net):
    """A function that returns what a stage would train, for some settings."""
    recipes = []

    class NothingLeft:
        def __init__(self, run, recipe):
            recipes.append(recipe)
            self.state = RunState(epoch=recipe.epochs)

    monkeypatch.setattr(train, "require_start_files", lambda cfg: None)
    monkeypatch.setattr(train, "initial_model", lambda cfg, logger: net)

    def recipe_of(stage, **settings):
        monkeypatch.setattr(stage, "Trainer", NothingLeft)
        stage.train(make_config(**settings), ALONE, False)
        return recipes[-1]

    return recipe_of


def validated_epochs(recipe):
    return [epoch for epoch in range(1, recipe.epochs + 1) if recipe.validates(epoch)]


def test_stage_1_is_trained_by_its_settings(recipe_of):
    recipe = recipe_of(
        train_base,
        backbone_weight="none",
        grad_accum=2,
        base_h=33,
        base_w=33,
        base_batch_size=12,
        base_epochs=7,
        base_rate=1e-3,
        base_momentum=0.7,
        base_weight_decay=0.02,
        base_encoder_ratio=0.5,
        base_head_ratio=4,
        base_power=2,
        base_val_freq=3,
    )
    names = ("lr", "momentum", "weight_decay")
    encoder, head = (
        {name: group[name] for name in names} for group in recipe.optimizer.param_groups
    )
    assert encoder == {"lr": 5e-4, "momentum": 0.7, "weight_decay": 0.02}
    assert head == {"lr": 4e-3, "momentum": 0.7, "weight_decay": 0.02}
    # 240 images in batches of 6, of which 2 are an iteration.
    assert (recipe.epochs, recipe.grad_accum, recipe.steps) == (7, 2, 20)
    assert recipe.rate_of(35) == pytest.approx(1e-3 * 0.75**2)
    assert validated_epochs(recipe) == [3, 6, 7] and not recipe.halves
    assert recipe.details == {
        "backbone": "resnet18",
        "base_classes": list(range(6, 21)),
    }
    # Two pixels count, with losses log 2 and log(1 + e), and the third is ignored.
    logits = torch.tensor([[[0.0, 0.0, 0.0]], [[0.0, 1.0, 9.0]]])[None]
    label = torch.tensor([[[1, 0, 255]]])
    (loss,) = recipe.losses_of(lambda image: logits, {"image": None, "label": label}).values()
    assert loss.item() == pytest.approx((0.693147 + 1.313262) / 2)


def test_stage_2_is_trained_by_its_settings(recipe_of):
    settings = {"batch_size": 10, "grad_accum": 2, "epochs": 10, "base_lr": 1e-3, "power": 2}
    recipe = recipe_of(train, weight_decay=0.05, warmup=True, mixed_images="ignore", **settings)
    groups = recipe.optimizer.param_groups
    assert [group["lr"] for group in groups] == [1e-3, pytest.approx(1e-2)]
    for group in groups:
        assert (group["weight_decay"], group["betas"]) == (0.05, (0.9, 0.999))
    steps = recipe.steps
    assert (recipe.epochs, recipe.grad_accum, steps) == (10, 2, len(recipe.loader) // 2)
    # The rate rises over the first half epoch, from a tenth, and then follows the decay.
    half = steps / 2
    for iteration in range(1, steps + 1):
        decayed = 1e-3 * (1 - iteration / (10 * steps)) ** 2
        rising = 1e-3 * (0.1 + 0.9 * iteration / half)
        assert recipe.rate_of(iteration) == pytest.approx(rising if iteration < half else decayed)
    cold = recipe_of(train, **settings)
    assert cold.rate_of(1) == pytest.approx(1e-3 * (1 - 1 / (10 * cold.steps)) ** 2)
    assert {key: recipe.details[key] for key in ("base_classes", "mixed_images", "min_cells")} == {
        "base_classes": list(range(6, 21)),
        "mixed_images": "ignore",
        "min_cells": 0,
    }


@pytest.mark.parametrize(
    ("settings", "epochs", "halves"),
    [
        ({"epochs": 7}, [1, 2, 3, 4, 5, 6, 7], True),
        ({"epochs": 7, "val_freq": 3}, [3, 6, 7], True),
        ({"epochs": 7, "val_freq": 9, "SubEpoch_val": False}, [7], False),
        ({"epochs": 7, "evaluate": False}, [], False),
        ({"epochs": 100, "val_freq": 100}, [100], True),
        ({"epochs": 101, "val_freq": 50}, [50, 100, 101], False),
    ],
)
def test_when_stage_2_is_validated(settings, epochs, halves, recipe_of):
    recipe = recipe_of(train, **settings)
    assert validated_epochs(recipe) == epochs and recipe.halves is halves


@pytest.mark.parametrize(
    ("settings", "seeds"),
    [
        ({}, [321, 321]),
        ({"manual_seed": 5}, [5, 5]),
        ({"manual_seed": 5, "fix_random_seed_val": False}, [5, 8]),
        ({"manual_seed": None, "fix_random_seed_val": False}, [0, 3]),
        ({"select_on": "base", "absent_class": "skip"}, [321, 321]),
    ],
)
def test_stage_2_is_validated_on_the_episodes_of_a_seed(
    settings, seeds, recipe_of, monkeypatch, net
):
    evaluated = []

    def evaluate(predictor, runs, processes, skip_absent):
        evaluated.append((predictor, runs, skip_absent))
        return SimpleNamespace(runs=[{"mIoU": 0.25, "FBIoU": 0.5, "class_iou": {1: 0.25}}])

    monkeypatch.setattr(train, "evaluate_episodes", evaluate)
    recipe = recipe_of(train, val_num=30, workers=3, **settings)
    for epoch in (0, 3):
        assert recipe.validate(epoch) == {"mIoU": 0.25, "FBIoU": 0.5}
    held_out = settings.get("select_on") != "base"
    for (predictor, (draws,), skips), seed in zip(evaluated, seeds, strict=True):
        lists = predictor.episodes.lists
        assert draws == draw_test_episodes(lists, 1, 30, seed, 3)
        assert predictor.episodes.classes == tuple(range(1, 6) if held_out else range(6, 21))
        assert predictor.net is net and skips is ("absent_class" in settings)


class OverlapLoss(NamedTuple):
    total: Tensor
    overlap: Tensor


@pytest.mark.slow
def test_another_loss_is_minimised_and_logged_and_what_is_not_trained_gets_no_gradient(
    make_config, tiny_voc, tmp_path, monkeypatch
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
    cfg = make_config(
        train_list=str(tmp_path / "train.txt"),
        shot=2,
        batch_size=15,
        epochs=1,
        print_freq=1,
        evaluate=False,
        aux_weight1=0.5,
        aux_weight2=2,
        pre_weight=str(path),
    )
    train.train(cfg, ALONE, False, loss=overlap_loss)
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
