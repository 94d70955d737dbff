import pytest
import torch

from util.checkpoints.io import save_checkpoint
from util.checkpoints.run_files import (
    LAST,
    PUBLISHED,
    RunFiles,
    find_best,
    remove_leftovers,
    save_best,
)
from util.config import load_config
from util.runtime.errors import UserError

CONTENT = {"state_dict": {"weight": torch.ones(1)}}


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """Configurations of one and five shots, whose exp and initmodel folders are in tmp_path."""
    config = "config/demo/demo_split1_resnet18.yaml"
    loaded = {shot: load_config(config, ["shot", str(shot), "base_epochs", "3"]) for shot in (1, 5)}
    monkeypatch.chdir(tmp_path)
    return loaded


def test_the_best_checkpoint_replaces_the_older_ones(tmp_path):
    assert find_best(tmp_path) is None
    first = save_best(tmp_path, 3, 0.25, CONTENT)
    assert first.name == "best_epoch_3_0.2500.pth" and find_best(tmp_path) == (0.25, 3, first)
    (tmp_path / "best_epoch_notes.pth").write_text("the user's own")
    second = save_best(tmp_path, 11, 0.375, CONTENT)
    assert find_best(tmp_path).path == second
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best_epoch_11_0.3750.pth",
        "best_epoch_notes.pth",
    ]


def test_what_killed_saves_left_is_removed_and_nothing_else(tmp_path):
    remove_leftovers(tmp_path / "not yet there")
    for name in ("last.pth", "next.pth.4711.tmp", "best_epoch_3_0.2500.pth.12.tmp", "tmp.pth"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pth", "tmp.pth"]


def test_base_learner_of_stage_1_the_published_one_or_a_partial_one(cfg):
    files = RunFiles(cfg[1])
    assert files.find_base_learner() is None
    partial = save_best(files.base_snapshot, 1, 0.1, CONTENT)
    assert files.find_base_learner() == (partial, True)  # put there by hand, without a run
    save_checkpoint(files.base_snapshot / LAST, CONTENT | {"run": {"epoch": 2}})
    assert files.find_base_learner() == (partial, False)
    save_checkpoint(files.published_base, CONTENT)
    assert files.find_base_learner() == (files.published_base, True)
    save_checkpoint(files.base_snapshot / LAST, CONTENT | {"run": {"epoch": 3}})
    assert files.find_base_learner() == (partial, True)


@pytest.mark.parametrize("name", [LAST, PUBLISHED])
def test_test_weight_of_the_run_or_of_the_one_shot_run(name, cfg):
    """PUBLISHED is imported where nothing was trained."""
    one, five = RunFiles(cfg[1]), RunFiles(cfg[5])
    with pytest.raises(UserError, match=r"NET=resnet18 sh train.sh split1 demo 1 shot 5"):
        five.find_test_weight()
    save_checkpoint(one.snapshot / name, CONTENT)
    assert five.find_test_weight() == one.find_test_weight() == one.snapshot / name
    best = save_best(one.snapshot, 2, 0.5, CONTENT)
    assert five.find_test_weight() == one.find_test_weight() == best
    save_checkpoint(five.snapshot / name, CONTENT)
    assert five.find_test_weight() == five.snapshot / name
    own = save_best(five.snapshot, 1, 0.2, CONTENT)
    assert five.find_test_weight() == own


def test_a_given_weight_is_found_or_refused_never_replaced(cfg):
    best = save_best(RunFiles(cfg[1]).snapshot, 2, 0.5, CONTENT)
    given = cfg[1].model_copy(update={"weight": best.name})
    assert RunFiles(given).find_test_weight() == best
    with pytest.raises(UserError, match=r"weight = other.pth: there is no such file or folder"):
        RunFiles(cfg[1].model_copy(update={"weight": "other.pth"})).find_test_weight()


def found(cfg, key, value):
    """The checkpoint that a setting means, wherever one is accepted."""
    files = RunFiles(cfg.model_copy(update={key: value}))
    if key == "base_weight":
        return files.find_base_learner().path
    return files.find_pre_weight() if key == "pre_weight" else files.find_test_weight()


@pytest.mark.parametrize("key", ["pre_weight", "weight", "base_weight"])
def test_a_folder_means_the_best_checkpoint_in_it(key, cfg, tmp_path):
    run = tmp_path / "a run"
    last = run / "snapshot" / LAST
    with pytest.raises(UserError, match=f"{key} = .*a run: there is no such file or folder"):
        found(cfg[1], key, str(run))
    last.parent.mkdir(parents=True)
    with pytest.raises(UserError, match=f"{key} = .*a run: there is no checkpoint in this folder"):
        found(cfg[1], key, str(run))
    save_checkpoint(last, CONTENT)
    assert found(cfg[1], key, str(run)) == found(cfg[1], key, str(run / "snapshot")) == last
    save_checkpoint(run / "snapshot" / "best_epoch_9_0.1000.pth", CONTENT)
    best = run / "snapshot" / "best_epoch_1_0.2000.pth"
    save_checkpoint(best, CONTENT)
    assert found(cfg[1], key, str(run)) == found(cfg[1], key, str(run / "snapshot")) == best


def test_a_folder_of_a_published_base_learner(cfg):
    place = RunFiles(cfg[1]).published_base
    save_checkpoint(place, CONTENT)
    assert found(cfg[1], "base_weight", str(place.parent)) == place


@pytest.mark.parametrize("key", ["pre_weight", "weight"])
def test_best_is_the_best_of_the_run_or_of_the_one_shot_run(key, cfg):
    with pytest.raises(UserError, match=rf"{key} = best: .*split1_5shot\S* or .*split1/resnet18"):
        found(cfg[5], key, "best")
    best = save_best(RunFiles(cfg[1]).snapshot, 2, 0.5, CONTENT)
    assert found(cfg[5], key, "best") == found(cfg[1], key, "best") == best
    own = save_best(RunFiles(cfg[5]).snapshot, 1, 0.2, CONTENT)
    assert found(cfg[5], key, "best") == own


def test_best_of_base_weight_is_the_best_of_stage_1(cfg):
    save_best(RunFiles(cfg[1]).snapshot, 2, 0.5, CONTENT)
    with pytest.raises(UserError, match="base_weight = best: there is no best checkpoint in "):
        found(cfg[1], "base_weight", "best")
    best = save_best(RunFiles(cfg[1]).base_snapshot, 2, 0.5, CONTENT)
    assert found(cfg[5], "base_weight", "best") == best
