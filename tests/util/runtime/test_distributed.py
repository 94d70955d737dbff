"""Several processes compute what one computes.

Each process averages over its own pixels, as in the published code, so this is exact where all have
equally many that are not ignored: the episodes here do.
"""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from model import build_hdmnet, hdmnet_loss
from tests.golden import golden_episode
from tests.processes import spawn_two
from util.runtime.distributed import _is_lost_connection, start_processes
from util.training.engine import distributed

CONFIG = {"size": 65, "shot": 1, "batch": 2, "base_classes": 5, "seed": 3, "empty": False}


def gradients(processes):
    """Gradients of one training step, each process on its share of the batch."""
    torch.manual_seed(0)
    net = build_hdmnet("resnet18", 5).to(processes.device).train()
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
            module.p = 0.0
    wrapped = distributed(net, processes)
    batch = golden_episode(CONFIG)
    share = {key: value[processes.rank :: processes.world_size] for key, value in batch.items()}
    keys = ("query", "support", "support_mask", "class_index")
    out = wrapped(*(share[key] for key in keys))
    hdmnet_loss(out, share["query_mask"], share["base_mask"]).total.backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def write_gradients(processes, path):
    total = processes.sum(np.array([processes.rank + 1, 10], np.int64))
    assert total.tolist() == [3, 20] and total.dtype == np.int64
    result = gradients(processes)
    if processes.is_main:
        torch.save(result, path)


def test_two_processes_give_the_gradients_of_one(tmp_path):
    path = tmp_path / "gradients.pth"
    spawn_two(write_gradients, path)
    two = torch.load(path)
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
