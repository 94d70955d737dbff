import pytest
import torch

from util.checkpoints.io import save_checkpoint
from util.checkpoints.snapshots import (
    LAST,
    PUBLISHED,
    find_base_learner,
    find_best,
    find_test_weight,
    remove_leftovers,
    save_best,
    snapshot_dir,
)
from util.config import load_config
from util.runtime.errors import UserError

CONTENT = {"state_dict": {"weight": torch.ones(1)}}


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """A configuration whose exp and initmodel folders are in tmp_path."""
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
    cfg = cfg[1]
    assert find_base_learner(cfg) is None
    snapshot = snapshot_dir(cfg.base_dir)
    partial = save_best(snapshot, 1, 0.1, CONTENT)
    assert find_base_learner(cfg) == (partial, True)  # put there by hand, without a run
    save_checkpoint(snapshot / LAST, CONTENT | {"run": {"epoch": 2}})
    assert find_base_learner(cfg) == (partial, False)
    save_checkpoint(cfg.initmodel_base_path, CONTENT)
    path, complete = find_base_learner(cfg)
    assert (str(path), complete) == (cfg.initmodel_base_path, True)
    save_checkpoint(snapshot / LAST, CONTENT | {"run": {"epoch": 3}})
    assert find_base_learner(cfg) == (partial, True)


def test_test_weight_of_the_run_or_of_the_one_shot_run(cfg):
    with pytest.raises(UserError, match=r"NET=resnet18 sh train.sh split1 demo 1 shot 5"):
        find_test_weight(cfg[5])
    one_shot = snapshot_dir(cfg[1].run_dir)
    save_checkpoint(one_shot / LAST, CONTENT)
    assert find_test_weight(cfg[5]) == one_shot / LAST
    best = save_best(one_shot, 2, 0.5, CONTENT)
    assert find_test_weight(cfg[5]) == find_test_weight(cfg[1]) == best
    own = save_best(snapshot_dir(cfg[5].run_dir), 1, 0.2, CONTENT)
    assert find_test_weight(cfg[5]) == own


def test_an_imported_checkpoint_is_tested_where_nothing_was_trained(cfg):
    imported = {shot: snapshot_dir(cfg[shot].run_dir) / PUBLISHED for shot in (1, 5)}
    save_checkpoint(imported[1], CONTENT)
    assert find_test_weight(cfg[5]) == find_test_weight(cfg[1]) == imported[1]
    save_checkpoint(imported[5], CONTENT)
    assert find_test_weight(cfg[5]) == imported[5]
    best = save_best(snapshot_dir(cfg[1].run_dir), 2, 0.5, CONTENT)
    assert find_test_weight(cfg[1]) == best


def test_a_given_weight_is_found_or_refused_never_replaced(cfg):
    best = save_best(snapshot_dir(cfg[1].run_dir), 2, 0.5, CONTENT)
    given = cfg[1].model_copy(update={"weight": best.name})
    assert find_test_weight(given) == best
    with pytest.raises(UserError, match=r"weight = other.pth: there is no such file"):
        find_test_weight(cfg[1].model_copy(update={"weight": "other.pth"}))
