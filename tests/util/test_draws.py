import json
import re
from pathlib import Path

import pytest
import torch

from util.draws import DrawnEpisodes, draw_test_episodes
from util.episodes import EpisodeDataset
from util.folds import fold_classes
from util.lists import load_lists
from util.transform import eval_transform

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden_data.json").read_text())
STREAMS = [key for key in GOLDEN["episodes"] if key.startswith("val")]


@pytest.fixture(scope="module")
def lists_of(tiny_voc, tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("lists"))

    def lists_of(split):
        fold = fold_classes(20, "contiguous", split)
        list_file = str(tiny_voc / "val.txt")
        return fold, load_lists(str(tiny_voc), list_file, fold, "val", cache, progress=False)

    return lists_of


@pytest.mark.parametrize("key", STREAMS)
def test_draws_equal_the_published_episodes(key, lists_of):
    split, shot, workers, seed = map(int, re.findall(r"\d+", key))
    _, lists = lists_of(split)
    expected = GOLDEN["episodes"][key]
    draws = draw_test_episodes(lists, shot, len(expected), seed, workers)
    assert len(expected) == 2 * len(lists.entries)
    for draw, wanted in zip(draws, expected, strict=True):
        assert lists.entries[draw.index][0] == wanted["query"]
        assert draw.class_id == wanted["cls"]
        assert [lists.entries[i][0] for i in draw.supports] == wanted["support"]


def test_fewer_episodes_are_a_prefix_and_draw_no_global_stream(lists_of):
    _, lists = lists_of(0)
    before = torch.get_rng_state()
    many = draw_test_episodes(lists, 1, len(lists.entries) + 7, 510, 8)
    few = draw_test_episodes(lists, 1, 9, 510, 8)
    assert few == many[:9]
    assert [draw.index for draw in many[-7:]] == list(range(7))
    assert torch.equal(before, torch.get_rng_state())


def test_drawn_episodes_load_what_was_drawn(lists_of, tiny_voc):
    fold, lists = lists_of(2)
    transform = eval_transform((65, 65))
    episodes = EpisodeDataset(
        lists, fold, "val", 2, str(tiny_voc), transform, base_label_folder=None, originals=True
    )
    draws = draw_test_episodes(lists, 2, 3, 1, 0)
    items = DrawnEpisodes(episodes, draws[1:])
    assert len(items) == 2
    assert items[0]["index"] == draws[1].index
    assert items[0]["support_index"].tolist() == draws[1].supports[::-1]
