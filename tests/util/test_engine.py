import logging
import random

import numpy as np
import pytest
import torch
from torch import nn

from util.distributed import Processes
from util.engine import RunState, keep_best, resume, run_epoch, save_last
from util.errors import UserError
from util.log import Means, RemainingTime, Scalars, get_logger
from util.precision import Precision
from util.seed import seed_everything, untouched_random_streams
from util.snapshots import LAST, find_best, save_best

ALONE = Processes(0, 1, torch.device("cpu"))
CLASSES = (1, 2, 3)
DETAILS = {"base_classes": list(CLASSES)}
LOGGER = logging.getLogger("test")


def small(rate=0.1, weight_decay=0.0, groups=1):
    """A linear model and its optimiser, one step trained."""
    torch.manual_seed(0)
    net = nn.Linear(2, 1)
    parameters = [net.weight, net.bias] if groups == 1 else [net.weight]
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": rate, "ratio": 1.0}], weight_decay=weight_decay
    )
    return net, optimizer


def step(net, optimizer):
    optimizer.zero_grad()
    net(torch.ones(3, 2)).square().mean().backward()
    optimizer.step()


def resumed(folder, net, optimizer, setting="auto", classes=CLASSES):
    return resume(setting, folder, net, optimizer, classes, ALONE, LOGGER)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    net, optimizer = small()
    step(net, optimizer)
    save_last(tmp_path, net, optimizer, RunState(4, 0.5, 3), DETAILS)
    other, its_optimizer = small()
    assert resumed(tmp_path, other, its_optimizer) == RunState(4, 0.5, 3)
    for pair in ((net, optimizer), (other, its_optimizer)):
        step(*pair)
    assert torch.equal(net.weight, other.weight)


def test_without_a_checkpoint_or_by_choice_a_run_starts_anew(tmp_path):
    net, optimizer = small()
    assert resumed(tmp_path, net, optimizer) == RunState()
    save_last(tmp_path, net, optimizer, RunState(4), DETAILS)
    assert resumed(tmp_path, net, optimizer, "none") == RunState()


def test_the_configured_options_win_over_the_stored_ones(tmp_path):
    net, optimizer = small(weight_decay=0.5)
    step(net, optimizer)
    save_last(tmp_path, net, optimizer, RunState(1), DETAILS)
    other, its_optimizer = small(weight_decay=0.25)
    resumed(tmp_path, other, its_optimizer)
    assert its_optimizer.param_groups[0]["weight_decay"] == 0.25


def test_a_best_checkpoint_newer_than_the_last_one_counts(tmp_path):
    net, optimizer = small()
    save_last(tmp_path, net, optimizer, RunState(2, 0.25, 1), DETAILS)
    save_best(tmp_path, 3, 0.5, {"state_dict": net.state_dict()})
    state = resumed(tmp_path, net, optimizer)
    assert state == RunState(2, 0.5, 3)
    keep_best(tmp_path, net, state, 0.4, DETAILS)
    assert find_best(tmp_path).miou == 0.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds weights only; give it as pre_weight instead"),
        ({"optimizer": {}, "run": {}, "base_classes": [7]}, r"was trained on base classes \[7\]"),
    ],
)
def test_checkpoints_that_cannot_be_continued_are_named(content, message, tmp_path):
    net, optimizer = small()
    path = tmp_path / "some.pth"
    torch.save({"state_dict": net.state_dict(), **content}, path)
    with pytest.raises(UserError, match=f"some.pth.*{message}"):
        resumed(tmp_path, net, optimizer, str(path))


def test_another_set_of_trained_parameters_is_named(tmp_path):
    net, optimizer = small(groups=2)
    save_last(tmp_path, net, optimizer, RunState(1), DETAILS)
    with pytest.raises(UserError, match="its optimiser has other parameters"):
        resumed(tmp_path, *small())


class TwoNodes(Processes):
    """Another process that found no checkpoint."""

    def sum(self, counts):
        return counts + 0


def test_nodes_that_do_not_share_a_disk_are_told(tmp_path):
    net, optimizer = small()
    save_last(tmp_path, net, optimizer, RunState(4), DETAILS)
    processes = TwoNodes(0, 2, torch.device("cpu"))
    with pytest.raises(UserError, match="exp_dir has to be on a disk that all nodes share"):
        resume("auto", tmp_path, net, optimizer, CLASSES, processes, LOGGER)


def test_only_a_better_value_is_kept_and_only_by_the_writer(tmp_path):
    net, _ = small()
    state = RunState(epoch=5)
    keep_best(tmp_path, net, state, 0.25, DETAILS, write=False)
    assert (state.best, state.best_epoch) == (0.25, 6) and find_best(tmp_path) is None
    keep_best(tmp_path, net, state, 0.125, DETAILS)
    assert find_best(tmp_path) is None
    keep_best(tmp_path, net, state, 0.5, DETAILS)
    assert find_best(tmp_path)[:2] == (0.5, 6)


def test_waiting_for_a_better_value():
    assert not RunState(10, 0.5, 3).waited(8)
    assert RunState(11, 0.5, 3).waited(8)
    assert not RunState(11, 0.5, 3).waited(0)
    assert not RunState(11).waited(8)  # nothing was validated yet


def epoch(losses, logger, halfway=None):
    net, optimizer = small()
    seen = []

    def rate_of(iteration):
        seen.append(iteration)
        return 0.5**iteration

    run_epoch(
        losses,
        lambda loss: {"loss": net.weight.sum() * 0 + loss},
        optimizer,
        Precision("off", torch.device("cpu")).scaler,
        rate_of,
        10,
        RemainingTime(20, 10),
        logger,
        Scalars("", False),
        2,
        halfway,
    )
    return seen, optimizer.param_groups[0]["lr"]


def test_an_epoch_reports_means_and_follows_the_schedule(tmp_path):
    calls = []
    logger = get_logger(tmp_path, is_main=True)
    seen, rate = epoch([1.0, 2.0, 6.0], logger, lambda: calls.append("half"))
    assert seen == [11, 12, 13] and rate == 0.5**13
    assert calls == ["half"]
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert len(lines) == 2
    assert "iteration 12/20" in lines[0] and "loss 1.5000" in lines[0]
    assert "iteration 13/20" in lines[1] and "loss 6.0000" in lines[1]


def test_a_loss_that_is_not_finite_stops(tmp_path):
    with pytest.raises(UserError, match="not finite at iteration 12"):
        epoch([1.0, float("nan")], get_logger(None, is_main=False))
    assert not (tmp_path / LAST).exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write in .*file.*; set exp_dir"):
        get_logger(tmp_path / "file" / "run", is_main=True)


def test_means_start_anew_after_each_report():
    means = Means()
    means.update({"a": 1.0})
    means.update({"a": 3.0})
    assert means.pop() == {"a": 2.0}
    means.update({"a": 5.0})
    assert means.pop() == {"a": 5.0}


def test_random_streams_go_on_as_if_nothing_happened():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_everything(3)
    draw()
    expected = draw()
    seed_everything(3)
    draw()
    with untouched_random_streams():
        seed_everything(99)
        draw()
    assert draw() == expected
