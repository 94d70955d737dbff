import collections
import os
import pickle

import numpy as np
import pytest

from util.data.hsnet import draw_hsnet_runs
from util.data.lists import ImageLists
from util.runtime.errors import UserError

# Images 0..8 of the classes 2, 6 and 10, COCO's fold 1 of four; image 4 shows two of them.
PRESENT = [(2,), (2,), (6,), (10,), (2, 10), (6,), (10,), (2,), (6,)]
NAMES = [f"val2014/COCO_val2014_{number:012}" for number in range(len(PRESENT))]


@pytest.fixture
def lists():
    entries = [(f"{name}.jpg", f"{name}.png") for name in NAMES]
    of_class = {c: [i for i, p in enumerate(PRESENT) if c in p] for c in (2, 6, 10)}
    return ImageLists(entries, PRESENT, of_class)


def pascal_episodes(lines, shot, number, seed):
    """The stated rules for PASCAL, in terms of names: the global stream, the lists as they are."""
    np.random.seed(seed)
    found = []
    for index in range(number):
        query, label = lines[index % len(lines)].split("__")
        same = [line.split("__")[0] for line in lines if line.endswith(f"__{label}")]
        found.append((query, int(label), supports_of(query, same, shot)))
    return found


def coco_episodes(images_of, classes, shot, number, seed, in_turn=False):
    """The stated rules for COCO, whose classes are counted from 0, or for other domains."""
    np.random.seed(seed)
    found = []
    for index in range(number):
        turn = classes[index % len(classes)]
        label = turn if in_turn else np.random.choice(classes, 1, replace=False)[0]
        query = np.random.choice(images_of[label], 1, replace=False)[0]
        found.append((query, label + 1, supports_of(query, images_of[label], shot)))
    return found


def supports_of(query, names, shot):
    supports = []
    while len(supports) < shot:
        drawn = np.random.choice(names, 1, replace=False)[0]
        supports += [drawn] if drawn != query else []
    return supports


def named(run, names):
    return [(names[d.index], d.class_id, [names[s] for s in d.supports]) for d in run.draws]


@pytest.mark.parametrize("shot", [1, 5])
def test_text_lists_give_the_episodes_of_the_stated_rules_bit_for_bit(shot, lists, tmp_path):
    short = [os.path.basename(name) for name in NAMES]
    pairs = [(4, 10), (1, 2), (0, 2), (4, 2), (6, 10), (5, 6), (8, 6), (3, 10)]  # in no order
    lines = [f"{short[image]}__{label:02}" for image, label in pairs]
    path = tmp_path / "fold0.txt"
    path.write_text("\n".join([*lines, ""]))
    runs = draw_hsnet_runs(lists, shot, 30, 2, str(path))
    for seed, run in enumerate(runs):
        assert run.seed == seed
        assert named(run, short) == pascal_episodes(lines, shot, 30, seed)
    if shot == 5:  # of at most two images: they repeat
        assert all(len(set(draw.supports)) < 5 for draw in runs[0].draws)


@pytest.mark.parametrize(("shot", "protocol"), [(1, 4), (5, 2)])
def test_pickled_lists_give_the_episodes_of_the_stated_rules_bit_for_bit(
    shot, protocol, lists, tmp_path
):
    names = [f"{name}.jpg" for name in NAMES]
    images_of = {9: [names[i] for i in (6, 3, 4)], 1: [names[i] for i in (7, 0, 4, 1)], 0: []}
    images_of[5] = [names[i] for i in (2, 8, 5)]
    path = tmp_path / "fold1.pkl"
    path.write_bytes(pickle.dumps(images_of, protocol))
    (run,) = draw_hsnet_runs(lists, shot, 40, 1, str(path))
    assert named(run, names) == coco_episodes(images_of, [1, 5, 9], shot, 40, 0)


def test_without_a_file_the_images_of_each_class_are_taken_in_their_order(lists):
    short = [os.path.basename(name) for name in NAMES]
    lines = [f"{name}__{label}" for name, of in zip(short, PRESENT, strict=True) for label in of]
    (run,) = draw_hsnet_runs(lists, 2, 25, 1)
    assert named(run, short) == pascal_episodes(lines, 2, 25, 0)
    images_of = {c - 1: [short[i] for i in of] for c, of in lists.class_files.items()}
    for order in ("drawn", "cyclic"):
        (run,) = draw_hsnet_runs(lists, 2, 25, 1, class_order=order)
        expected = coco_episodes(images_of, [1, 5, 9], 2, 25, 0, in_turn=order == "cyclic")
        assert named(run, short) == expected


def test_names_with_a_folder_tell_images_of_one_name_apart(tmp_path):
    entries = [(f"{folder}/1.jpg", f"{folder}/1.png") for folder in ("apple", "pear", "plum")]
    lists = ImageLists(entries, [(1,)] * 3, {1: [0, 1, 2]})
    path = tmp_path / "list.txt"
    path.write_text("plum/1__1\napple/1__1\n")
    (run,) = draw_hsnet_runs(lists, 1, 2, 1, str(path))
    assert [(draw.index, draw.supports) for draw in run.draws] == [(2, [0]), (0, [2])]
    path.write_text("1__1\n")
    with pytest.raises(UserError, match="several images 1 of the val list with class 1"):
        draw_hsnet_runs(lists, 1, 2, 1, str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("2007_000001\n", "'2007_000001' is not IMAGE__CLASS"),
        ("2007_000001__cat\n", "is not IMAGE__CLASS"),
        ("elsewhere__02\n", "no image elsewhere of the val list with class 2; check split"),
        (f"{NAMES[0]}__06\n", "no image .* with class 6"),
        (f"{NAMES[0]}__02\n", "class 2 needs two images"),
    ],
)
def test_a_text_list_that_cannot_be_used_is_named(text, message, lists, tmp_path):
    path = tmp_path / "wrong.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        draw_hsnet_runs(lists, 1, 3, 1, str(path))


class Harmful:
    """An object whose pickle makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (collections.OrderedDict({1: ["a.jpg"]}), "with plain values .*collections.OrderedDict"),
        ({np.int64(1): ["a.jpg"]}, "with plain values .*numpy"),
        (["a.jpg"], "the classes are no numbers"),
        ({"1": ["a.jpg"]}, "the classes are no numbers"),
        ({1: [3]}, "with plain values"),
        ({1: 3}, "with plain values"),
        (3, "with plain values"),
        ({}, "is empty"),
        ({1: [f"{NAMES[2]}.jpg"]}, "no image .* with class 2"),
        ({1: [f"{NAMES[0]}.jpg", f"{NAMES[1]}.jpg"]}, "class 6 needs two images"),
    ],
)
def test_a_pickle_of_anything_else_is_one_line(content, message, lists, tmp_path):
    path = tmp_path / "fold.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message):
        draw_hsnet_runs(lists, 1, 3, 1, str(path))


def test_reading_a_pickle_runs_nothing_of_it(lists, tmp_path):
    path, made = tmp_path / "fold.pkl", tmp_path / "made"
    for content in (Harmful(str(made)), {1: [Harmful(str(made))]}):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=r"is no pickle .*\.mkdir'"):
            draw_hsnet_runs(lists, 1, 3, 1, str(path))
    assert not made.exists()
    pickle.loads(path.read_bytes())
    assert made.exists()


def test_a_file_that_is_none_is_named(lists, tmp_path):
    whole = pickle.dumps({1: ["a.jpg"]})
    (tmp_path / "cut.pkl").write_bytes(whole[:-3])
    (tmp_path / "pickle.txt").write_bytes(whole)
    for name, message in (
        ("nothing.txt", "cannot be read: No such file"),
        ("nothing.pkl", "cannot be read: No such file"),
        ("cut.pkl", "with plain values"),
        ("pickle.txt", "is no text"),
    ):
        with pytest.raises(UserError, match=message):
            draw_hsnet_runs(lists, 1, 3, 1, str(tmp_path / name))
