"""Image lists of a fold: which images episodes are drawn from, and the files of each class.

A list file holds "IMAGE MASK" per line, both relative to the dataset's root. All its masks are
scanned once for their pixels per class (`util.data.list_cache`); the lists of every fold follow from
these counts by the rules of PFENet and BAM.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from util.data.cells import Grid
from util.data.folds import Fold, mask_type
from util.data.images import Entry, MarkedEntry, unknown_class
from util.data.list_cache import Counts, file_stamps, load_counts
from util.runtime.errors import UserError
from util.runtime.texts import is_comment, read_text


@dataclass(frozen=True)
class MaskForm:
    """How the masks of a dataset hold its classes.

    Attributes:
        num_classes: The number of classes, which decides the type of class ids.
        folders: The folders of binary masks of the classes 1, 2, …; None: there are index masks.
    """

    num_classes: int = 1
    folders: Sequence[str] | None = None

    def read(self, entries: Sequence[Entry], problems: list[str]) -> list[Entry]:
        """Return entries that say how their masks are read; `problems` receives what is wrong."""
        kind = mask_type(self.num_classes)
        if self.folders is None:
            plain = kind == np.uint8
            return [*entries] if plain else [MarkedEntry(one, kind) for one in entries]
        ids = {name: class_id for class_id, name in enumerate(self.folders, 1)}
        of_image: dict[str, dict[str, int]] = defaultdict(dict)
        for image, mask in entries:
            name = os.path.basename(os.path.dirname(mask))
            if name in ids:
                of_image[image][mask] = ids[name]
            else:
                problems.append(f"mask {mask} is in no folder of a class; see class_names")
        return [
            MarkedEntry(one, kind, masks.pop(one[1]), masks.items())
            for one in entries
            if one[1] in (masks := {**of_image[one[0]]})
        ]


@dataclass(frozen=True)
class Rules:
    """Which classes count in an image, and which images training takes.

    Attributes:
        min_pixels: A class counts in an image if it covers at least so many pixels of its mask.
        mixed_images: "drop" leaves out training images that also show a held-out class.
        min_cells: A class counts in an image if it also covers so many cells of the network's grid.
    """

    min_pixels: int = 2048
    mixed_images: str = "drop"
    min_cells: int = 0


@dataclass(frozen=True)
class ImageLists:
    """The images of one part ("train", "val" or "test") of a fold.

    Attributes:
        entries: Image and mask relative to the data root, in the order of the list file.
        present: For each entry the part's classes in it, of whatever size, ascending.
        class_files: For each class the indices into `entries` of the images that it covers enough
            of, in list order.
    """

    entries: list[Entry]
    present: list[tuple[int, ...]]
    class_files: dict[int, list[int]]


def load_lists(
    data_root: str,
    list_file: str,
    fold: Fold,
    part: str,
    cache_dir: str,
    rules: Rules = Rules(),
    grid: Grid | None = None,
    form: MaskForm = MaskForm(),
) -> ImageLists:
    """Return the lists of one part of a fold from a list file.

    "train" takes the images in which at least one base class counts and, where `rules` drop others,
    all classes are base classes; "val" and "test" take the images with a class of theirs that
    counts, whatever base classes they show.

    Args:
        data_root: The folder that the list's paths are relative to.
        list_file: The list file.
        fold: The fold.
        part: "train", "val" or "test".
        cache_dir: The folder in which the scan of the masks is cached.
        rules: Which classes count, and which images are taken.
        grid: The network's grid; needed where the rules ask for cells.
        form: How the masks hold the classes.

    Raises:
        UserError: The list, an image or a mask is missing or wrong, or no image is left.
    """
    entries = read_entries(data_root, list_file, form)
    counts = counting_sizes(
        data_root, list_file, entries, cache_dir, min_cells=rules.min_cells, grid=grid
    )
    check_classes(counts, list_file)
    lists = filter_entries(entries, counts, fold, part, rules, data_root)
    check_any(lists, fold, part, rules, list_file)
    return lists


def counting_sizes(
    data_root: str,
    list_file: str,
    entries: Sequence[Entry],
    cache_dir: str,
    workers: int | None = None,
    min_cells: int = 0,
    grid: Grid | None = None,
    known: Mapping[str, Counts] | None = None,
) -> list[Counts]:
    """Return `load_counts`, with 0 pixels of a class in an image where its cells are too few.

    The arguments are those of `load_counts` and `load_lists`.
    """
    place = (data_root, list_file, entries, cache_dir, workers)
    counts = load_counts(*place, known=known)
    if not min_cells:
        return counts
    return [
        {c: n if cells.get(c, 0) >= min_cells else 0 for c, n in pixels.items()}
        for pixels, cells in zip(counts, load_counts(*place, grid), strict=True)
    ]


def check_classes(counts: Iterable[Counts], list_file: str) -> None:
    """Raise a UserError if no mask of a list holds a class."""
    if not any(counts):
        raise UserError(
            f"no mask of {list_file} holds a class, only 0 (background) and 255 (ignored): if they are "
            "black and white, python -m util.prepare_custom makes class ids of them"
        )


def check_any(lists: ImageLists, fold: Fold, part: str, rules: Rules, list_file: str) -> None:
    """Raise a UserError if `rules` have left no image of `part` in `lists`."""
    if not lists.entries:
        classes = ", ".join(map(str, fold.classes(part)))
        dropped = part == "train" and rules.mixed_images == "drop" and fold.held_out
        cells = f" on {rules.min_cells} cells" if rules.min_cells else ""
        raise UserError(
            f"no image of {list_file} can be used: none has {rules.min_pixels} pixels or "
            f"more{cells} of a class of this fold's {part} part "
            f"(classes {classes})"
            + (" and no held-out class; mixed_images background takes those too" if dropped else "")
        )


def filter_entries(
    entries: Sequence[Entry],
    counts: Sequence[Counts],
    fold: Fold,
    part: str,
    rules: Rules,
    data_root: str = "",
) -> ImageLists:
    """Return the lists that `rules` give for all entries of a list file.

    `counts` are the `counting_sizes` of the mask of each entry, background and ignore left out. The
    other arguments are those of `load_lists`; `data_root` is for messages only.

    Raises:
        UserError: A mask holds a value that is no class of the dataset.
    """
    lists = ImageLists([], [], {class_id: [] for class_id in fold.classes(part)})
    wanted = lists.class_files.keys()
    shown: dict[str, set[int]] = defaultdict(set)
    for (image, _), pixels in zip(entries, counts, strict=True):
        shown[image].update(pixels)
    for entry, pixels in zip(entries, counts, strict=True):
        if pixels and max(pixels) > fold.num_classes:
            path = os.path.join(data_root, entry[1])
            raise unknown_class(path, max(pixels), fold.num_classes)
        present = tuple(class_id for class_id in sorted(pixels) if class_id in wanted)
        counting = [
            class_id for class_id in present if pixels[class_id] >= max(1, rules.min_pixels)
        ]
        mixed = part == "train" and not shown[entry[0]] <= wanted
        if (mixed and rules.mixed_images == "drop") or not counting:
            continue
        for class_id in counting:
            lists.class_files[class_id].append(len(lists.entries))
        lists.entries.append(entry)
        lists.present.append(present)
    return lists


def check_enough(
    lists: ImageLists, shot: int, class_names: Sequence[str] | None = None, where: str = "lists"
) -> None:
    """Raise a UserError with the first message of `shortages`, if there is one."""
    for shortage in shortages(lists, shot, class_names, where):
        raise UserError(shortage)


def shortages(
    lists: ImageLists, shot: int, class_names: Sequence[str] | None = None, where: str = "lists"
) -> Iterator[str]:
    """Yield a message for each class of which an episode may not find `shot` supports.

    A class that is in any image needs shot + 1 different files that it covers enough of: the
    supports, and the query, which is never its own support. `class_names` are those of the classes
    1, 2, …, and `where` is what the messages call the lists.
    """
    candidates = Counter(class_id for present in lists.present for class_id in present)
    for class_id in sorted(candidates):
        files = {lists.entries[i] for i in lists.class_files.get(class_id, [])}
        if len(files) < shot + 1:
            name = f" ({class_names[class_id - 1]})" if class_names else ""
            usable = f"{len(files)} usable {'image' if len(files) == 1 else 'images'}"
            yield (
                f"class {class_id}{name} has {usable} in {where} but shot {shot} needs at least "
                f"{shot + 1}; it is in {candidates[class_id]} of the images that queries come from: "
                "add images of it, lower min_pixels, min_cells or the shot"
            )


def existing_entries(data_root: str, list_file: str, form: MaskForm = MaskForm()) -> list[Entry]:
    """Read a list file like `read_entries` and raise a UserError if a file in it does not exist."""
    entries = read_entries(data_root, list_file, form)
    file_stamps(data_root, list_file, entries)
    return entries


def read_entries(data_root: str, list_file: str, form: MaskForm = MaskForm()) -> list[Entry]:
    """Read all entries of a list file, in order; UserError for the first problem."""
    entries, problems = parse_entries(data_root, list_file, form)
    for problem in problems:
        raise UserError(problem)
    return entries


def parse_entries(
    data_root: str, list_file: str, form: MaskForm = MaskForm()
) -> tuple[list[Entry], list[str]]:
    """Read the entries of a list file and collect the problems of lines that are no pair.

    Image and mask are separated by a tab or a blank. A line without a tab and with several blanks
    is divided at the one blank where both halves name existing files. Empty lines and comments are
    skipped; a comment begins with #, unless this begins the name of an existing file.

    Raises:
        UserError: The list file or the root is missing, or the list is empty.
    """
    if not os.path.isdir(data_root):
        raise UserError(f"data_root {data_root} is not a folder")
    lines = [line.strip() for line in read_text(list_file).split("\n")]
    if not any(lines):
        raise UserError(f"list file {list_file} is empty")
    entries: list[Entry] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line or is_comment(line, lambda name: os.path.isfile(os.path.join(data_root, name))):
            continue
        separator = "\t" if "\t" in line else " "
        cuts = [i for i, character in enumerate(line) if character == separator]
        pairs = list(dict.fromkeys((line[:i].strip(), line[i:].strip()) for i in cuts))
        reason = ""
        if len(pairs) > 1:
            pairs = [
                pair
                for pair in pairs
                if all(os.path.isfile(os.path.join(data_root, name)) for name in pair)
            ]
            reason = (
                f" it divides at {'several blanks' if pairs else 'no blank'} into two files that "
                f"exist under {data_root}; put a tab between the two:"
            )
        if len(pairs) == 1:
            entries += pairs
        else:
            problems.append(f'{list_file} line {number} is not "IMAGE MASK":{reason} {line!r}')
    return form.read(entries, problems), problems
