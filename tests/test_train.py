"""What stage 2 starts from."""

import logging

import pytest
import torch

from model import build_hdmnet
from train import build_model
from util.checkpoints.io import is_shot_weight, save_checkpoint
from util.config.schema import Config
from util.runtime.errors import UserError

BASE_CLASSES = (1, 2, 3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Path and state of a model trained with two supports."""
    torch.manual_seed(0)
    state = build_hdmnet("resnet18", len(BASE_CLASSES), shot=2).state_dict()
    path = tmp_path_factory.mktemp("weights") / "two.pth"
    save_checkpoint(path, {"state_dict": state, "shot": 2, "base_classes": list(BASE_CLASSES)})
    return path, state


def built(**settings):
    cfg = Config(num_classes=4, folds=[[4]], data_set="parts", layers=18, **settings)
    return build_model(cfg, BASE_CLASSES, None, logging.getLogger())


@pytest.mark.parametrize("shot", [1, 2, 5])
def test_weights_of_another_shot_can_be_trained_further(shot, saved):
    path, expected = saved
    state = built(pre_weight=str(path), shot=shot).state_dict()
    same = {key for key, value in state.items() if key in expected and value.equal(expected[key])}
    weights = {key for key in state if is_shot_weight(key)}
    assert same >= state.keys() - weights
    assert bool(weights) == (shot > 1)
    assert (weights <= same) == (shot != 5)


def test_weights_of_another_network_are_refused(saved):
    with pytest.raises(UserError, match="does not fit the configured model"):
        built(pre_weight=str(saved[0]), shot=2, kshot_trans_dim=0)
