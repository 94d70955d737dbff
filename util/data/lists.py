"""Image lists of a fold: which images episodes are drawn from, and the files of each class.

A list file holds "IMAGE MASK" per line, both relative to the dataset's root. All its masks are
scanned once for their pixels per class (`util.data.list_cache`); the lists of every fold follow from
that by the rules of PFENet and BAM.
"""

import os
from collections import Counter
from dataclasses import dataclass

from util.data.dataset import unknown_class
from util.data.list_cache import file_stamps, load_counts
from util.runtime.errors import UserError


@dataclass(frozen=True)
class ImageLists:
    """Images of one part ("train" or "val") of a fold.

    entries: (image, mask) relative to the data root, in the order of the list file; present: per
    entry the part's classes in it, whatever their size, ascending; class_files: class → indices
    into entries of the images that it covers enough of, in list order.
    """

    entries: list[tuple[str, str]]
    present: list[tuple[int, ...]]
    class_files: dict[int, list[int]]


def load_lists(
    data_root, list_file, fold, part, cache_dir, min_pixels=2048, workers=None, progress=True
):
    """The ImageLists of `part` ("train" or "val") of `fold` from a list file.

    A class counts in an image if it covers at least `min_pixels` of its mask. "train": images
    whose classes are all base classes, at least one counting. "val": images with a counting
    held-out class; base classes may be there too. The scan of the masks is cached in
    `cache_dir`, in `workers` threads (default: all cores).
    Raises UserError for a list, image or mask that is missing or wrong, or if no image is left.
    """
    entries = read_entries(data_root, list_file)
    counts = load_counts(data_root, list_file, entries, cache_dir, workers, progress)
    lists = filter_entries(entries, counts, fold, part, min_pixels, data_root)
    check_any(lists, fold, part, min_pixels, where=list_file)
    return lists


def check_any(lists, fold, part, min_pixels, where="lists"):
    """Raise UserError if the rules of `load_lists` leave no image of `part` in `lists`."""
    if not lists.entries:
        raise UserError(
            f"no image of {where} can be used: none has {min_pixels} pixels or more of "
            f"a class of this fold's {part} part (classes {_span(fold.classes(part))})"
            + (" and no held-out class" if part == "train" and fold.base != fold.novel else "")
        )


def filter_entries(entries, counts, fold, part, min_pixels, data_root=""):
    """The ImageLists that the filter rules make of all `entries` and their pixel counts.

    counts: per entry a dict class id → pixels in its mask, background and ignore left out.
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


def check_enough(lists, shot, class_names=None, where="lists"):
    """Raise UserError unless every episode that can be drawn finds `shot` supports.

    A class that is in any image needs shot + 1 different files that it covers enough of: the
    supports, and the query, which never supports itself. class_names: names of classes 1, 2, ….
    """
    for shortage in shortages(lists, shot, class_names, where):
        raise UserError(shortage)


def shortages(lists, shot, class_names=None, where="lists"):
    """What `check_enough` has to say of each class that has too few images, one line each."""
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


def existing_entries(data_root, list_file):
    """`read_entries`, every file of which exists; UserError naming the first that does not."""
    entries = read_entries(data_root, list_file)
    file_stamps(data_root, list_file, entries)
    return entries


def read_entries(data_root, list_file):
    """All (image, mask) of a list file, relative to data_root, in order.

    A tab between the two names settles where the first ends. Without one, a line with several
    blanks is cut at the one blank where both halves name existing files. Blank lines are skipped.
    Raises UserError for a missing list file or root, and for a line that is no pair.
    """
    entries, problems = parse_entries(data_root, list_file)
    for problem in problems:
        raise UserError(problem)
    return entries


def parse_entries(data_root, list_file):
    """As `read_entries`, but of the lines that are pairs, and what is wrong with each other line.

    Raises UserError for a missing list file or root, and for a list without a line.
    """
    if not os.path.isdir(data_root):
        raise UserError(f"data_root {data_root} is not a folder")
    try:
        # surrogateescape: a file name may be any bytes
        with open(list_file, encoding="utf-8-sig", errors="surrogateescape") as handle:
            lines = handle.read().split("\n")
    except OSError as error:
        raise UserError(f"cannot read list file {list_file}: {error.strerror}") from error
    entries, problems = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                entries.append(_split_line(line.strip(), data_root, f"{list_file} line {number}"))
            except UserError as error:
                problems.append(str(error))
    if not entries and not problems:
        raise UserError(f"list file {list_file} is empty")
    return entries, problems


def _split_line(line, data_root, where):
    separator = "\t" if "\t" in line else " "
    cuts = [i for i, character in enumerate(line) if character == separator]
    pairs = list(dict.fromkeys((line[:i].strip(), line[i:].strip()) for i in cuts))
    if len(pairs) == 1:
        return pairs[0]
    if not pairs:
        raise UserError(f'{where} is not "IMAGE MASK": {line!r}')
    existing = [
        pair
        for pair in pairs
        if all(os.path.isfile(os.path.join(data_root, name)) for name in pair)
    ]
    if len(existing) == 1:
        return existing[0]
    problem = "at several blanks" if existing else "at no blank"
    raise UserError(
        f'{where} is not "IMAGE MASK": it divides {problem} into two files that exist under '
        f"{data_root}; put a tab between the two: {line!r}"
    )


def _span(classes):
    return ", ".join(map(str, classes))
