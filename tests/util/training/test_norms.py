import pytest
import torch
from torch import nn

from model import build_hdmnet, hdmnet_loss
from model.norms import learning_norms
from tests.golden import golden_episode
from tests.processes import spawn_two
from tests.util.training.test_engine import Training
from util.runtime.distributed import Processes
from util.runtime.errors import UserError
from util.training.engine import distributed
from util.training.norms import (
    several_values_a_channel,
    synchronise,
    synchronises,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def statistics(net):
    return {key: v.clone() for key, v in net.state_dict().items() if "running" in key}


@pytest.mark.parametrize(
    ("device", "world_size", "expected"),
    [(CPU, 1, False), (CPU, 2, False), (CUDA, 1, False), (CUDA, 2, True)],
)
def test_norms_are_synchronised_on_several_gpus(device, world_size, expected):
    assert synchronises(Processes(0, world_size, device)) is expected


@pytest.mark.parametrize("fix_bn", [False, True])
def test_only_norms_that_learn_are_replaced_and_keep_their_parameters(fix_bn):
    net = build_hdmnet("resnet18", 5, fix_bn=fix_bn).train()
    learning = len(learning_norms(net))
    assert (learning > 0) is not fix_bn
    before = {name: id(p) for name, p in net.named_parameters()}
    keys = list(net.state_dict())
    synchronise(net)
    replaced = [name for name, m in net.named_modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(replaced) == learning == len(learning_norms(net))
    assert not any(name.startswith("base.") for name in replaced)
    assert {name: id(p) for name, p in net.named_parameters()} == before
    assert list(net.state_dict()) == keys


def test_norms_of_stage_2_learn_and_those_of_the_base_learner_never():
    net = build_hdmnet("resnet18", 5, fix_bn=False)
    wrapped = distributed(net, Processes(0, 1, CPU))
    before = statistics(net)
    batch = golden_episode(
        {"size": 65, "shot": 1, "batch": 2, "base_classes": 5, "seed": 3, "empty": False}
    )
    keys = ("query", "support", "support_mask", "class_index")
    out = wrapped(*(batch[key] for key in keys))
    hdmnet_loss(out, batch["query_mask"], batch["base_mask"]).total.backward()
    changed = {key for key, value in statistics(net).items() if not value.equal(before[key])}
    assert changed == {key for key in before if not key.startswith("base.")}


def validate_with_own_statistics(processes, folder):
    training = Training(folder, processes=processes)
    wrapped = distributed(training.net, processes)
    # Batches of its own: dropout and points differ.
    torch.manual_seed(processes.rank)
    training.losses_of = lambda batch: {
        "loss": (wrapped(batch["x"] + processes.rank) - 1).square().mean()
    }
    seen = []
    plain = training.validate

    def validate():
        seen.append(training.net[1].running_mean.clone())
        return plain()

    training.validate = validate
    training.trainer.describe()
    training.run(wrapped=wrapped)
    torch.save(seen, folder / f"{processes.rank}.pth")


def test_all_processes_validate_with_the_statistics_of_the_main_one(tmp_path):
    spawn_two(validate_with_own_statistics, tmp_path)
    one, other = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    assert len(one) == 3 and one[0].any()
    assert all(a.equal(b) for a, b in zip(one, other, strict=True))
    assert "their running statistics are those of process 0" in (tmp_path / "log.txt").read_text()


def test_a_single_value_a_channel_is_an_error_of_one_line():
    norm = nn.BatchNorm2d(2).train()
    with pytest.raises(UserError, match="one value a channel"), several_values_a_channel():
        norm(torch.ones(1, 2, 1, 1))
    with pytest.raises(ValueError, match="expected 4D"), several_values_a_channel():
        norm(torch.ones(2))
