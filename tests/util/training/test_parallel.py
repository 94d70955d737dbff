"""Norms that learn, and gradients over processes and accumulated batches."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from model import HDMNetOutput, build_hdmnet, hdmnet_loss
from model.norms import learning_norms
from tests.golden import golden_episode
from tests.processes import spawn_two
from util.runtime.distributed import Processes
from util.runtime.errors import UserError
from util.runtime.precision import Precision
from util.training.iteration import Iteration, Recipe
from util.training.parallel import distributed, synchronise, synchronises
from util.training.signals import StopRequest

CPU, CUDA, XPU = torch.device("cpu"), torch.device("cuda", 0), torch.device("xpu", 0)


@pytest.mark.parametrize(
    ("device", "world_size", "expected"),
    [(CPU, 1, False), (CPU, 2, False), (XPU, 2, False), (CUDA, 1, False), (CUDA, 2, True)],
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


class Pixels(nn.Module):
    """Logits of two classes, a weight of each times the value of the pixel; all weights are zero."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm
        self.classify = nn.Conv2d(1, 2, 1, bias=False)
        nn.init.zeros_(self.classify.weight)

    def forward(self, image):
        # What is normalised moves the statistics of the norm alone.
        return self.classify(image + 0 * self.norm(image))


class FixedNorm(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)


def losses_of(forward, batch):
    """The loss of stage 2 for these logits alone."""
    logits, label = forward(batch["image"]), batch["label"]
    ones = torch.ones(len(logits), 2, 1, 1)
    out = HDMNetOutput(logits, torch.zeros_like(logits), ones, [ones[:, 0]], ones, ones)
    return {"loss": hdmnet_loss(out, label, 0 * label[:, :1, :1], 0.0, 0.0).total}


def average_and_count(sent, bucket):
    sent.append(bucket.index())
    return allreduce_hook(None, bucket)


def iterate_two_accumulated_batches(processes, folder):
    rank = processes.rank
    # By process and part: values of four pixels, and their labels. One has a single valid pixel.
    values = [[[1, 2, 3, 4], [2, 2, 2, 2]], [[8, 9, 9, 9], [1, 1, 1, 5]]][rank]
    labels = [[[1, 1, 1, 0], [1, 1, 1, 1]], [[1, 255, 255, 255], [0, 0, 255, 255]]][rank]
    batches = [
        {"image": torch.tensor(image).float().view(1, 1, 1, 4), "label": torch.tensor([[label]])}
        for image, label in zip(values, labels, strict=True)
    ]
    result = []
    for norm in (nn.BatchNorm2d(1), FixedNorm(1)):
        net = Pixels(norm)
        optimizer = torch.optim.SGD([{"params": net.parameters(), "lr": 0.0, "ratio": 1.0}])
        recipe = Recipe(net, optimizer, None, 2, 1, {}, losses_of, *[None] * 3)
        iteration = Iteration(recipe, processes, Precision("off", CPU))
        # Processes start with the same ones; they differ once each has seen batches of its own.
        norm.running_mean.fill_(10 * (rank + 1))
        sent = []
        if isinstance(norm, FixedNorm):  # The other gradients are averaged without a hook.
            iteration.model.register_comm_hook(sent, average_and_count)
        with StopRequest() as request:
            iteration(iter(batches), request)
        gradient = net.classify.weight.grad.flatten().tolist()
        result.append([gradient, sent, norm.running_mean.item()])
    torch.save(result, folder / f"{rank}.pth")


@pytest.mark.slow
def test_each_process_averages_over_its_valid_pixels_and_sends_its_gradients_once(tmp_path):
    spawn_two(iterate_two_accumulated_batches, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1)]
    # Both probabilities are 1/2, so the gradient of the weight of class 1 is -x/2 by a pixel x of this
    # class and x/2 by another one, and that of class 0 is the opposite. Means over the valid pixels:
    #   process 0: (-1 - 2 - 3 + 4)/2/4 = -1/4 in the first batch, and -2/2 = -1 in the second,
    #   process 1: -8/2 = -4 and 1/2.
    # Their mean follows. A mean over all pixels at once would be another number.
    expected = (-1 / 4 - 1 - 4 + 1 / 2) / 4
    for (learning, fixed), own_mean in zip(ranks, (10, 20), strict=True):
        for gradient, *_ in (learning, fixed):
            assert gradient == pytest.approx([-expected, expected])
        assert fixed[1:] == [[0], own_mean]
    # Statistics that learn are those of process 0 when an iteration begins. Each batch then moves them
    # by a tenth towards the mean of its images.
    for (learning, _), first_mean in zip(ranks, (2.5, 8.75), strict=True):
        assert learning[2] == pytest.approx(0.9 * (0.9 * 10 + 0.1 * first_mean) + 0.1 * 2)
