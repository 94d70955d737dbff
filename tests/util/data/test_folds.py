import numpy as np
import pytest

from util.data.folds import Fold, base_label_table, class_label_table, count_folds, fold_classes
from util.runtime.errors import UserError


def test_folds_of_pascal_and_coco():
    fold = fold_classes(20, "contiguous", 1)
    assert fold.novel == (6, 7, 8, 9, 10)
    assert fold.base == (1, 2, 3, 4, 5, *range(11, 21))
    assert fold_classes(80, "interleaved", 1).novel == tuple(range(2, 81, 4))
    assert fold_classes(80, "contiguous", 3).novel == tuple(range(61, 81))


@pytest.mark.parametrize("rule", ["contiguous", "interleaved"])
def test_folds_are_disjoint_and_complete(rule):
    folds = [fold_classes(80, rule, split) for split in range(4)]
    assert sorted(c for fold in folds for c in fold.novel) == list(range(1, 81))
    for fold in folds:
        assert len(fold.base) == 60
        assert sorted(fold.base + fold.novel) == list(range(1, 81))


def test_explicit_folds_sort_the_held_out_classes():
    fold = fold_classes(7, [[5, 2], [1]], 0)
    assert fold == Fold(base=(1, 3, 4, 6, 7), novel=(2, 5))
    assert fold.num_classes == 7
    assert fold.classes("train") == fold.base
    assert fold.classes("val") == fold.novel


@pytest.mark.parametrize("num_classes", [1, 3, 254])
def test_seen_trains_and_tests_on_every_class_in_one_fold(num_classes):
    everything = tuple(range(1, num_classes + 1))
    fold = fold_classes(num_classes, "seen", 0)
    assert fold.classes("train") == fold.classes("val") == everything
    assert fold.num_classes == num_classes
    assert base_label_table(fold)[[*everything, 0, 255]].tolist() == [*everything, 0, 255]


def test_folds_are_counted():
    assert count_folds("contiguous", 3) == count_folds("interleaved", 3) == 3
    assert (count_folds("seen", 3), count_folds([[1], [2]], 3)) == (1, 2)
    folds = [fold_classes(2, "contiguous", split, num_folds=2) for split in range(2)]
    assert folds == [Fold(base=(2,), novel=(1,)), Fold(base=(1,), novel=(2,))]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((20, "contiguous", 4), "split is 4"),
        ((20, "contiguous", -1), "split is -1"),
        ((20, [[1]], 1), "there are 1 folds"),
        ((20, "seen", 1), "there are 1 folds"),
        ((1, "interleaved", 0), "no base class"),
        ((18, "contiguous", 0), "18 classes"),
        ((20, "random", 0), "'random'"),
        ((20, [[21]], 0), "class 21"),
        ((20, [[0]], 0), "class 0"),
        ((20, [[3, 3]], 0), r"twice: \[3, 3\]"),
        ((20, [[]], 0), "no held-out class"),
        ((2, [[1, 2]], 0), "no base class"),
        ((65535, "interleaved", 0), "1..65534"),
    ],
)
def test_impossible_folds_are_named(arguments, named):
    with pytest.raises(UserError, match=named):
        fold_classes(*arguments)


def test_label_tables():
    table = base_label_table(fold_classes(20, "contiguous", 0))
    assert table.dtype == np.uint8
    assert table[[0, 1, 5, 6, 20, 255]].tolist() == [0, 0, 0, 1, 15, 255]
    assert class_label_table(7)[[0, 6, 7, 8, 255]].tolist() == [0, 0, 1, 0, 255]
    assert class_label_table(7, (6, 8))[[0, 6, 7, 8, 255]].tolist() == [0, 255, 1, 255, 255]
