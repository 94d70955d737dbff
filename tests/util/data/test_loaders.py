import json
import random
from itertools import chain

import pytest
import torch

from tests.paths import DATA
from util.config.schema import Config
from util.data.loaders import (
    build_base_data,
    build_episodes,
    build_train_loader,
    build_validation_episodes,
    evaluation_loader,
)
from util.runtime.errors import UserError

GOLDEN = json.loads((DATA / "golden_data.json").read_text())


@pytest.fixture
def make_config(tiny_settings):
    def make_config(**settings):
        defaults = {"train_h": 97, "train_w": 97, "val_size": 97, "base_h": 65, "base_w": 65}
        return Config(**(tiny_settings | defaults | settings))

    return make_config


@pytest.mark.slow
@pytest.mark.parametrize("shot", [1, 5])
def test_val_loader_gives_the_published_episodes(make_config, shot):
    episodes = build_episodes(make_config(shot=shot, split=2), "val", testing=True)
    loader = evaluation_loader(episodes, workers=2)
    expected = GOLDEN["episodes"][f"val_split2_shot{shot}_workers2_seed321"]
    random.seed(321)
    torch.manual_seed(321)
    batches = list(chain(loader, loader))
    assert len(batches) == len(expected) > 0
    for batch, wanted in zip(batches, expected, strict=True):
        assert batch["class_id"].tolist() == [wanted["cls"]]
        entries = loader.dataset.lists.entries
        drawn = batch["support_index"][0].tolist()[::-1]
        assert [entries[i][0] for i in drawn] == wanted["support"]
        assert int((batch["query_mask"] == 1).sum()) == wanted["msum"]


def test_episodes_of_both_parts_know_their_classes(make_config):
    train = build_episodes(make_config(split=1), "train", testing=False)
    val = build_episodes(make_config(split=1), "val", testing=True)
    assert val.classes == (6, 7, 8, 9, 10) and len(train.classes) == 15
    assert train.base_classes == val.base_classes == train.classes


@pytest.mark.parametrize("select_on", ["novel", "base"])
def test_training_validates_on_the_classes_of_select_on_in_the_val_list(make_config, select_on):
    episodes = build_validation_episodes(make_config(split=1, select_on=select_on))
    held_out = (6, 7, 8, 9, 10)
    others = tuple(c for c in range(1, 21) if c not in held_out)
    assert episodes.classes == (held_out if select_on == "novel" else others)
    assert all("val_" in image for image, _ in episodes.lists.entries)
    assert episodes.originals and episodes[0]["query"].shape == (3, 97, 97)


def test_train_loader_shuffles_and_drops_the_rest(make_config):
    loader = build_train_loader(make_config(batch_size=7))
    torch.manual_seed(0)
    random.seed(0)
    batches = list(loader)
    assert len(batches) == len(loader) == 160 // 7
    seen = torch.cat([batch["index"] for batch in batches]).tolist()
    assert len(set(seen)) == len(seen) and seen != sorted(seen)
    assert batches[0]["query"].shape == (7, 3, 97, 97)


def test_processes_share_the_training_images(make_config):
    loaders = [build_train_loader(make_config(batch_size=5), rank, 2) for rank in range(2)]
    seen = []
    for loader in loaders:
        loader.set_epoch(1)
        assert len(loader) == 16
        seen.append(set(loader.batch_sampler.sampler))
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(160))


def test_fewer_images_than_a_global_batch_are_refused(make_config):
    build_train_loader(make_config(batch_size=80), 0, 2)
    with pytest.raises(UserError, match=r"images: 160, and an iteration takes 162 \(81 × 2 "):
        build_train_loader(make_config(batch_size=81), 0, 2)
    with pytest.raises(UserError, match=r"10000 \(2500 × 2 .* × 2 .*; lower base_batch_size or"):
        build_base_data(make_config(base_batch_size=9999, grad_accum=2), 0, 2)


def test_base_loaders_take_every_image_and_round_the_batch_up(make_config):
    train, _ = build_base_data(make_config(base_batch_size=12), 0, 5)
    assert train.batch_sampler.batch_size == 3
    train, val = build_base_data(make_config(base_batch_size=12), 0, 2)
    assert len(train.dataset) == 240 and len(val) == 200
    batch = next(iter(train))
    assert batch["image"].shape == (6, 3, 65, 65)
    assert batch["label"].shape == (6, 65, 65) and batch["label"].dtype == torch.uint8
    assert batch["label"][batch["label"] != 255].max() <= 15
    assert val[0]["image"].shape == (3, 65, 65)
    assert val[0]["label"].shape != (65, 65)


def test_what_training_does_with_images_that_hold_held_out_classes(make_config):
    """Labels of training follow the setting; what is scored keeps the published labels."""
    parts = {}
    for rule in ("drop", "background", "ignore"):
        cfg = make_config(mixed_images=rule, split=1)
        train = build_episodes(cfg, "train", testing=False)
        random.seed(0)
        items = [train[index] for index in range(0, len(train), 4)]
        parts[rule] = [torch.stack([i[key] for i in items]) for key in ("query_mask", "base_mask")]
        scored = build_episodes(cfg, "train", testing=True, list_part="val")
        assert scored.ignored == build_episodes(cfg, "val", testing=True).ignored == ()
        stage_1, val = build_base_data(cfg)
        ignored = (6, 7, 8, 9, 10) if rule == "ignore" else ()
        assert (stage_1.dataset.base_labels.ignored, val.base_labels.ignored) == (ignored, ())
        assert len(stage_1.dataset) == 240
    assert 0 < len(parts["drop"][0]) < len(parts["background"][0])
    differ = [a != b for a, b in zip(parts["background"], parts["ignore"], strict=True)]
    assert torch.equal(*differ) and differ[0].any()
    for label, ignoring in zip(parts["background"], parts["ignore"], strict=True):
        assert set(label[differ[0]].tolist()) == {0} and set(ignoring[differ[0]].tolist()) == {255}


def test_small_classes_are_left_out_by_the_cells_of_the_grid(make_config):
    sizes = [
        sum(
            map(
                len,
                build_episodes(make_config(min_cells=n), "val", True).lists.class_files.values(),
            )
        )
        for n in (0, 30, 45)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_settings_that_are_missing_are_named(make_config):
    with pytest.raises(UserError, match="data_root is not set"):
        build_train_loader(make_config(data_root=None))
    with pytest.raises(UserError, match="val_list is not set"):
        build_episodes(make_config(val_list=None), "val", testing=True)


def test_a_class_without_enough_images_is_named(make_config, tiny_voc, tmp_path):
    lines = (tiny_voc / "val.txt").read_text().splitlines()
    short = tmp_path / "short.txt"
    short.write_text("\n".join(lines[:25]))
    names = [f"name{i}" for i in range(1, 21)]
    config = make_config(val_list=str(short), class_names=names, shot=5)
    with pytest.raises(UserError, match=r"class 1 \(name1\) has \d usable images? in .*short\.txt"):
        build_episodes(config, "val", testing=True)


@pytest.mark.filterwarnings("error")
def test_the_published_number_of_workers_raises_no_warning(make_config):
    episodes = build_episodes(make_config(), "val", testing=True)
    loader = evaluation_loader(episodes, workers=64)
    assert loader.num_workers == 64
