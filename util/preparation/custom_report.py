"""What a prepared dataset of the user's own gives: images of each class, and what each fold can do."""

from util.data.folds import SEEN, count_folds, fold_classes
from util.data.lists import check_any, filter_entries, shortages
from util.preparation.custom_split import PARTS
from util.runtime.errors import UserError
from util.runtime.tables import markdown_table

SHOTS = (1, 5)


def class_lines(data, counts):
    """A table of the classes, of how many images hold enough of each, and warnings for none.

    data: settings of the section Data; counts: part → pixels per class, a dict an image.
    """
    classes = range(1, data["num_classes"] + 1)
    enough = {
        part: {
            class_id: sum(
                pixels.get(class_id, 0) >= max(1, data["min_pixels"]) for pixels in counts[part]
            )
            for class_id in classes
        }
        for part in PARTS
    }
    rows = [
        [str(class_id), _name(data, class_id), *(str(enough[part][class_id]) for part in PARTS)]
        for class_id in classes
    ]
    title = f"images with {data['min_pixels']:,} pixels or more of a class:"
    lines = ["", title, "", markdown_table(["", "class", *PARTS], rows, left=(1,))]
    for part in PARTS:
        without = [_name(data, class_id) for class_id in classes if not enough[part][class_id]]
        if without:
            lines.append(f"warning: no image of {part} has so much of {', '.join(without)}")
    return lines


def fold_lines(data, entries, counts, list_files):
    """A line per fold, and warnings where it cannot be trained or tested at one or five shots.

    entries: part → (image, mask) of its list; list_files: part → that list's path; data and counts
    as of `class_lines`. A last line says how else to divide the images if there are warnings.
    """
    lines, warned = [], False
    for split in range(count_folds(data["folds"], data.get("num_folds"))):
        fold = fold_classes(data["num_classes"], data["folds"], split, data.get("num_folds"))
        images, warnings = {}, []
        for part in PARTS:
            found = filter_entries(entries[part], counts[part], fold, part, data["min_pixels"])
            images[part] = len(found.entries)
            warnings += _problems(data, found, fold, part, list_files[part])
        names = ", ".join(_name(data, class_id) for class_id in fold.novel)
        holds = "no class out" if data["folds"] == SEEN else f"{names} out"
        lines.append(
            f"fold {split} holds {holds}: {images['train']:,} images to train, {images['val']:,} "
            "to test"
        )
        lines += [f"warning: fold {split}: {warning}" for warning in warnings]
        warned |= bool(warnings)
    if warned:
        lines.append("another --val_share or --seed, or --val FILE, divides the images otherwise")
    return lines


def _problems(data, found, fold, part, list_file):
    """What episodes of the ImageLists `found` lack, a line each, of the fewest shots that fail."""
    try:
        check_any(found, fold, part, data["min_pixels"], list_file)
    except UserError as error:
        return [f"{error}; lower --min_pixels or give other --folds ({SEEN} holds no class out)"]
    lacking = (list(shortages(found, shot, data.get("class_names"), list_file)) for shot in SHOTS)
    return next(filter(None, lacking), [])


def _name(data, class_id):
    names = data.get("class_names")
    return names[class_id - 1] if names else f"class {class_id}"
