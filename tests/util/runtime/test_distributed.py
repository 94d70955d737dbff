"""Several processes compute what one computes.

Each process averages over its own pixels, as in the published code, so this is exact where all have
equally many that are not ignored: the episodes here do.
"""

import datetime
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist

from model import build_hdmnet, hdmnet_loss
from tests.golden import golden_episode
from tests.model.random_nets import without_dropout
from tests.processes import free_port, spawn_two
from util.runtime import distributed as distributed_module
from util.runtime.distributed import Processes, _is_lost_connection, start_processes
from util.runtime.errors import UserError
from util.training.parallel import distributed

CONFIG = {"size": 65, "shot": 1, "batch": 2, "base_classes": 5, "seed": 3, "empty": False}


def gradients(processes):
    """Gradients of one training step, each process on its share of the batch."""
    torch.manual_seed(0)
    net = without_dropout(build_hdmnet("resnet18", 5)).to(processes.device).train()
    wrapped = distributed(net, processes)
    batch = golden_episode(CONFIG)
    share = {key: value[processes.rank :: processes.world_size] for key, value in batch.items()}
    keys = ("query", "support", "support_mask", "class_index")
    out = wrapped(*(share[key] for key in keys))
    hdmnet_loss(out, share["query_mask"], share["base_mask"]).total.backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def compute_and_end(processes, folder):
    """Write the gradients, and end as after a signal."""
    total = processes.sum(np.array([processes.rank + 1, 10], np.int64))
    assert total.tolist() == [3, 20] and total.dtype == np.int64
    assert processes.agree({"epoch": 1}) and not processes.agree({"epoch": processes.rank})
    result = gradients(processes)
    if processes.is_main:
        torch.save(result, folder / "gradients.pth")
    leave = Processes.leave

    def left(self):
        leave(self)
        (folder / str(self.rank)).write_text(str(dist.is_initialized()))

    Processes.leave = left
    sys.exit(0)


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one_and_leave_their_group(tmp_path):
    spawn_two(compute_and_end, tmp_path)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["False"] * 2
    two = torch.load(tmp_path / "gradients.pth")
    with start_processes() as processes:
        assert (processes.world_size, processes.is_main) == (1, True)
        one = gradients(processes)
    assert one.keys() == two.keys() and len(one) > 200
    floor = 1e-3 * max(value.abs().max() for value in one.values())
    for name, value in one.items():
        bound = 1e-5 * max(value.abs().max(), floor)
        assert (two[name] - value).abs().max() <= bound, name


def test_alone_nothing_is_summed():
    with start_processes() as processes:
        counts = np.arange(4)
        assert processes.sum(counts) is counts
        assert "1 process" in processes.describe()


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (dist.DistBackendError("NCCL error: remote process exited"), True),
        (RuntimeError("[gloo/transport] Connection closed by peer"), True),
        (dist.DistBackendError("NCCL error: Cuda failure 2 'out of memory'"), False),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. 2 GiB are in use by NCCL"), False),
    ],
)
def test_memory_that_nccl_lacks_is_no_lost_connection(error, lost):
    assert _is_lost_connection(error) is lost


@pytest.fixture
def place(monkeypatch):
    """A function that leaves in the environment only these variables of torchrun."""

    def set_only(**values):
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_only


@pytest.mark.parametrize(
    "values", [{}, {"WORLD_SIZE": "1"}, {"RANK": "0"}, {"MASTER_ADDR": "a"}, {"LOCAL_RANK": "3"}]
)
def test_what_names_no_other_process_is_one_process(place, values):
    place(**values)
    with start_processes() as processes:
        assert (processes.rank, processes.world_size) == (0, 1)


COMPLETE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"WORLD_SIZE": "2"}, "sets WORLD_SIZE = 2, but not RANK, LOCAL_RANK, MASTER_ADDR, MASTER"),
        ({"RANK": "1"}, "sets RANK = 1, but not WORLD_SIZE"),
        (COMPLETE, "not MASTER_PORT; to run one process, unset RANK, WORLD_SIZE and LOCAL_RANK"),
        (COMPLETE | {"MASTER_PORT": "1", "RANK": "2"}, "these are no ranks"),
        (COMPLETE | {"MASTER_PORT": "1", "WORLD_SIZE": "two"}, "these are no ranks"),
    ],
)
def test_variables_left_from_another_command_are_named(place, values, message):
    place(**values)
    with pytest.raises(UserError, match=message), start_processes():
        pass


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_whose_others_do_not_come_ends_with_one_line(place, rank, monkeypatch, capsys):
    place(**COMPLETE | {"RANK": rank, "MASTER_PORT": str(free_port())})
    monkeypatch.setattr(distributed_module, "START_TIMEOUT", datetime.timedelta(seconds=2))
    message = r"cannot meet the other processes at 127\.0\.0\.1:\d+ \(.*imed out.*\); to run one"
    with pytest.raises(UserError, match=message), start_processes(datetime.timedelta(days=7)):
        pass
    assert "waiting for the other processes at 127.0.0.1" in capsys.readouterr().err


def test_a_port_that_is_none_is_not_waited_for(place):
    place(**COMPLETE | {"MASTER_PORT": "99999"})
    message = r"1:99999 \(port must .* but was 99999\)"
    with pytest.raises(UserError, match=message), start_processes():
        pass
