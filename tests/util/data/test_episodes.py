import json
import random
import re

import pytest
import torch

from model import build_hdmnet
from tests.paths import DATA
from tests.util.data.scripted import Scripted
from util.data.dataset import base_label_dir
from util.data.draws import draw_test_episodes, run_seeds
from util.data.episodes import EpisodeDataset, draw_episode
from util.data.folds import fold_classes
from util.data.lists import ImageLists
from util.data.transform import EvalTransform, train_transform
from util.evaluation.evaluator import evaluate_episodes
from util.evaluation.predictor import Predictor
from util.get_mulway_base_data import write_base_labels
from util.runtime.distributed import Processes
from util.runtime.errors import UserError
from util.runtime.seed import seed_everything

GOLDEN = json.loads((DATA / "golden_data.json").read_text())
SIZE = GOLDEN["size"]


@pytest.fixture(scope="module")
def build(tiny_voc, tiny_lists):
    """Makes the EpisodeDataset of (part, split, shot) on the tiny dataset."""

    def build(part, split, shot, base_labels=None, folds="contiguous", size=SIZE):
        fold, lists = tiny_lists(part, split, folds)
        val, size = part == "val", (size, size)
        transform = EvalTransform(size) if val else train_transform(size, (0.9, 1.1), (-10, 10))
        root = str(tiny_voc)
        return EpisodeDataset(lists, fold, part, shot, root, transform, base_labels, originals=val)

    return build


# The loaders' own tests compare the episodes that torch's loader gives with several workers.
@pytest.mark.parametrize("key", GOLDEN["episodes"])
def test_episodes_equal_the_published_ones(key, build):
    """Masks exactly, image sums to what float32 allows."""
    part = key.partition("_")[0]
    split, shot, workers, seed = map(int, re.findall(r"\d+", key))
    dataset, golden = build(part, split, shot), GOLDEN["episodes"][key]
    entries = dataset.lists.entries
    if part == "val":
        draws = draw_test_episodes(dataset.lists, shot, len(golden), seed, workers)
        assert len(golden) == 2 * len(entries)
        items = [dataset.load(*draw, rng=None) for draw in draws]
    else:
        seed_everything(seed)
        items = [dataset[index] for index in range(len(golden))]
    for item, wanted in zip(items, golden, strict=True):
        assert entries[item["index"]][0] == wanted["query"]
        assert item["class_id"] == wanted["cls"]
        assert [entries[i][0] for i in item["support_index"].flip(0)] == wanted["support"]
        assert int((item["query_mask"] == 1).sum()) == wanted["msum"]
        assert (item["support_mask"] == 1).sum((1, 2)).tolist() == wanted["smsum"]
        assert int(item["base_mask"].sum()) == wanted["bsum"]
        assert float(item["query"].double().sum()) == pytest.approx(wanted["sum"], rel=1e-5)
        assert float(item["support"].double().sum()) == pytest.approx(wanted["ssum"], rel=1e-5)


def test_fewer_test_episodes_are_a_prefix_and_draw_no_global_stream(tiny_lists):
    _, lists = tiny_lists("val", 0)
    before = torch.get_rng_state()
    many = draw_test_episodes(lists, 1, len(lists.entries) + 7, 510, 8)
    assert draw_test_episodes(lists, 1, 9, 510, 8) == many[:9]
    assert [draw.index for draw in many[-7:]] == list(range(7))
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_of_the_published_runs():
    assert run_seeds(3) == [510, 365, 382] == run_seeds(10)[:3]


LISTS = ImageLists(
    entries=[(f"{i}.jpg", f"{i}.png") for i in range(5)],
    present=[(2, 7), (2,), (2,), (2,), (7,)],
    class_files={2: [0, 1, 2, 3], 7: [4]},
)


def test_draw_follows_the_published_stream():
    # The class; then per support a draw nobody uses, and draws until one is new.
    rng = Scripted(1, 2, 1, 4, 4, 4, 1, 2)
    assert draw_episode(rng, 0, LISTS, 2) == (2, [3, 1])
    assert rng.numbers == []
    assert rng.asked == [(1, 2)] + [(1, 4)] * 7


def test_draw_of_the_only_class_draws_too():
    rng = Scripted(1, 1, 1)
    assert draw_episode(rng, 1, LISTS, 1) == (2, [0])
    assert rng.asked[0] == (1, 1)


def test_a_query_too_small_for_its_class_can_take_every_file():
    assert draw_episode(Scripted(2, 1, 1), 0, LISTS, 1) == (7, [4])


def test_too_few_images_are_refused_not_drawn_for_ever():
    fold = fold_classes(8, [[2, 7]], 0)
    with pytest.raises(UserError, match="class 7 has 1 usable image in val but shot 1"):
        EpisodeDataset(LISTS, fold, "val", 1, "", None)


def test_items_are_what_they_say(build):
    random.seed(0)
    item = build("val", 2, 5)[3]
    shapes = {key: tuple(value.shape) for key, value in item.items() if torch.is_tensor(value)}
    original = shapes.pop("label")
    assert shapes.pop("base_label") == original
    assert shapes == {
        "query": (3, SIZE, SIZE),
        "query_mask": (SIZE, SIZE),
        "base_mask": (SIZE, SIZE),
        "support": (5, 3, SIZE, SIZE),
        "support_mask": (5, SIZE, SIZE),
        "support_index": (5,),
    }
    assert item["support_index"].dtype == torch.int64
    # Labels stay small until they are on the device of the model.
    for key in ("query_mask", "base_mask", "support_mask", "label", "base_label"):
        assert item[key].dtype == torch.uint8
    assert set(item["label"].unique().tolist()) == {0, 1, 255}
    assert item["index"] == 3
    assert "label" not in build("train", 2, 1)[0]


def test_the_rank_among_the_base_classes_is_there_for_base_classes_alone(build):
    train, val = build("train", 2, 1), build("val", 2, 1)
    for index in range(0, 50, 5):
        assert "class_index" not in val[index]
        item = train[index]
        assert item["class_index"] == item["class_id"] - (1 if item["class_id"] <= 10 else 6)


@pytest.mark.parametrize("part", ["train", "val"])
def test_where_no_class_is_held_out_the_tested_class_is_a_base_class(part, build):
    dataset = build(part, 0, 1, folds="seen")
    assert dataset.classes == dataset.base_classes == tuple(range(1, 21))
    for index in range(0, len(dataset), 20):
        item = dataset[index]
        assert item["class_index"] == item["class_id"] - 1
        own = item["base_mask"] == item["class_id"]
        assert torch.equal(own, item["query_mask"] == 1) and own.any()


def test_load_gives_a_drawn_episode_again(build):
    dataset = build("train", 0, 2)
    random.seed(9)
    first = dataset[4]
    rng = random.Random(9)
    class_id, supports = draw_episode(rng, 4, dataset.lists, 2)
    again = dataset.load(4, class_id, supports, rng)
    assert first.keys() == again.keys()
    for key, value in first.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(again[key]))


@pytest.mark.parametrize("folds", ["contiguous", "seen"])
def test_evaluation_tells_the_ensemble_the_rank_of_a_base_class(folds, build):
    episodes = build("val", 0, 1, folds=folds, size=33)
    net = build_hdmnet("resnet18", len(episodes.base_classes))
    ranks = []
    net.ensemble.register_forward_pre_hook(lambda _, arguments: ranks.append(arguments[3]))
    draws = draw_test_episodes(episodes.lists, 1, 3, 5, 0)
    device = torch.device("cpu")
    evaluate_episodes(Predictor(net, episodes, device), [draws], Processes(0, 1, device))
    ranks = [rank if rank is None else rank.tolist() for rank in ranks]
    expected = [[draw.class_id - 1] for draw in draws]
    assert ranks == (expected if folds == "seen" else [None] * 3)


@pytest.mark.parametrize("part", ["train", "val"])
def test_stored_base_labels_give_the_same_episodes(part, build, tiny_voc, tiny_lists, tmp_path):
    computed = build(part, 2, 1)
    folder = base_label_dir(str(tmp_path), part, 2)
    fold, lists = tiny_lists(part, 2)
    write_base_labels(str(tiny_voc), lists.entries, fold, folder)
    stored = build(part, 2, 1, folder)
    keys = ("base_mask", "base_label") if part == "val" else ("base_mask",)
    for index in range(0, len(computed), 10):
        random.seed(index)
        one = computed[index]
        random.seed(index)
        other = stored[index]
        for key in keys:
            assert one[key].max() > 0
            assert torch.equal(one[key], other[key])
