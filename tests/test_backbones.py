"""Trainings and tests with backbones of timm, with and without a base learner."""

import argparse
import json
import logging

import pytest
import timm
import torch
from safetensors.torch import save

import test
import train
import train_base
from tests.processes import spawn_two
from util.checkpoints.io import read_checkpoint
from util.checkpoints.run_files import LAST, PREVIOUS, RunFiles
from util.checks.rows import ERROR, OK, WARNING
from util.checks.weights import weight_rows
from util.config.schema import Config
from util.data.loaders import config_fold
from util.evaluation.model import load_tested
from util.pretrained.kinds import HDMNET, recognise
from util.runtime.distributed import Processes
from util.runtime.errors import UserError
from util.training.model import initial_model, needs_stage_1

pytestmark = pytest.mark.slow
ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture
def settings(tiny_voc, tmp_path):
    """Settings of a short training on the tiny dataset, without the backbone."""
    images = (tiny_voc / "train.txt").read_text().splitlines()[:80]
    (tmp_path / "train.txt").write_text("\n".join(images))
    return {
        "data_root": str(tiny_voc),
        "train_list": str(tmp_path / "train.txt"),
        "val_list": str(tiny_voc / "val.txt"),
        "list_dir": str(tmp_path / "lists"),
        "exp_dir": str(tmp_path / "exp"),
        "num_classes": 20,
        "data_set": "tiny",
        **dict.fromkeys(("train_h", "train_w", "val_size", "base_h", "base_w"), 97),
        **{"batch_size": 10, "base_batch_size": 20, "epochs": 1, "base_epochs": 1},
        **{"workers": 0, "print_freq": 1, "val_num": 4, "save_freq": 1},
        "backbone_weight": "none",
    }


def scalars(cfg, name):
    lines = (RunFiles(cfg).folder / "scalars.jsonl").read_text().splitlines()
    return [row[name] for row in map(json.loads, lines) if name in row]


@pytest.mark.parametrize("model", ["test_vit", "test_efficientnet"])
def test_both_stages_leave_the_backbone_as_it_was(settings, model, monkeypatch):
    started = {}

    def start(backbone, cfg, logger):
        started.update({key: value.clone() for key, value in backbone.state_dict().items()})

    monkeypatch.setattr(train_base, "start_backbone", start)
    cfg = Config(**settings, backbone=f"timm:{model}", base_encoder_ratio=0.0, amp="bf16")
    assert cfg.train_h == (96 if model == "test_vit" else 97)
    assert cfg.net_name == f"timm_{model}" and needs_stage_1(cfg)
    train_base.train(cfg, ALONE, False)
    assert not needs_stage_1(cfg)
    train.train(cfg, ALONE, False)
    for path, prefix in (
        (RunFiles(cfg).base_snapshot / LAST, "backbone."),
        (RunFiles(cfg).snapshot / LAST, "base.backbone."),
    ):
        content = read_checkpoint(path)
        assert content["backbone"] == f"timm:{model}"
        state = content["state_dict"]
        assert all(torch.equal(state[prefix + key], value) for key, value in started.items())
    assert scalars(cfg, "val/mIoU") and scalars(cfg, "val/mIoU_b")

    for train_stage, change, problem in (
        (train_base.train, {"base_encoder_ratio": 1.0}, "base_encoder_ratio changed"),
        (train.train, {"base_learner": "none", "resume": str(path)}, "folds and base_learner"),
    ):
        with pytest.raises(UserError, match=problem):
            train_stage(cfg.model_copy(update=change), ALONE, False)

    other = Config(**settings, backbone=f"timm:{model}/taps=1-2-3")
    arguments = config_fold(cfg).base, other.model_arguments
    with pytest.raises(
        UserError, match=rf"is of the backbone timm:{model}, the settings have .*/taps"
    ):
        load_tested(path, *arguments)


@pytest.mark.parametrize("backbone", ["timm:test_convnext", "resnet18"])
def test_one_stage_without_a_base_learner(settings, backbone, tmp_path):
    cfg = Config(**settings, backbone=backbone, base_learner="none", grad_accum=2)
    assert str(RunFiles(cfg).folder).endswith(f"split0_nobase/{cfg.net_name}")
    assert RunFiles(cfg).command("test.sh").endswith(" base_learner none")
    assert not needs_stage_1(cfg)
    with pytest.raises(UserError, match="there is no stage 1"):
        train_base.train(cfg, ALONE, False)
    train.train(cfg, ALONE, False)
    path = RunFiles(cfg).find_test_weight()
    content = read_checkpoint(path)
    found = recognise(content, str(path))
    assert (found.kind, found.net, found.base_classes) == (HDMNET, cfg.net, 0)
    assert scalars(cfg, "train/loss")[0] > 0 == scalars(cfg, "train/base")[0]
    assert scalars(cfg, "val/mIoU") == scalars(cfg, "val/mIoU_m") and not scalars(cfg, "val/mIoU_b")
    net, _, notes, _ = load_tested(path, config_fold(cfg).base, cfg.model_arguments)
    assert net.base.base_classes == 0 and notes == []

    args = argparse.Namespace(episodes=None, if_missing=False, per_episode=False)
    changed = {"base_learner": "pspnet", "weight": str(path), "test_num": 2, "test_runs": 1}
    with pytest.raises(UserError, match=r"has no base learner; set base_learner none"):
        test.test(cfg.model_copy(update=changed), ALONE, args)

    # Its weights start a training with a base learner, and the other way round.
    again = cfg.model_copy(update={"pre_weight": str(path), "exp_name": "again"})
    start = initial_model(again, logging.getLogger())
    state = start.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in content["state_dict"].items())


@pytest.mark.parametrize("given", [{"base_learner": "none"}, {"pre_weight": "no.pth"}, {}])
def test_missing_weights_are_reported_before_lists_are_read(settings, given, monkeypatch):
    monkeypatch.delattr(train, "build_train_loader")
    cfg = Config(**settings | {"backbone_weight": "no.pth"}, **given)
    with pytest.raises(UserError, match=r"no\.pth|no base learner in"):
        train.train(cfg, ALONE, False)


def two_processes_train(processes, cfg):
    for stage in (train_base, train):
        stage.train(cfg, processes, False)


def test_two_processes_train_both_stages(settings):
    cfg = Config(**settings | {"batch_size": 5}, backbone="timm:test_vit")
    spawn_two(two_processes_train, cfg)
    for snapshot in (RunFiles(cfg).base_snapshot, RunFiles(cfg).snapshot):
        content = read_checkpoint(snapshot / LAST)
        assert (content["world_size"], content["run"]["epoch"]) == (2, 1)
        state = content["state_dict"].values()
        assert all(value.isfinite().all() for value in state)
    assert scalars(cfg, "train/loss") and scalars(cfg, "val/mIoU_b")


def test_a_resumed_training_ends_with_the_same_bits(settings):
    changed = settings | {"epochs": 2, "base_learner": "none", "evaluate": False}
    cfg = Config(**changed, backbone="timm:test_vit", prior="minmax", checkpoint_activations=True)
    train.train(cfg, ALONE, False)
    snapshot = RunFiles(cfg).snapshot
    first = snapshot / PREVIOUS
    assert read_checkpoint(first)["run"]["epoch"] == 1
    again = cfg.model_copy(update={"exp_name": "again", "resume": str(first)})
    train.train(again, ALONE, False)
    states = [
        read_checkpoint(folder / LAST)["state_dict"]
        for folder in (snapshot, RunFiles(again).snapshot)
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_public_weights_come_from_the_hub_once(settings, hub, tmp_path, monkeypatch, caplog):
    del settings["backbone_weight"]
    cfg = Config(**settings, backbone="timm:test_vit", base_learner="none", evaluate=False)
    weights = timm.create_model("test_vit").state_dict()
    with pytest.raises(UserError, match=r"test_vit are not in the cache .* the setting back"):
        initial_model(cfg, logging.getLogger())
    (row,) = weight_rows(cfg, "SETTINGS")
    assert (row.status, row.found[:8]) == (WARNING, "timm/tes")
    assert row.remedy.startswith("python -m util.weights fetch timm:test_vit")
    hub.files["timm/test_vit.r160_in1k"] = save(weights)
    with caplog.at_level(logging.INFO):
        net = initial_model(cfg, logging.getLogger())
    assert "licence apache-2.0" in caplog.text
    assert [row.status for row in weight_rows(cfg, "SETTINGS")] == [OK]
    (tmp_path / "other.safetensors").write_bytes(save(timm.create_model("test_vit2").state_dict()))
    other = cfg.model_copy(update={"backbone_weight": str(tmp_path / "other.safetensors")})
    (row,) = weight_rows(other, "SETTINGS")
    assert row.status == ERROR and "does not hold weights of timm's test_vit: " in row.found
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for loaded in (net, initial_model(cfg, logging.getLogger())):
        state = loaded.base.backbone.net.state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in state.items())
