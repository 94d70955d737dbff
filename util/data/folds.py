"""Folds: which classes are held out for testing (novel) and which are trained on (base).

PASCAL-5^i and COCO-20^i are the folds of Shaban et al. (BMVC 2017) and Nguyen & Todorovic
(FWB, ICCV 2019); any other division is given as explicit lists of held-out classes. Where no
class is held out ("seen"), all classes are trained on and tested on other images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from util.runtime.errors import UserError

IGNORE = 255  # in masks of 8 bits
MAX_CLASSES = IGNORE - 1  # of masks of 8 bits; more need 16
SEEN = "seen"
PARTS = ("train", "val", "test")  # of a fixed division
LIST_PARTS = ("train", "val")  # of which a dataset has a list

# "contiguous", "interleaved", "seen", the held-out classes of each fold, or those of each of PARTS.
Folds = str | Sequence[Sequence[int]] | Mapping[Any, Sequence[int]]


@dataclass(frozen=True)
class Fold:
    """The classes of one fold: ids counted from 1, ascending.

    The tuples are disjoint and hold all classes together, or base and novel hold all classes (SEEN).
    """

    base: tuple[int, ...]  # trained on
    novel: tuple[int, ...]  # tested
    val: tuple[int, ...] = ()  # only validated, in training; none: the novel ones are

    @property
    def num_classes(self) -> int:
        """The number of classes of the dataset, background not counted."""
        return len({*self.base, *self.novel, *self.val})

    @property
    def held_out(self) -> tuple[int, ...]:
        """The classes that are not trained on: none where all classes are."""
        others = sorted({*self.novel, *self.val})
        return tuple(class_id for class_id in others if class_id not in self.base)

    def classes(self, part: str) -> tuple[int, ...]:
        """Return the class ids, ascending, that episodes of `part`, one of PARTS, show."""
        return {"train": self.base, "val": self.val or self.novel, "test": self.novel}[part]


def count_folds(folds: Folds, num_folds: int) -> int:
    """Return the number of folds of a division; the arguments are those of `fold_classes`."""
    if folds == SEEN or isinstance(folds, Mapping):
        return 1
    return num_folds if isinstance(folds, str) else len(folds)


def fold_classes(num_classes: int, folds: Folds, split: int, num_folds: int = 4) -> Fold:
    """Return the base and novel classes of a fold.

    Args:
        num_classes: Number of classes of the dataset.
        folds: "contiguous" (fold i holds out the i-th block of num_classes / num_folds classes, as
            in PASCAL-5^i), "interleaved" (fold i holds out i+1, i+1+num_folds, …, as FWB divides
            COCO), "seen" (one fold, which holds no class out), a list with the held-out class
            ids of each fold, or the class ids of each of PARTS, of which val may be missing.
        split: The fold, counted from 0.
        num_folds: Number of folds; used by "contiguous" and "interleaved" only.

    Raises:
        UserError: The division is impossible or has no such fold.
    """
    if not 1 <= num_classes < ignore_value(np.uint16):
        most = ignore_value(np.uint16) - 1
        raise UserError(f"number of classes is {num_classes}; it has to be in 1..{most}")
    count = count_folds(folds, num_folds)
    if not 0 <= split < count:
        raise UserError(f"split is {split}; there are {count} folds, counted from 0")
    classes = tuple(range(1, num_classes + 1))
    if folds == SEEN:
        return Fold(base=classes, novel=classes)
    if isinstance(folds, Mapping):
        base, val, novel = (tuple(sorted(folds.get(part, ()))) for part in PARTS)
        if tuple(sorted((*base, *val, *novel))) != classes or not base or not novel:
            raise UserError(
                f"train, val and test have to hold the classes 1..{num_classes}, each once, and only "
                "val may be empty"
            )
        return Fold(base, novel, val)
    if folds == "interleaved":
        novel = classes[split::num_folds]
    elif folds == "contiguous":
        size, rest = divmod(num_classes, num_folds)
        if rest:
            raise UserError(
                f"{num_classes} classes do not divide into {num_folds} contiguous folds; "
                "give the held-out classes of each fold as lists"
            )
        novel = classes[split * size : (split + 1) * size]
    elif isinstance(folds, str):
        raise UserError(
            f"folds is {folds!r}; use contiguous, interleaved, seen or lists of held-out classes"
        )
    else:
        novel = tuple(sorted(folds[split]))
        for class_id in novel:
            if not 1 <= class_id <= num_classes:
                raise UserError(
                    f"fold {split} holds out class {class_id}; ids are 1..{num_classes}"
                )
        if len(set(novel)) != len(novel):
            raise UserError(f"fold {split} names a class twice: {list(folds[split])}")
    base = tuple(c for c in classes if c not in novel)
    if not base or not novel:
        side = "held-out" if not novel else "base"
        raise UserError(f"fold {split} of {num_classes} classes has no {side} class")
    return Fold(base=base, novel=novel)


def mask_type(num_classes: int) -> type[np.integer]:
    """Return the type of class ids: uint8, or uint16 for more than MAX_CLASSES."""
    return np.uint8 if num_classes <= MAX_CLASSES else np.uint16


def ignore_value(kind: DTypeLike) -> int:
    """Return the value of ignored pixels in masks of a type: its highest, 255 or 65,535."""
    return int(np.iinfo(kind).max)


def base_label_table(fold: Fold) -> np.ndarray:
    """Return the lookup table, uint8, from the dataset's labels to the base learner's.

    Held-out classes become background (0), a base class becomes 1 + its rank among the base
    classes; background stays and ignore becomes 255. Values beyond the dataset's classes become
    background: masks are checked for them when they are read. All base classes do where they are
    more than MAX_CLASSES, since no base learner of ours has so many.
    """
    table = _table(mask_type(fold.num_classes))
    if len(fold.base) <= MAX_CLASSES:
        table[list(fold.base)] = np.arange(1, len(fold.base) + 1)
    return table


def class_label_table(
    class_id: int, ignored: Sequence[int] = (), kind: DTypeLike = np.uint8
) -> np.ndarray:
    """Return the lookup table, uint8, to an episode's mask: 1 the class, 255 ignore, else 0.

    The classes `ignored` become 255 too; `kind` is the type of the ids that are looked up.
    """
    table = _table(kind)
    table[class_id] = 1
    table[[*ignored]] = IGNORE
    return table


def _table(kind: DTypeLike) -> np.ndarray:
    table = np.zeros(ignore_value(kind) + 1, np.uint8)
    table[-1] = IGNORE
    return table
