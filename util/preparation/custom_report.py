"""What the user's own dataset contains: the images of each class, and what each fold can do."""

from collections.abc import Mapping, Sequence
from typing import Any

from util.data.folds import LIST_PARTS, SEEN, Fold, count_folds, fold_classes
from util.data.images import Entry
from util.data.list_cache import Counts
from util.data.lists import ImageLists, Rules, check_any, filter_entries, shortages
from util.runtime.errors import UserError
from util.runtime.tables import markdown_table

SHOTS = (1, 5)
# Where the published rule leaves a smaller share of the training images of a fold, it is not taken.
ENOUGH = 0.25

Data = Mapping[str, Any]  # the settings of the section Data


def choose_mixed_images(
    data: Data, entries: Sequence[Entry], counts: Sequence[Counts]
) -> tuple[str, str]:
    """Return the better value of `mixed_images` for a train list, and why.

    It is the published "drop", unless that leaves too few images in a fold: less than the share
    ENOUGH of them, or a class with too few for an episode where "background" has enough.
    """
    left, kept, enough = [], [], True
    for fold in _folds(data):
        drop, background = (
            filter_entries(entries, counts, fold, "train", Rules(data["min_pixels"], rule))
            for rule in ("drop", "background")
        )
        left.append(len(drop.entries))
        kept.append(len(background.entries))
        enough &= left[-1] >= ENOUGH * kept[-1]
        enough &= not any(shortages(drop, 1)) or any(shortages(background, 1))
    reason = (
        f"drop leaves {', '.join(map(str, left))} training images in the folds, "
        f"background {', '.join(map(str, kept))}"
    )
    return "drop" if enough else "background", reason


def report_lines(
    data: Data,
    entries: Mapping[str, Sequence[Entry]],
    counts: Mapping[str, Sequence[Counts]],
    list_files: Mapping[str, str],
) -> list[str]:
    """Return a table of the images of each class, a line per fold, and warnings.

    Args:
        data: The settings of the dataset.
        entries: Part → the entries of its list.
        counts: Part → pixels per class of each image.
        list_files: Part → the path of its list.
    """
    classes = range(1, data["num_classes"] + 1)
    smallest = max(1, data["min_pixels"])
    enough = {
        part: [sum(pixels.get(key, 0) >= smallest for pixels in counts[part]) for key in classes]
        for part in LIST_PARTS
    }
    rows = [
        [str(key), _name(data, key), *(str(enough[part][key - 1]) for part in LIST_PARTS)]
        for key in classes
    ]
    cells = f" on {data['min_cells']} cells or more" if data.get("min_cells") else ""
    title = f"images with {data['min_pixels']:,} pixels or more of a class{cells}:"
    lines = ["", title, "", markdown_table(["", "class", *LIST_PARTS], rows, left=(1,))]
    for part in LIST_PARTS:
        without = [_name(data, key) for key in classes if not enough[part][key - 1]]
        if without:
            lines.append(f"warning: no image of {part} has so much of {', '.join(without)}")
    warned = False
    rules = Rules(data["min_pixels"], data.get("mixed_images", "drop"), data.get("min_cells", 0))
    for split, fold in enumerate(_folds(data)):
        images, warnings = {}, []
        for part in LIST_PARTS:
            found = filter_entries(entries[part], counts[part], fold, part, rules)
            images[part] = len(found.entries)
            warnings += _problems(data, found, fold, part, rules, list_files[part])
        names = ", ".join(_name(data, class_id) for class_id in fold.novel)
        holds = f"{names} out" if fold.held_out else "no class out"
        lines.append(
            f"fold {split} holds {holds}; images to train: {images['train']:,}, to test: "
            f"{images['val']:,}"
        )
        lines += [f"warning: fold {split}: {warning}" for warning in warnings]
        warned |= bool(warnings)
    if warned:
        lines.append("another --val_share or --seed, or --val FILE, divides the images otherwise")
    return lines


def _problems(
    data: Data, found: ImageLists, fold: Fold, part: str, rules: Rules, list_file: str
) -> list[str]:
    """Return what the episodes of a part lack at the smaller of SHOTS for which images are missing."""
    try:
        check_any(found, fold, part, rules, list_file)
    except UserError as error:
        return [f"{error}; lower --min_pixels or give other --folds ({SEEN} holds no class out)"]
    lacking = (list(shortages(found, shot, data.get("class_names"), list_file)) for shot in SHOTS)
    return next(filter(None, lacking), [])


def _folds(data: Data) -> list[Fold]:
    folds, number = data["folds"], data.get("num_folds", 1)
    splits = range(count_folds(folds, number))
    return [fold_classes(data["num_classes"], folds, split, number) for split in splits]


def _name(data: Data, class_id: int) -> str:
    names = data.get("class_names")
    return names[class_id - 1] if names else f"class {class_id}"
