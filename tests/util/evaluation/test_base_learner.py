"""The evaluation of the base learner alone."""

import numpy as np
import pytest
import torch
from torch import nn

from util.evaluation.evaluator import evaluate_base
from util.evaluation.metrics import base_miou, confusion
from util.evaluation.predictor import resize_logits
from util.runtime.distributed import Processes


class Net(nn.Module):
    """A base learner of three classes whose logits are its images."""

    base_classes = 3

    def forward(self, image):
        assert not torch.is_grad_enabled()
        return image


@pytest.mark.parametrize("world_size", [1, 2])
def test_each_image_counts_once_at_its_original_size(world_size, monkeypatch):
    rng, items = np.random.default_rng(0), []
    for shape in ((12, 9), (9, 15), (7, 7)):
        label = rng.choice([0, 1, 2, 3, 255], shape).astype(np.uint8)
        image = torch.from_numpy(rng.normal(size=(4, 9, 9)).astype(np.float32))
        items.append({"image": image, "label": torch.from_numpy(label)})
    expected, summed = np.zeros((4, 4), np.int64), np.zeros((4, 4), np.int64)
    for item in items:
        logits = resize_logits(item["image"][None], item["label"].shape)
        expected += confusion(logits[0].argmax(0), item["label"], 4)

    def add(self, counts):
        summed[...] += counts
        return summed

    monkeypatch.setattr(Processes, "sum", add)
    net = Net()
    for rank in range(world_size):
        found = evaluate_base(net, items, Processes(rank, world_size, torch.device("cpu")))
        assert (found == base_miou(expected)) == (rank == world_size - 1)
    assert (summed == expected).all() and not net.training
