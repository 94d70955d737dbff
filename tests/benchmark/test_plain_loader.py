"""The plain transcription of data loading gives the items of the fast one."""

import random

import pytest
import torch
from torch.testing import assert_close

from benchmark.plain_loader import PlainEpisodes, PlainImages, base_training_steps, training_steps
from util.config.schema import Config
from util.data.loaders import build_base_data, build_train_loader, config_fold


@pytest.fixture(scope="module")
def cfg(tiny_voc, tmp_path_factory):
    sizes = ("train_h", "train_w", "base_h", "base_w")
    return Config(
        data_root=str(tiny_voc),
        train_list=str(tiny_voc / "train.txt"),
        val_list=str(tiny_voc / "val.txt"),
        list_dir=str(tmp_path_factory.mktemp("lists")),
        num_classes=20,
        data_set="tiny",
        split=1,
        shot=3,
        workers=0,
        **dict.fromkeys(sizes, 97),
    )


def assert_same_items(fast, plain, labels, images):
    """Of both datasets for the first images, each with its own stream; which goes on alike."""
    for index in range(24):
        random.seed(index)
        expected = plain[index]
        state = random.getstate()
        random.seed(index)
        item = fast[index]
        assert random.getstate() == state
        assert item.keys() == expected.keys()
        for key, value in expected.items():
            if key in images:
                assert_close(item[key], value, rtol=0, atol=1e-6)
            elif key in labels:
                assert value.dtype == torch.int64 and item[key].long().equal(value)
            else:
                assert torch.equal(torch.as_tensor(item[key]), torch.as_tensor(value))


def test_episodes_are_the_same(cfg):
    fast = build_train_loader(cfg, batch_size=1).dataset
    plain = PlainEpisodes(
        fast.lists, config_fold(cfg), cfg.shot, cfg.data_root, training_steps(cfg)
    )
    assert len(plain) == len(fast)
    labels = {"query_mask", "base_mask", "support_mask"}
    assert_same_items(fast, plain, labels, {"query", "support"})


def test_images_of_the_base_learner_are_the_same(cfg):
    fast = build_base_data(cfg)[0].dataset
    plain = PlainImages(fast.entries, config_fold(cfg), cfg.data_root, base_training_steps(cfg))
    assert len(plain) == len(fast)
    assert_same_items(fast, plain, {"label"}, {"image"})
