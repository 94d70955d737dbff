"""Test episodes as the loaders of HSNet (Min et al., ICCV 2021) draw them: `protocol hsnet`.

Everything is drawn from numpy's legacy generator. For PASCAL the queries are the pairs of image and
class in the order of the list, and after the last one the first follows again. For COCO the class is
drawn, then the query among the images of the class. The cross-domain sets of PATNet (Lei et al., ECCV
2022) take the classes in turn. The supports are drawn from the images of the class until there are
enough that are not the query, and may repeat. These episodes have not been compared with those of
HSNet's own code.
"""

import os
import pickle
from collections import defaultdict
from collections.abc import Sequence
from typing import NoReturn, TypeVar

import numpy as np

from util.data.draws import Draw, DrawnRun
from util.data.lists import ImageLists
from util.runtime.errors import UserError
from util.runtime.texts import read_text

_Item = TypeVar("_Item")


def draw_hsnet_runs(
    lists: ImageLists,
    shot: int,
    number: int,
    runs: int,
    list_file: str | None = None,
    class_order: str = "listed",
) -> list[DrawnRun]:
    """Return `runs` runs of `number` test episodes, with the seeds 0, 1, 2, … (HSNet's is 0).

    Args:
        lists: The images of the test.
        shot: Supports per episode.
        number: Episodes per run.
        runs: The number of runs.
        list_file: A fold list of HSNet: lines IMAGE__CLASS with classes from 1, as for PASCAL, or a
            pickle (.pkl) of {class from 0: [image, …]}, as for COCO, whose classes are drawn. None
            takes the images of each class in `lists`, in the order of the images.
        class_order: "listed": query and class are the next pair; "drawn": both are drawn, as for
            COCO; "cyclic": the class is the next one, and the query drawn.

    Raises:
        UserError: The file cannot be read or has another form, names an image that `lists` does not
            have with that class, or there is only one image of a class.
    """
    if list_file is None:
        pairs = sorted((i, class_id) for class_id, of in lists.class_files.items() for i in of)
    else:
        pickled = list_file.endswith(".pkl")
        class_order = "drawn" if pickled else "listed"
        named = _read_pickle(list_file) if pickled else _read_lines(list_file)
        if not named:
            raise UserError(f"hsnet_list {list_file}: is empty")
        pairs = _find_images(named, lists)
    classes = list(lists.class_files)
    of_class = {class_id: [i for i, c in pairs if c == class_id] for class_id in classes}
    for class_id, images in of_class.items():
        if list_file is None and class_order == "listed":
            # FSS-1000 has its images as text, 1, 10, 2, …, but numbers its supports.
            images.sort(key=lambda i: len(lists.entries[i][0]))
        if len({lists.entries[i] for i in images}) < 2 and (images or class_order != "listed"):
            raise UserError(f"{list_file or 'val_list'}: class {class_id} needs two images")
    drawn = []
    for seed in range(runs):
        stream = np.random.RandomState(seed)
        draws = []
        for episode in range(number):
            query, class_id = pairs[episode % len(pairs)]
            if class_order != "listed":
                cyclic = class_order == "cyclic"
                class_id = classes[episode % len(classes)] if cyclic else _choose(stream, classes)
                query = _choose(stream, of_class[class_id])
            supports: list[int] = []
            while len(supports) < shot:
                support = _choose(stream, of_class[class_id])
                if lists.entries[support] != lists.entries[query]:
                    supports.append(support)
            draws.append(Draw(query, class_id, supports))
        drawn.append(DrawnRun(seed, draws))
    return drawn


def _choose(stream: np.random.RandomState, items: Sequence[_Item]) -> _Item:
    # This shuffles all the items; a call that draws a single number would give other episodes.
    return items[stream.choice(len(items), 1, replace=False)[0]]


def _find_images(named: list[tuple[str, int]], lists: ImageLists) -> list[tuple[int, int]]:
    """Return the index into the lists and the class of images named with or without their folder."""
    places = defaultdict(list)
    for index, (image, _) in enumerate(lists.entries):
        path = os.path.splitext(image)[0]
        for key in {path, os.path.basename(path)}:
            places[key].append(index)
    pairs = []
    for name, class_id in named:
        found = places.get(name) or places.get(os.path.basename(name), [])
        found = [index for index in found if class_id in lists.present[index]]
        if len(found) != 1:
            raise UserError(
                f"hsnet_list: {'several images' if found else 'no image'} {name} of the val list "
                f"with class {class_id}; check split, val_list and min_pixels"
            )
        pairs.append((found[0], class_id))
    return pairs


def _read_lines(path: str) -> list[tuple[str, int]]:
    """Return the image and the class of each line IMAGE__CLASS."""
    named = []
    for line in filter(None, map(str.strip, read_text(path).split("\n"))):
        name, separator, class_text = line.rpartition("__")
        if not separator or not class_text.isdecimal():
            raise UserError(f"hsnet_list {path}: {line!r} is not IMAGE__CLASS")
        named.append((name, int(class_text)))
    return named


class _PlainUnpickler(pickle.Unpickler):
    """A reader that refuses everything but plain containers, numbers and strings.

    An object of any other kind is made by a function that the file names, which could be any.
    """

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {f'{module_name}.{global_name}'!r}")


def _read_pickle(path: str) -> list[tuple[str, int]]:
    """Return the images without extension and their classes from 1, class after class."""
    try:
        with open(path, "rb") as file:
            content = _PlainUnpickler(file).load()
        if not all(type(label) is int for label in content):
            raise ValueError("the classes are no numbers")
        return [(os.path.splitext(i)[0], c + 1) for c in sorted(content) for i in content[c]]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # A file of another form may raise any.
        raise UserError(
            f"hsnet_list {path}: is no pickle of {{class: [image, …]}} with plain values ({error})"
        ) from None
