import pytest
import torch
from torch import nn

from model import build_hdmnet, hdmnet_loss
from model.norms import learning_norms
from tests.golden import golden_episode
from util.runtime.distributed import Processes
from util.runtime.errors import UserError
from util.runtime.precision import Precision
from util.training.iteration import Iteration, Recipe
from util.training.parallel import distributed, synchronise, synchronises

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


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
    before = {key: v.clone() for key, v in net.state_dict().items() if "running" in key}
    batch = golden_episode(
        {"size": 65, "shot": 1, "batch": 2, "base_classes": 5, "seed": 3, "empty": False}
    )
    keys = ("query", "support", "support_mask", "class_index")
    out = wrapped(*(batch[key] for key in keys))
    hdmnet_loss(out, batch["query_mask"], batch["base_mask"]).total.backward()
    state = net.state_dict()
    changed = {key for key, value in before.items() if not value.equal(state[key])}
    assert changed == {key for key in before if not key.startswith("base.")}


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [((1, 2, 1, 1), UserError, "one value a channel"), ((2,), ValueError, "expected 4D")],
)
def test_a_single_value_a_channel_is_an_error_of_one_line(shape, error, message):
    net = nn.BatchNorm2d(2)
    optimizer = torch.optim.SGD(net.parameters())
    recipe = Recipe(net, optimizer, None, 1, 1, {}, lambda forward, b: forward(b["x"]), *[None] * 3)
    iteration = Iteration(recipe, Processes(0, 1, CPU), Precision("off", CPU))
    with pytest.raises(error, match=message):
        iteration(iter([{"x": torch.ones(shape)}]), None)
