"""Folds: which classes are held out for testing (novel) and which are trained on (base).

PASCAL-5^i and COCO-20^i are the folds of Shaban et al. (BMVC 2017) and Nguyen & Todorovic
(FWB, ICCV 2019); any other division is given as explicit lists of held-out classes. Where no
class is held out ("seen"), all classes are trained on and tested on other images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from util.runtime.errors import UserError

IGNORE = 255
MAX_CLASSES = IGNORE - 1
SEEN = "seen"

# "contiguous", "interleaved", "seen", or the held-out classes of each fold.
Folds = str | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Fold:
    """The classes of one fold: ids counted from 1, ascending.

    The two tuples are disjoint and hold all classes together, or each holds all classes (SEEN).
    """

    base: tuple[int, ...]  # trained on
    novel: tuple[int, ...]  # tested

    @property
    def num_classes(self) -> int:
        """The number of classes of the dataset, background not counted."""
        return len({*self.base, *self.novel})

    @property
    def held_out(self) -> tuple[int, ...]:
        """The novel classes that are not trained on: none where all classes are."""
        return tuple(class_id for class_id in self.novel if class_id not in self.base)

    def classes(self, part: str) -> tuple[int, ...]:
        """Return the class ids, ascending, that episodes of `part` ("train" or "val") show."""
        return {"train": self.base, "val": self.novel}[part]


def count_folds(folds: Folds, num_folds: int) -> int:
    """Return the number of folds of a division; the arguments are those of `fold_classes`."""
    if folds == SEEN:
        return 1
    return num_folds if isinstance(folds, str) else len(folds)


def fold_classes(num_classes: int, folds: Folds, split: int, num_folds: int = 4) -> Fold:
    """Return the base and novel classes of a fold.

    Args:
        num_classes: Number of classes of the dataset.
        folds: "contiguous" (fold i holds out the i-th block of num_classes / num_folds classes, as
            in PASCAL-5^i), "interleaved" (fold i holds out i+1, i+1+num_folds, …, as FWB divides
            COCO), "seen" (one fold, which holds no class out), or a list with the held-out class
            ids of each fold.
        split: The fold, counted from 0.
        num_folds: Number of folds; used by "contiguous" and "interleaved" only.

    Raises:
        UserError: The division is impossible or has no such fold.
    """
    if not 1 <= num_classes <= MAX_CLASSES:
        raise UserError(f"number of classes is {num_classes}; it has to be in 1..{MAX_CLASSES}")
    count = count_folds(folds, num_folds)
    if not 0 <= split < count:
        raise UserError(f"split is {split}; there are {count} folds, counted from 0")
    classes = tuple(range(1, num_classes + 1))
    if folds == SEEN:
        return Fold(base=classes, novel=classes)
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


def base_label_table(fold: Fold) -> np.ndarray:
    """Return the lookup table, uint8 (256,), from the dataset's labels to the base learner's.

    Held-out classes become background (0), a base class becomes 1 + its rank among the base
    classes; background and ignore (255) stay. Values beyond the dataset's classes become
    background: masks are checked for them when they are read.
    """
    table = np.zeros(256, np.uint8)
    table[list(fold.base)] = np.arange(1, len(fold.base) + 1)
    table[IGNORE] = IGNORE
    return table


def class_label_table(class_id: int, ignored: Sequence[int] = ()) -> np.ndarray:
    """Return the lookup table, uint8 (256,), to an episode's mask: 1 the class, 255 ignore, else 0.

    The classes `ignored` become 255 too.
    """
    table = np.zeros(256, np.uint8)
    table[class_id] = 1
    table[[IGNORE, *ignored]] = IGNORE
    return table
