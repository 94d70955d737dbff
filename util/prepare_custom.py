"""Your own data: python -m util.prepare_custom --name NAME --images DIR --masks DIR --out DIR

Takes a folder of images and one of masks: index masks, DIR/IMAGE.png (0 background, 1..N classes,
255 ignored), or binary ones, DIR/CLASS/IMAGE.png (0 and one other value). Checks all of them, makes
the data root OUT with images (links, or copies) and index_masks, the lists train.txt and val.txt,
and the configuration, so that `sh train.sh split0 NAME 1` trains. Interrupted, the same command
goes on where it was; when data were added it takes them in.
"""

import os
from argparse import ArgumentTypeError
from functools import partial
from pathlib import Path

from util.config import Parser
from util.config.fields import DataFields
from util.data.folds import MAX_CLASSES, SEEN
from util.data.images import unknown_class
from util.data.list_cache import load_counts
from util.preparation.custom_config import check_name, divide, path_in_config, write_config
from util.preparation.custom_masks import place_pair
from util.preparation.custom_pairs import IMAGE_FOLDER, MASK_FOLDER, find_pairs
from util.preparation.custom_report import class_lines, fold_lines
from util.preparation.custom_split import PARTS, read_text, split
from util.preparation.masks import pair_summary
from util.preparation.shared import (
    add_shared_options,
    check_names,
    next_commands,
    open_folder,
    require_folder,
    resumable,
    run_parallel,
    write_list,
)
from util.runtime.errors import UserError
from util.runtime.files import write_atomically

VAL_SHARE = 0.2
LISTS = "lists/NAME"
MIN_PIXELS, LIST_DIR = (DataFields.model_fields[key].default for key in ("min_pixels", "list_dir"))


def read_class_names(text):
    """The class names of --class_names: a file with one a line, or names parted by commas.

    Raises UserError for names that are empty, double or too many.
    """
    if os.path.isfile(text):
        names = [line for line in read_text(text).splitlines() if line.strip()]
    elif "," not in text and (text.endswith(".txt") or os.sep in text):
        raise UserError(f"--class_names {text}: there is no such file")
    else:
        names = text.split(",")
    names = [name.strip() for name in names]
    if not names or "" in names:
        raise UserError(f"--class_names {text}: a name is empty")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--class_names {text}: the name {name} is there twice")
    if len(names) > MAX_CLASSES:
        raise UserError(f"--class_names {text}: {len(names)} classes; up to {MAX_CLASSES} can be")
    return names


def prepare_custom(
    name,
    images,
    masks,
    out,
    lists,
    class_names=None,
    val=None,
    val_share=VAL_SHARE,
    seed=0,
    folds=None,
    min_pixels=MIN_PIXELS,
    copy=False,
    workers=None,
):
    """Make the data root `out`, the lists in the folder `lists` and the configuration.

    class_names: list of names or None; val: file of the images to test on, else a share of
    `val_share` is drawn; folds: number of folds, SEEN or None (`util.preparation.custom_config.divide`).
    Returns lines that sum it up. Raises UserError for anything missing or wrong.
    """
    check_name(name)
    require_folder(images, "give the folder of the images as --images")
    require_folder(masks, "give the folder of the masks as --masks")
    _require_apart(images, masks, out)
    pairs, class_names = find_pairs(images, masks, class_names)
    _require_text([out, lists, *(class_names or [])])
    check_names(pair.entry for pair in pairs)
    if class_names:
        divide(len(class_names), folds)
    parts = split(pairs, val, val_share, seed)
    for folder in (out, *(os.path.join(out, folder) for folder in (IMAGE_FOLDER, MASK_FOLDER))):
        open_folder(folder, "--out")
    if os.path.samefile(os.path.join(out, MASK_FOLDER), masks):
        raise UserError(f"--out {out}: its {MASK_FOLDER} are your masks; give another folder")
    open_folder(lists, "--lists")

    lines = pair_summary(_place(pairs, out, copy, workers, name))
    list_files = {part: os.path.join(lists, f"{part}.txt") for part in PARTS}
    entries = {part: [pair.entry for pair in parts[part]] for part in PARTS}
    counts = {}
    for part, path in list_files.items():
        kept = write_list(path, entries[part])
        lines.append(f"{path}: {len(entries[part]):,}" + f"; before: {path}.bak" * kept)
        counts[part] = load_counts(out, path, entries[part], LIST_DIR, workers)
    num_classes = _num_classes(parts, counts, class_names)
    data = {
        "data_root": path_in_config(out),
        **{f"{part}_list": path_in_config(path) for part, path in list_files.items()},
        "num_classes": num_classes,
        **({"class_names": class_names} if class_names else {}),
        **divide(num_classes, folds),
        "min_pixels": min_pixels,
    }
    write_config(name, data)
    return [
        *lines,
        *class_lines(data, counts),
        *fold_lines(data, entries, counts, list_files),
    ]


def _require_apart(images, masks, out):
    for option, folder, other_option, other in (
        ("--images", images, "--masks", masks),
        ("--out", out, "--masks", masks),
        ("--out", out, "--images", images),
    ):
        if Path(folder).resolve().is_relative_to(Path(other).resolve()):
            raise UserError(f"{option} {folder} lies in {other_option} {other}: part them")


def _place(pairs, out, copy, workers, name):
    results = run_parallel(partial(place_pair, out, copy), pairs, workers, name)
    path = os.path.join(out, "problems.txt")
    Path(path).unlink(missing_ok=True)
    problems = [result for result in results if isinstance(result, str)]
    if problems:
        text = "".join(f"{problem}\n" for problem in problems)
        write_atomically(path, text.encode(errors="surrogateescape"))
        more = f" ({len(problems)} problems; all: {path})" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    return results


def _num_classes(parts, counts, class_names):
    """Number of classes: of names if there are, else of values in the masks, which are 1, 2, …."""
    found = [
        (max(pixels), pair)
        for part in PARTS
        for pair, pixels in zip(parts[part], counts[part], strict=True)
        if pixels
    ]
    if not found:
        raise UserError(
            "no mask holds a class: index masks hold 0 background, 1, 2, … classes, 255 ignored; "
            "binary masks (0 and 255) go into a folder of their class, CLASS/IMAGE.png"
        )
    highest, pair = max(found, key=lambda item: item[0])
    if class_names is None:
        present = {class_id for part in PARTS for pixels in counts[part] for class_id in pixels}
        absent = min(set(range(1, highest + 1)) - present, default=None)
        if absent is not None:
            raise UserError(
                f"mask {pair.mask} holds the value {highest}, but none holds {absent}: values are "
                "class ids 1, 2, …; if some classes have no image yet, name all by --class_names"
            )
        return highest
    if highest > len(class_names):
        raise unknown_class(pair.mask, highest, len(class_names))
    return len(class_names)


def _require_text(words):
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"{word!r} is no text in UTF-8: rename it") from None


def _folds(text):
    if text != SEEN and not text.isdecimal():
        raise ArgumentTypeError(f"{text} is neither a number nor {SEEN}")
    return text if text == SEEN else int(text)


def _share(text):
    try:
        share = float(text)
    except ValueError:
        share = 0
    if not 0 < share < 1:
        raise ArgumentTypeError(f"{text} does not lie between 0 and 1")
    return share


def _pixels(text):
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text} is no number of pixels")
    return int(text)


@resumable
def main(arguments=None):
    parser = Parser(description="Prepare your own images and masks for training.")
    parser.add_argument("--name", required=True, help="what to call the dataset")
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument(
        "--masks", required=True, help="folder of index masks IMAGE.png, or CLASS/IMAGE.png"
    )
    parser.add_argument("--class_names", help="a,b,c or a file, one a line: classes 1, 2, 3, …")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--val", metavar="FILE", help="names of the images to test on, one a line")
    choice.add_argument(
        "--val_share", type=_share, default=VAL_SHARE, help="else, of all images (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of that choice (%(default)s)")
    parser.add_argument(
        "--folds",
        type=_folds,
        help=f"number, or {SEEN}: hold no class out (default: 4 from eight classes on, else 2; "
        f"{SEEN} for one)",
    )
    parser.add_argument(
        "--min_pixels",
        type=_pixels,
        default=MIN_PIXELS,
        help="from this area on a class counts in an image (%(default)s)",
    )
    add_shared_options(parser, LISTS)
    options = vars(parser.parse_args(arguments))
    if options["lists"] == LISTS:
        options["lists"] = f"lists/{options['name']}"
    if options["class_names"]:
        options["class_names"] = read_class_names(options["class_names"])
    print(*prepare_custom(**options), sep="\n")
    name = options["name"]
    print(*next_commands(name, options["out"], options["lists"]), sep="\n")


if __name__ == "__main__":
    main()
