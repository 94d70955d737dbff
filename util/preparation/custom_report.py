"""What the user's own dataset contains: the images of each class, and what each fold can do."""

from collections.abc import Mapping, Sequence
from typing import Any

from util.data.folds import SEEN, Fold, count_folds, fold_classes
from util.data.images import Entry
from util.data.list_cache import Counts
from util.data.lists import ImageLists, check_any, filter_entries, shortages
from util.preparation.custom_pairs import PARTS
from util.runtime.errors import UserError
from util.runtime.tables import markdown_table

SHOTS = (1, 5)

Data = Mapping[str, Any]  # the settings of the section Data


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
        for part in PARTS
    }
    rows = [
        [str(key), _name(data, key), *(str(enough[part][key - 1]) for part in PARTS)]
        for key in classes
    ]
    title = f"images with {data['min_pixels']:,} pixels or more of a class:"
    lines = ["", title, "", markdown_table(["", "class", *PARTS], rows, left=(1,))]
    for part in PARTS:
        without = [_name(data, key) for key in classes if not enough[part][key - 1]]
        if without:
            lines.append(f"warning: no image of {part} has so much of {', '.join(without)}")
    warned = False
    folds, num_folds = data["folds"], data.get("num_folds", 1)
    for split in range(count_folds(folds, num_folds)):
        fold = fold_classes(data["num_classes"], folds, split, num_folds)
        images, warnings = {}, []
        for part in PARTS:
            found = filter_entries(entries[part], counts[part], fold, part, data["min_pixels"])
            images[part] = len(found.entries)
            warnings += _problems(data, found, fold, part, list_files[part])
        names = ", ".join(_name(data, class_id) for class_id in fold.novel)
        holds = "no class out" if folds == SEEN else f"{names} out"
        lines.append(
            f"fold {split} holds {holds}: {images['train']:,} images to train, {images['val']:,} "
            "to test"
        )
        lines += [f"warning: fold {split}: {warning}" for warning in warnings]
        warned |= bool(warnings)
    if warned:
        lines.append("another --val_share or --seed, or --val FILE, divides the images otherwise")
    return lines


def _problems(data: Data, found: ImageLists, fold: Fold, part: str, list_file: str) -> list[str]:
    """Return what the episodes of a part lack at the smaller of SHOTS for which images are missing."""
    try:
        check_any(found, fold, part, data["min_pixels"], list_file)
    except UserError as error:
        return [f"{error}; lower --min_pixels or give other --folds ({SEEN} holds no class out)"]
    lacking = (list(shortages(found, shot, data.get("class_names"), list_file)) for shot in SHOTS)
    return next(filter(None, lacking), [])


def _name(data: Data, class_id: int) -> str:
    names = data.get("class_names")
    return names[class_id - 1] if names else f"class {class_id}"
