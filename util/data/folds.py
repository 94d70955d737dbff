"""Folds: which classes are held out for testing (novel) and which are trained on (base).

PASCAL-5^i and COCO-20^i are the folds of Shaban et al. (BMVC 2017) and Nguyen & Todorovic
(FWB, ICCV 2019); any other division is given as explicit lists of held-out classes. Where no
class is held out ("seen"), all are both: trained on, and tested on other images.
"""

from dataclasses import dataclass

import numpy as np

from util.runtime.errors import UserError

IGNORE = 255
MAX_CLASSES = IGNORE - 1
SEEN = "seen"


@dataclass(frozen=True)
class Fold:
    """One fold: classes trained on (`base`) and tested on (`novel`), ids 1-based, ascending.

    The two are disjoint and together all classes, or each of them is all classes (SEEN).
    """

    base: tuple[int, ...]
    novel: tuple[int, ...]

    @property
    def num_classes(self):
        """Number of classes of the dataset, background not counted."""
        return len({*self.base, *self.novel})

    def classes(self, part):
        """Class ids that episodes of `part` ("train" or "val") are drawn from, ascending."""
        return {"train": self.base, "val": self.novel}[part]


def count_folds(folds, num_folds):
    """Number of folds of a division; the arguments are those of `fold_classes`."""
    if folds == SEEN:
        return 1
    return num_folds if isinstance(folds, str) else len(folds)


def fold_classes(num_classes, folds, split, num_folds=4):
    """The base and novel classes of fold `split` (counted from 0).

    folds: "contiguous" (fold i holds the i-th block of num_classes / num_folds classes out, as
    PASCAL-5^i does), "interleaved" (fold i holds i+1, i+1+num_folds, … out, as FWB divides
    COCO), "seen" (one fold, that holds none out), or a list with one list of held-out class ids
    per fold; the last two leave num_folds unused.
    Raises UserError if the division is impossible or has no fold `split`.
    """
    if not 1 <= num_classes <= MAX_CLASSES:
        raise UserError(f"number of classes is {num_classes}; it has to be in 1..{MAX_CLASSES}")
    count = count_folds(folds, num_folds)
    if not 0 <= split < count:
        raise UserError(f"split is {split}; there are {count} folds, counted from 0")
    classes = tuple(range(1, num_classes + 1))
    if folds == SEEN:
        return Fold(base=classes, novel=classes)
    if isinstance(folds, str):
        novel = _novel_by_rule(num_classes, folds, split, num_folds)
    else:
        novel = _novel_from_list(num_classes, folds[split], split)
    base = tuple(c for c in classes if c not in novel)
    if not base or not novel:
        side = "held-out" if not novel else "base"
        raise UserError(f"fold {split} of {num_classes} classes has no {side} class")
    return Fold(base=base, novel=novel)


def _novel_by_rule(num_classes, rule, split, num_folds):
    if rule == "interleaved":
        return tuple(range(split + 1, num_classes + 1, num_folds))
    if rule == "contiguous":
        size, rest = divmod(num_classes, num_folds)
        if rest:
            raise UserError(
                f"{num_classes} classes do not divide into {num_folds} contiguous folds; "
                "give the held-out classes of each fold as lists"
            )
        return tuple(range(split * size + 1, (split + 1) * size + 1))
    raise UserError(
        f"folds is {rule!r}; use contiguous, interleaved, seen or lists of held-out classes"
    )


def _novel_from_list(num_classes, held_out, split):
    novel = tuple(sorted(held_out))
    for class_id in novel:
        if not 1 <= class_id <= num_classes:
            raise UserError(f"fold {split} holds out class {class_id}; ids are 1..{num_classes}")
    if len(set(novel)) != len(novel):
        raise UserError(f"fold {split} names a class twice: {list(held_out)}")
    return novel


def base_label_table(fold):
    """Lookup table (256,) uint8 from the dataset's labels to those of the base learner.

    Held-out classes become background (0), a base class 1 + its rank among the base classes;
    background and ignore (255) stay. Values beyond the dataset's classes become background:
    masks are checked for them when they are read.
    """
    table = np.zeros(256, np.uint8)
    table[list(fold.base)] = np.arange(1, len(fold.base) + 1)
    table[IGNORE] = IGNORE
    return table


def class_label_table(class_id):
    """Lookup table (256,) uint8 to an episode's mask: `class_id` → 1, ignore stays, rest → 0."""
    table = np.zeros(256, np.uint8)
    table[class_id] = 1
    table[IGNORE] = IGNORE
    return table
