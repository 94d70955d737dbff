"""Image lists of a fold: which images episodes are drawn from, and the files of each class.

A list file holds "IMAGE MASK" per line, both relative to the dataset's root. All its masks are
scanned once for their pixels per class (`util.data.list_cache`); the lists of every fold follow from
these counts by the rules of PFENet and BAM.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from util.data.folds import Fold
from util.data.images import Entry, unknown_class
from util.data.list_cache import Counts, file_stamps, load_counts
from util.runtime.errors import UserError
from util.runtime.texts import is_comment, read_text


@dataclass(frozen=True)
class ImageLists:
    """The images of one part ("train" or "val") of a fold.

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
    min_pixels: int = 2048,
    workers: int | None = None,
    progress: bool = True,
) -> ImageLists:
    """Return the lists of one part of a fold from a list file.

    "train" takes the images whose classes are all base classes and of which at least one counts;
    "val" takes the images with a held-out class that counts, whatever base classes they show.

    Args:
        data_root: The folder that the list's paths are relative to.
        list_file: The list file.
        fold: The fold.
        part: "train" or "val".
        cache_dir: The folder in which the scan of the masks is cached.
        min_pixels: A class counts in an image if it covers at least so many pixels of its mask.
        workers: Threads of the scan; None is all cores.
        progress: Whether to show a progress bar.

    Raises:
        UserError: The list, an image or a mask is missing or wrong, or no image is left.
    """
    entries = read_entries(data_root, list_file)
    counts = load_counts(data_root, list_file, entries, cache_dir, workers, progress)
    check_classes(counts, list_file)
    lists = filter_entries(entries, counts, fold, part, min_pixels, data_root)
    check_any(lists, fold, part, min_pixels, list_file)
    return lists


def check_classes(counts: Iterable[Counts], list_file: str) -> None:
    """Raise a UserError if no mask of a list holds a class."""
    if not any(counts):
        raise UserError(
            f"no mask of {list_file} holds a class, only 0 (background) and 255 (ignored): if they are "
            "black and white, python -m util.prepare_custom makes class ids of them"
        )


def check_any(lists: ImageLists, fold: Fold, part: str, min_pixels: int, list_file: str) -> None:
    """Raise a UserError if the rules of `load_lists` leave no image of `part` in `lists`."""
    if not lists.entries:
        classes = ", ".join(map(str, fold.classes(part)))
        raise UserError(
            f"no image of {list_file} can be used: none has {min_pixels} pixels or more of "
            f"a class of this fold's {part} part (classes {classes})"
            + (" and no held-out class" if part == "train" and fold.base != fold.novel else "")
        )


def filter_entries(
    entries: Iterable[Entry],
    counts: Iterable[Counts],
    fold: Fold,
    part: str,
    min_pixels: int,
    data_root: str = "",
) -> ImageLists:
    """Return the lists that the rules of `load_lists` give for all entries of a list file.

    `counts` are the pixels per class of the mask of each entry, background and ignore left out. The
    other arguments are those of `load_lists`; `data_root` is for messages only.

    Raises:
        UserError: A mask holds a value that is no class of the dataset.
    """
    wanted = fold.classes(part)
    lists = ImageLists([], [], {class_id: [] for class_id in wanted})
    for entry, pixels in zip(entries, counts, strict=True):
        if pixels and max(pixels) > fold.num_classes:
            path = os.path.join(data_root, entry[1])
            raise unknown_class(path, max(pixels), fold.num_classes)
        present = tuple(class_id for class_id in sorted(pixels) if class_id in wanted)
        counting = [class_id for class_id in present if pixels[class_id] >= min_pixels]
        mixed = part == "train" and len(present) < len(pixels)
        if mixed or not counting:
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
            images = "image" if len(files) == 1 else "images"
            yield (
                f"class {class_id}{name} has {len(files)} usable {images} in {where} but shot "
                f"{shot} needs at least {shot + 1}; it is in {candidates[class_id]} query images: "
                "add images of it, lower min_pixels or the shot"
            )


def existing_entries(data_root: str, list_file: str) -> list[Entry]:
    """Read a list file like `read_entries` and raise a UserError if a file in it does not exist."""
    entries = read_entries(data_root, list_file)
    file_stamps(data_root, list_file, entries)
    return entries


def read_entries(data_root: str, list_file: str) -> list[Entry]:
    """Read all entries of a list file, in order; UserError for the first problem."""
    entries, problems = parse_entries(data_root, list_file)
    for problem in problems:
        raise UserError(problem)
    return entries


def parse_entries(data_root: str, list_file: str) -> tuple[list[Entry], list[str]]:
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
    return entries, problems
