"""Test episodes from a fold list, as HSNet (Min et al., ICCV 2021) has for PASCAL: a query per line.

A line is `IMAGE__CLASS`: the name of an image without folder and extension, and a class counted
from 1. The queries are the lines in order, and after the last line the first follows again. The
supports of a query are drawn by numpy from the lines of its class until none is the query, and may
repeat. These episodes have not been compared with those of HSNet's own code.
"""

from pathlib import PurePath

import numpy as np

from util.data.draws import Draw, DrawnRun
from util.data.lists import ImageLists
from util.runtime.errors import UserError


def draw_fold_list(
    path: str, lists: ImageLists, shot: int, number: int, runs: int
) -> list[DrawnRun]:
    """Return `runs` runs of `number` test episodes, with the seeds 0, 1, 2, … (HSNet's is 0).

    Raises:
        UserError: The file cannot be read, has a line of another form, names an image that `lists`
            does not have with that class, or names only one image of a class.
    """
    pairs = _read_pairs(path, lists)
    of_class: dict[int, list[int]] = {}
    for index, class_id in pairs:
        of_class.setdefault(class_id, []).append(index)
    for class_id, images in of_class.items():
        if len(set(images)) == 1:
            raise UserError(f"fold_list {path}: class {class_id} has one image; it needs two")
    drawn = []
    for seed in range(runs):
        stream = np.random.RandomState(seed)
        draws = []
        for episode in range(number):
            query, class_id = pairs[episode % len(pairs)]
            supports: list[int] = []
            while len(supports) < shot:
                support = int(stream.choice(of_class[class_id], 1, replace=False)[0])
                if support != query:
                    supports.append(support)
            draws.append(Draw(query, class_id, supports))
        drawn.append(DrawnRun(seed, draws))
    return drawn


def _read_pairs(path: str, lists: ImageLists) -> list[tuple[int, int]]:
    """Return the index into the lists and the class of each line."""
    try:
        with open(path, encoding="utf-8") as handle:
            lines = [line.strip() for line in handle if line.strip()]
    except OSError as error:
        raise UserError(f"fold_list {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"fold_list {path}: is no text of lines IMAGE__CLASS") from None
    if not lines:
        raise UserError(f"fold_list {path}: is empty")
    index_of = {PurePath(image).stem: i for i, (image, _) in enumerate(lists.entries)}
    pairs = []
    for line in lines:
        name, _, class_text = line.rpartition("__")
        if not class_text.isdecimal() or "__" not in line:
            raise UserError(f"fold_list {path}: {line!r} is not IMAGE__CLASS")
        index, class_id = index_of.get(name), int(class_text)
        if index is None or class_id not in lists.present[index]:
            raise UserError(
                f"fold_list {path}: no image {name} of the test shows class {class_id}; "
                "set min_pixels 1 for images of small objects, and the fold of the list (split)"
            )
        pairs.append((index, class_id))
    return pairs
