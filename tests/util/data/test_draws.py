import json
import re

import pytest
import torch

from tests.paths import DATA
from util.data.draws import draw_test_episodes, run_seeds
from util.data.folds import fold_classes
from util.data.lists import load_lists

GOLDEN = json.loads((DATA / "golden_data.json").read_text())
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


def test_seeds_of_the_published_runs():
    assert run_seeds(3) == [510, 365, 382] == run_seeds(10)[:3]
