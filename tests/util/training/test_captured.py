"""Passes from CUDA graphs, without a GPU: what surrounds the graphs. tests/test_cuda.py has the rest."""

from types import SimpleNamespace

import pytest
import torch

from model import hdmnet_loss
from model.masked import MaskGrids, fixed_lengths
from tests.model.random_nets import in_double, random_episode, random_net
from tests.processes import spawn_two
from util.runtime.distributed import Processes
from util.runtime.errors import UserError
from util.runtime.precision import Precision
from util.training import iteration
from util.training.captured import CapturedPass
from util.training.iteration import Iteration, Recipe
from util.training.schedule import hdmnet_optimizer

CPU = torch.device("cpu")


class Uncaptured:
    """Computes what a graph would, in the shapes that it would have."""

    def __init__(self, compute, parameters, buffers, lengths_of):
        self.compute, self.lengths_of = compute, lengths_of
        self.places = None
        self.parameters = parameters

    def __call__(self, batch, on_device):
        with pytest.MonkeyPatch.context() as patch, fixed_lengths(self.lengths_of(batch)):
            patch.setattr(MaskGrids, "_longest_counts", None)
            values = self.compute(on_device)
        # A graph adds gradients where it has found them.
        places = [p.grad.data_ptr() for p in self.parameters if p.grad is not None]
        assert self.places in (None, places) and len(places) > 100
        self.places = places
        return values


def trained(captured, processes):
    """Return the values of two iterations, and the weights after them."""
    # What a process has drawn otherwise gives way to what the first has.
    net = random_net(shot=2, seed=processes.rank).double().train()

    def losses(forward, batch):
        query, support, masks, class_index = (batch[name] for name in "abcd")
        found = hdmnet_loss(forward(query, support, masks, class_index), masks[:, 0], masks[:, 0])
        return {"loss": found.total, "main": found.main}

    recipe = Recipe(
        *(net, hdmnet_optimizer(net, 1e-4), None, 2, 1, {}, losses),
        *[None] * 3,
        lengths_of=(lambda batch: net.mask_lengths(batch["c"])) if captured else None,
    )
    batches = (
        dict(zip("abcd", in_double(random_episode((57, 73), 2, 2, masks, seed)), strict=True))
        for seed, masks in enumerate(["bbbb", "ffff", "pepe", "bebe"], start=9 * processes.rank)
    )
    step = Iteration(recipe, processes, Precision("off", CPU))
    values = [step(batches, SimpleNamespace(signal=None)).values for _ in range(2)]
    return values, [p.detach() for p in net.parameters() if p.requires_grad]


def check_iterations(processes):
    values, weights = trained(False, processes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iteration, "CapturedPass", Uncaptured)
        others, their_weights = trained(True, processes)
    for one, other in zip(values, others, strict=True):
        assert one.keys() == other.keys() == {"loss", "main", "gradient"}
        torch.testing.assert_close(list(other.values()), list(one.values()))
    torch.testing.assert_close(their_weights, weights)


@pytest.mark.slow
def test_iterations_of_passes_with_fixed_shapes_are_those_of_others():
    check_iterations(Processes(0, 1, CPU))


@pytest.mark.slow
def test_several_processes_average_the_gradients_of_passes_with_fixed_shapes():
    spawn_two(check_iterations)


def captured(monkeypatch, capture):
    """A CapturedPass whose graphs come from a function."""
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", bool)
    monkeypatch.setattr(CapturedPass, "_capture", lambda _, lengths: capture(lengths))
    return CapturedPass(None, [], [], lambda batch: batch["lengths"])


def test_each_combination_of_lengths_has_a_graph_that_reads_the_batch(monkeypatch):
    captures, total = [], torch.zeros(())

    def capture(lengths):
        def replay():
            total.copy_(graphs._inputs["x"].sum() * lengths[0])

        captures.append(lengths)
        return SimpleNamespace(replay=replay), {"loss": total}

    graphs = captured(monkeypatch, capture)
    found = [
        graphs({"lengths": (n,)}, {"x": torch.full((2,), x)})["loss"]
        for n, x in ((1, 2.0), (10, 3.0), (1, 4.0))
    ]
    assert [loss.item() for loss in found] == [4, 60, 8] and captures == [(1,), (10,)]


@pytest.mark.parametrize(
    ("text", "expected", "message"),
    [
        ("not permitted\nCompile with", UserError, r"cannot be captured \(not permitted\); set"),
        ("CUDA out of memory. Tried", RuntimeError, "^CUDA out of memory"),
    ],
)
def test_what_cannot_be_captured_is_one_line(text, expected, message, monkeypatch):
    def fails(lengths):
        raise RuntimeError(text)

    with pytest.raises(expected, match=message):
        captured(monkeypatch, fails)({"lengths": ()}, {})
