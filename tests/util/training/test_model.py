"""What stage 2 starts from."""

import logging
from types import SimpleNamespace

import pytest
import torch

from model import build_hdmnet, build_pspnet
from util.checkpoints.io import is_shot_weight, save_checkpoint
from util.checkpoints.run_files import BaseLearner
from util.config.schema import Config
from util.runtime.errors import UserError
from util.training import model
from util.training.model import (
    initial_model,
    needs_base_learner,
    needs_stage_1,
    require_start_files,
    start_backbone,
)

BASE_CLASSES = (1, 2, 3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Path and state of a model trained with two supports."""
    return save(tmp_path_factory.mktemp("weights") / "two.pth", len(BASE_CLASSES))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Path and state of a model of a dataset with seven base classes."""
    return save(tmp_path_factory.mktemp("weights") / "foreign.pth", 7)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Path and state of the run's own base learner."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "base.pth"
    state = build_pspnet("resnet18", len(BASE_CLASSES)).state_dict()
    save_checkpoint(path, {"state_dict": state, "base_classes": list(BASE_CLASSES)})
    return path, state


def save(path, classes):
    torch.manual_seed(0)
    state = build_hdmnet("resnet18", classes, shot=2).state_dict()
    base_classes = list(range(1, classes + 1))
    save_checkpoint(path, {"state_dict": state, "shot": 2, "base_classes": base_classes})
    return path, state


def config(**settings):
    settings = {"layers": 18, "exp_dir": "nowhere"} | settings
    return Config(**({"num_classes": 4, "folds": [[4]], "data_set": "parts"} | settings))


def started(**settings):
    return initial_model(config(**settings), logging.getLogger()).state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("shot", [1, 2, 5])
def test_weights_of_another_shot_can_be_trained_further(shot, saved):
    path, expected = saved
    state = started(pre_weight=str(path), shot=shot)
    same = {key for key, value in state.items() if key in expected and value.equal(expected[key])}
    weights = {key for key in state if is_shot_weight(key)}
    assert same >= state.keys() - weights
    assert bool(weights) == (shot > 1)
    assert (weights <= same) == (shot != 5)


@pytest.mark.slow
@pytest.mark.parametrize("shot", [1, 2])
@pytest.mark.parametrize("donor", ["foreign", "saved"])
def test_the_base_learner_is_the_run_s_own(donor, shot, base, request):
    """It is for weights of other classes, and for any where base_weight is set."""
    path, expected = request.getfixturevalue(donor)
    state = started(pre_weight=str(path), base_weight=str(base[0]), shot=shot)
    for key, value in state.items():
        part, _, rest = key.partition(".")
        assert torch.equal(value, base[1][rest] if part == "base" else expected[key]), key


def test_weights_of_other_classes_need_a_base_learner(saved, foreign, base):
    assert needs_base_learner(config())
    assert not needs_base_learner(config(pre_weight=str(saved[0])))
    assert needs_base_learner(config(pre_weight=str(foreign[0])))
    assert not needs_stage_1(config(pre_weight=str(saved[0])))
    assert needs_stage_1(config(pre_weight=str(foreign[0])))
    assert not needs_stage_1(config(pre_weight=str(foreign[0]), base_weight=str(base[0])))
    # Stage 2 continues from a checkpoint, and reports it if there is none.
    assert not needs_stage_1(config(resume="absent.pth"))
    # Stage 2 reports it, in case it needs these weights at all.
    assert not needs_stage_1(config(pre_weight="absent.pth"))
    with pytest.raises(UserError, match=r"no base learner in .* set base_weight"):
        started(pre_weight=str(foreign[0]))


@pytest.mark.parametrize(
    ("settings", "classes", "needed"),
    [
        ({}, 3, True),
        ({"base_learner": "none"}, 3, False),
        ({"pre_weight": "given"}, 3, False),
        ({"pre_weight": "given"}, 2, True),
        ({"pre_weight": "given"}, 4, True),
        ({"pre_weight": "given", "base_weight": "base.pth"}, 3, True),
        ({"pre_weight": "given", "base_weight": "base.pth", "base_learner": "none"}, 3, False),
    ],
)
def test_a_base_learner_is_needed_where_the_weights_bring_none_of_these_classes(
    settings, classes, needed, monkeypatch
):
    found = SimpleNamespace(base_classes=classes)
    monkeypatch.setattr(model, "read_checkpoint", lambda path, mapped: {})
    monkeypatch.setattr(model, "recognise", lambda content, path: found)
    monkeypatch.setattr(model.RunFiles, "find_pre_weight", lambda _: "given")
    assert needs_base_learner(config(**settings)) is needed


@pytest.mark.parametrize(("complete", "wanted"), [(None, True), (False, True), (True, False)])
def test_stage_1_is_needed_until_its_training_is_complete(complete, wanted, monkeypatch):
    found = complete is not None and SimpleNamespace(complete=complete)
    monkeypatch.setattr(model.RunFiles, "find_base_learner", lambda _: found or None)
    assert needs_stage_1(config()) is wanted
    assert not needs_stage_1(config(base_weight="base.pth"))
    assert not needs_stage_1(config(base_learner="none"))


@pytest.mark.slow
def test_the_log_says_what_a_training_starts_from(saved, base, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    started(pre_weight=str(saved[0]), shot=2)
    assert not caplog.records, "weights that fit need no word"
    started(pre_weight=str(saved[0]), shot=1)
    started(base_weight=str(base[0]))
    found = BaseLearner(base[0], False)
    monkeypatch.setattr(model.RunFiles, "find_base_learner", lambda _: found)
    started()
    monkeypatch.setattr(model, "load_backbone", lambda *_: None)
    for layers, path in ((50, "a.pth"), (18, "z.pth"), (50, "none")):
        monkeypatch.setattr(model, "require_imagenet", lambda _, path=path: path)
        start_backbone(None, config(layers=layers), logging.getLogger())
    assert [record.message for record in caplog.records] == [
        f"{saved[0]}: of another shot, the weights of the supports start untrained",
        f"base learner: {base[0]}",
        f"base learner: {base[0]} (training not complete)",
        "backbone: resnet50 from a.pth (public weights: licence apache-2.0)",
        "backbone: resnet18 from z.pth",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no base learner in"),
        ({"base_learner": "none"}, "no ImageNet weights at absent.pth"),
        ({"pre_weight": "missing.pth"}, "missing.pth"),
    ],
)
def test_a_file_to_start_from_that_is_missing_is_named(settings, message, base):
    with pytest.raises(UserError, match=message):
        require_start_files(config(backbone_weight="absent.pth", **settings))
    require_start_files(config(base_weight=str(base[0])))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shot": 2, "kshot_trans_dim": 0}, "another shot or kshot_trans_dim"),
        ({"layers": 34}, "another backbone: check backbone"),
        ({"split": 1, "folds": [[4], [3]]}, r"trained on base classes \[1, 2, 3\], this fold has"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_cause(settings, message, saved):
    with pytest.raises(UserError, match=message):
        started(pre_weight=str(saved[0]), **settings)


def test_weights_of_another_kind_are_named(saved, base):
    with pytest.raises(UserError, match="another kind, base learner; needed here: HDMNet"):
        started(pre_weight=str(base[0]))
    with pytest.raises(UserError, match="another kind, HDMNet; needed here: base learner"):
        started(base_weight=str(saved[0]))
