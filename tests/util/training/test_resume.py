import logging
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from util.checkpoints.run_files import save_best
from util.runtime.distributed import Processes
from util.runtime.errors import UserError
from util.training.resume import (
    RunState,
    Saved,
    check_lists,
    find_saved,
    plan_batches,
    restore,
    save_run,
)

ALONE = Processes(0, 1, torch.device("cpu"))
CLASSES = (1, 2, 3)
PROGRESS = {"base_classes": list(CLASSES), "streams": [], "world_size": 1, "global_batch": 12}
LOGGER = logging.getLogger("test")
SCALER = torch.amp.GradScaler("cpu", enabled=False)


def small(rate=0.1, weight_decay=0.0, groups=1):
    """A linear model and its optimiser."""
    torch.manual_seed(0)
    net = nn.Linear(2, 1)
    parameters = [net.weight, net.bias] if groups == 1 else [net.weight]
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": rate, "ratio": 1.0}], weight_decay=weight_decay
    )
    return net, optimizer


def save(folder, net, optimizer, state):
    save_run(folder, net, optimizer, SCALER, state, PROGRESS)


def find(folder, setting="auto", processes=ALONE):
    return find_saved(setting, folder, processes, LOGGER)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    net, optimizer = small()
    net(torch.ones(3, 2)).square().mean().backward()
    optimizer.step()
    save(tmp_path, net, optimizer, RunState(4, 7, 0.5, 3))
    other, its_optimizer = small(weight_decay=0.25)
    saved = find(tmp_path)
    assert restore(saved, other, its_optimizer, SCALER, CLASSES) == RunState(4, 7, 0.5, 3)
    assert torch.equal(net.weight, other.weight)
    # The options are those that are configured, not those that were stored.
    assert its_optimizer.param_groups[0]["weight_decay"] == 0.25


def test_a_checkpoint_of_a_fused_optimiser_goes_on_without_fusion(tmp_path):
    net, optimizer = small()
    optimizer.param_groups[0]["fused"] = True
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    save(tmp_path, net, optimizer, RunState())
    other, its_optimizer = small()
    restore(find(tmp_path), other, its_optimizer, SCALER, CLASSES)
    assert not its_optimizer.param_groups[0]["fused"]
    for one, before in zip(other.parameters(), net.parameters(), strict=True):
        one.grad = torch.ones_like(one)
        its_optimizer.step()
        assert its_optimizer.state[one]["step"].item() >= 2 and (one < before).all()


def test_a_training_does_not_go_on_with_other_lists(tmp_path):
    path, details = tmp_path / "last.pth", {"mixed_images": "drop", "min_cells": 0}
    # Checkpoints of earlier versions do not name them, and stage 1 has none.
    for content, own in (({}, details), (details, details), ({}, {})):
        check_lists(Saved(path, content), own)
    for key, value in (("mixed_images", "ignore"), ("min_cells", 4)):
        with pytest.raises(
            UserError, match=rf"last.pth: was trained with {key} {value}, .*set {key}"
        ):
            check_lists(Saved(path, details | {key: value}), details)
        with pytest.raises(UserError, match=f"with {key} {details[key]}, .* have {value}"):
            check_lists(Saved(path, details), details | {key: value})


def test_without_a_checkpoint_or_by_choice_a_run_starts_anew(tmp_path):
    assert find(tmp_path) is None
    save(tmp_path, *small(), RunState(4))
    assert find(tmp_path, "none") is None


def test_a_restarted_run_goes_on_whatever_it_was_first_told(tmp_path, monkeypatch):
    save(tmp_path, *small(), RunState(4))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert find(tmp_path, "none").content["run"]["epoch"] == 4
    assert find(tmp_path, "elsewhere.pth").content["run"]["epoch"] == 4


def damage(path, how):
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "foreign":
        path.write_bytes(b"not a checkpoint")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "torn":
        # A page that never reached the disk, in the middle of a tensor.
        net, _ = small()
        start = data.index(net.weight.detach().numpy().tobytes())
        path.write_bytes(data[:start] + bytes(8) + data[start + 8 :])


@pytest.mark.parametrize("how", ["truncated", "foreign", "empty", "torn"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(how, tmp_path, caplog):
    net, optimizer = small()
    save(tmp_path, net, optimizer, RunState(1))
    save(tmp_path, net, optimizer, RunState(2))
    damage(tmp_path / "last.pth", how)
    with caplog.at_level(logging.WARNING):
        saved = find(tmp_path)
    assert saved.path.name == "previous.pth" and saved.content["run"]["epoch"] == 1
    (record,) = caplog.records
    assert "last.pth" in record.message and "going on from the one before" in record.message
    damage(tmp_path / "previous.pth", how)
    with pytest.raises(UserError, match=r"previous.pth.*; move it away to start again"):
        find(tmp_path)


@pytest.mark.parametrize("links", [True, False])
def test_before_the_last_rename_the_one_before_is_still_there(links, tmp_path, monkeypatch):
    def without(*_):
        raise OSError("Operation not supported")

    if not links:
        monkeypatch.setattr(os, "link", without)
    save(tmp_path, *small(), RunState(1))

    def stop_at_the_last(source, target, replace=os.replace):
        if str(target).endswith("last.pth"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, *small(), RunState(2))
    assert (tmp_path / "last.pth").exists() is links
    assert find(tmp_path).content["run"]["epoch"] == 1


def test_a_disk_that_is_full_leaves_the_checkpoints(tmp_path, monkeypatch):
    save(tmp_path, *small(), RunState(1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"next.pth cannot be written .*No space left"):
        save(tmp_path, *small(), RunState(2))
    assert find(tmp_path).content["run"]["epoch"] == 1


def test_a_best_checkpoint_newer_than_the_last_one_counts(tmp_path):
    net, optimizer = small()
    save(tmp_path, net, optimizer, RunState(2, 0, 0.25, 1))
    save_best(tmp_path, 3, 0.50004, {"state_dict": net.state_dict(), "miou": 0.50004})
    state = restore(find(tmp_path), net, optimizer, SCALER, CLASSES)
    assert state == RunState(2, 0, 0.50004, 3)


@pytest.mark.parametrize("content", [{}, {"optimizer": {}, "run": {}}, None])
def test_checkpoints_that_cannot_be_continued_are_named(content, tmp_path):
    path, state = tmp_path / "some.pth", small()[0].state_dict()
    if content is None:
        save_file(state, path)  # safetensors
    else:
        torch.save({"state_dict": state, **content}, path)
    with pytest.raises(UserError, match=r"some.pth: is no checkpoint of a training here; give its"):
        find(tmp_path, str(path))


def test_a_checkpoint_of_another_fold_or_optimiser_is_named(tmp_path):
    save(tmp_path, *small(groups=2), RunState(1))
    saved = find(tmp_path)
    with pytest.raises(UserError, match="its optimiser has other parameters"):
        restore(saved, *small(), SCALER, CLASSES)
    with pytest.raises(UserError, match=r"was trained on base classes \[1, 2, 3\]"):
        restore(saved, *small(groups=2), SCALER, (7,))


class TwoNodes(Processes):
    """This process and one on another node, which sees the checkpoint of epoch 4."""

    def agree(self, value):
        return value["epoch"] == 4


TWO_NODES = TwoNodes(0, 2, torch.device("cpu"))


def test_nodes_that_do_not_share_a_disk_are_told(tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    save(tmp_path, *small(), RunState(3))
    with pytest.raises(UserError, match="exp_dir has to be on a disk that all nodes share"):
        find(tmp_path, processes=TWO_NODES)
    # Together longer than a network file system shows what was there before.
    assert pauses == [1, 5, 10, 30, 60, 0]


def test_a_checkpoint_that_a_node_sees_late_is_waited_for(tmp_path, monkeypatch):
    save(tmp_path, *small(), RunState(3))
    monkeypatch.setattr("time.sleep", lambda _: save(tmp_path, *small(), RunState(4)))
    assert find(tmp_path, processes=TWO_NODES).content["run"]["epoch"] == 4


def test_the_times_of_files_do_not_tell_which_checkpoint_is_the_newest(tmp_path):
    for epoch in (1, 2):
        save(tmp_path, *small(), RunState(epoch))
    os.utime(tmp_path / "last.pth", (0, 0))  # The clock was set back.
    assert find(tmp_path).content["run"]["epoch"] == 2


def test_waiting_for_a_better_value():
    assert not RunState(10, 0, 0.5, 3).waited(8)
    assert RunState(11, 0, 0.5, 3).waited(8) and RunState(13, 0, 0.5, 3).waited(8)
    assert not RunState(11, 0, 0.5, 3).waited(0)
    assert RunState(9, 0, 0.5, 1).waited(8) and RunState(2, 0, 0.5, 1).waited(1)
    assert not RunState(11).waited(8)  # nothing was validated yet


def test_a_training_begins_with_nothing_done_and_any_value_is_better():
    assert RunState() == RunState(0, 0, -1.0, 0, 0, 0)


@pytest.mark.parametrize(
    ("batch_size", "processes", "plan"),
    [
        (12, 1, (12, 1)),  # as it was
        (12, 4, (3, 1)),
        (4, 2, (3, 2)),  # 6 a process, at most 4 at a time
        (1, 3, (1, 4)),
        (12, 5, (12, 7)),  # cannot be shared evenly: as configured
    ],
)
def test_another_number_of_processes_keeps_the_global_batch(batch_size, processes, plan):
    saved = Saved(None, {"world_size": 1, "global_batch": 12})
    accumulated = plan[1] if processes in (1, 5) else 1
    assert plan_batches(batch_size, accumulated, processes, saved) == plan
    assert plan_batches(batch_size, 2, processes, None) == (batch_size, 2)
