from pathlib import Path

import numpy as np
import pytest

from util.data.draws import Draw
from util.data.fold_list import draw_fold_list
from util.runtime.errors import UserError


@pytest.fixture
def lists(episodes):
    return episodes.lists


@pytest.fixture
def pairs(lists):
    """(index, class) of every image with every class of the fold that it shows."""
    return [(i, class_id) for i, present in enumerate(lists.present) for class_id in present]


def stem(lists, index):
    return Path(lists.entries[index][0]).stem


@pytest.fixture
def fold_list(lists, pairs, tmp_path):
    path = tmp_path / "fold0.txt"
    path.write_text("".join(f"{stem(lists, i)}__{class_id:02d}\n" for i, class_id in pairs))
    return path


def test_queries_follow_the_lines_and_supports_show_the_class(fold_list, lists, pairs):
    runs = draw_fold_list(str(fold_list), lists, shot=2, number=len(pairs) + 3, runs=2)
    assert [run.seed for run in runs] == [0, 1]
    for run in runs:
        assert [(d.index, d.class_id) for d in run.draws] == pairs + pairs[:3]
        for draw in run.draws:
            assert len(draw.supports) == 2 and draw.index not in draw.supports
            assert all((support, draw.class_id) in pairs for support in draw.supports)
    assert runs[0].draws != runs[1].draws


def test_supports_are_those_of_numpys_seed(fold_list, lists, pairs):
    (run,) = draw_fold_list(str(fold_list), lists, shot=1, number=len(pairs), runs=1)
    np.random.seed(0)
    for index, class_id in pairs:
        candidates = [i for i, c in pairs if c == class_id]
        support = index
        while support == index:
            support = np.random.choice(candidates, 1, replace=False)[0]
        assert run.draws.pop(0) == Draw(index, class_id, [support])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("2007_000001\n", "'2007_000001' is not IMAGE__CLASS"),
        ("2007_000001__cat\n", "is not IMAGE__CLASS"),
        ("elsewhere__01\n", "no image elsewhere of the test shows class 1; set min_pixels 1"),
        ("{first}__77\n", "shows class 77"),
        ("{first}__{class_id}\n", "has one image; it needs two"),
    ],
)
def test_a_list_that_cannot_be_used_is_named(text, message, lists, pairs, tmp_path):
    path = tmp_path / "wrong.txt"
    path.write_text(text.format(first=stem(lists, 0), class_id=pairs[0][1]))
    with pytest.raises(UserError, match=message):
        draw_fold_list(str(path), lists, 1, 3, 1)


def test_a_file_that_is_none_is_named(lists, tmp_path):
    (tmp_path / "list.pkl").write_bytes(b"\x80\x04\x95")
    for name, message in (("nothing.txt", "cannot be read"), ("list.pkl", "is no text")):
        with pytest.raises(UserError, match=message):
            draw_fold_list(str(tmp_path / name), lists, 1, 3, 1)
