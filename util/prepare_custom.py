"""Your own data: python -m util.prepare_custom --name NAME --images DIR --masks DIR --out DIR

Takes a folder of images and one of masks: index masks, DIR/IMAGE.png (0 background, 1..N classes,
255 ignored), or black and white ones, DIR/CLASS/IMAGE.png. --masks may also be the export of a
labelling tool: COCO instances, files of labelme, YOLO segmentation labels, or CVAT's coloured masks
with labelmap.txt. docs/data.md lists all forms. Checks all of them, makes the data root OUT with
images (links, or copies) and index_masks, the lists train.txt and val.txt, and the configuration, so
that `sh train.sh split0 NAME 1` trains. After an interruption the same command continues; when
images were added, it includes them.
"""

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from util.config import Parser
from util.config.fields import DataFields, MixedImages, Name, TrainFields
from util.data.cells import Grid
from util.data.folds import LIST_PARTS, MAX_CLASSES, SEEN
from util.data.images import unknown_class
from util.data.list_cache import Counts
from util.data.lists import counting_sizes
from util.preparation.coco import CROWDS
from util.preparation.custom_config import (
    divide,
    own_settings,
    require_own_place,
    require_same_classes,
    write_config,
)
from util.preparation.custom_pairs import (
    IMAGE_FOLDER,
    IMAGE_TYPES,
    MASK_FOLDER,
    VAL_SHARE,
    Pair,
    find_pairs,
    one_class,
    place,
    split,
)
from util.preparation.custom_report import choose_mixed_images, report_lines
from util.preparation.exports import NO_CLASS, files_under
from util.preparation.forms import FORMS, MASKS, read_export, recognise
from util.preparation.masks import pair_summary, place_all
from util.preparation.shared import (
    DataRoot,
    add_shared_options,
    argument_type,
    check_names,
    require_folder,
    require_text,
    resumable,
)
from util.runtime.errors import UserError
from util.runtime.texts import read_text

MIN_PIXELS, LIST_DIR = (DataFields.model_fields[key].default for key in ("min_pixels", "list_dir"))
TRAIN_SIZE = TrainFields.model_fields["train_h"].default


def read_class_names(text: str) -> list[str]:
    """Return the class names of --class_names: a file with one per line, or names and commas.

    Raises:
        UserError: There is no such file, a name is empty or occurs twice, or there are too many.
    """
    if os.path.isfile(text):
        names = [line.strip() for line in read_text(text).splitlines() if line.strip()]
    else:
        names = [name.strip() for name in text.split(",")]
    problem = ""
    if names == [text] and (text.endswith(".txt") or os.sep in text):
        problem = "there is no such file"
    elif not names or "" in names:
        problem = "a name is empty"
    elif twice := [name for name in names if names.count(name) > 1]:
        problem = f"the name {twice[0]} occurs twice"
    elif len(names) > MAX_CLASSES:
        problem = f"{len(names)} classes; at most {MAX_CLASSES} fit"
    if problem:
        raise UserError(f"--class_names {text}: {problem}")
    return names


def _num_classes(
    pairs: Sequence[Pair], counts: Sequence[Counts], class_names: Sequence[str] | None
) -> int:
    """Return the number of classes: of the names if there are any, else of values in the masks.

    Raises:
        UserError: No mask holds a class, or the values are not 1, 2, ….
    """
    present: dict[int, Pair] = {}  # class id → the first pair that holds it
    for pair, pixels in zip(pairs, counts, strict=True):
        present = dict.fromkeys(pixels, pair) | present
    if not present:
        raise UserError(
            "no mask holds a class: index masks hold 0 background, 1, 2, … classes, 255 ignored; "
            "black and white masks belong in a folder of their class, CLASS/IMAGE.png"
        )
    highest = max(present)
    if class_names:
        if highest > len(class_names):
            raise unknown_class(str(present[highest].mask), highest, len(class_names))
        return len(class_names)
    absent = min(set(range(1, highest)) - set(present), default=None)
    if absent is not None:
        raise UserError(
            f"mask {present[highest].mask} holds the value {highest}, but none holds {absent}: "
            "values are class ids 1, 2, …; if some classes have no image yet, name all by "
            "--class_names"
        )
    return highest


def _grid(name: str) -> Grid:
    """Return the grid of the backbone and size that the user may have set for a dataset."""
    # Imported here, since it needs torch.
    from util.data.loaders import backbone_grid

    own = own_settings(name)
    return backbone_grid(own.get("backbone", "resnet50"), own.get("train_h", TRAIN_SIZE))


def _parser() -> Parser:
    parser = Parser(description="Prepare your own images and masks for training.")
    parser.add_argument(
        "--name", required=True, type=argument_type(Name), help="what to call the dataset"
    )
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument(
        "--masks",
        required=True,
        help="folder of index masks IMAGE.png, or of CLASS/IMAGE.png; or the export of a labelling "
        "tool: a COCO file, or a folder",
    )
    parser.add_argument(
        "--format",
        choices=FORMS,
        help="; ".join(f"{form}: {what}" for form, what in FORMS.items())
        + " (recognised by the content)",
    )
    parser.add_argument(
        "--crowd",
        choices=CROWDS,
        default=CROWDS[0],
        help="what COCO regions with iscrowd 1 become (%(default)s)",
    )
    parser.add_argument("--class_names", help="a,b,c or a file, one per line: classes 1, 2, 3, …")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--val", metavar="FILE", help="names of the images to test on, one a line")
    choice.add_argument(
        "--val_share",
        type=argument_type(Annotated[float, Field(gt=0, lt=1)]),
        help=f"without --val the share of the images that is drawn for testing ({VAL_SHARE}, unless "
        "folders train and valid, val or test divide them)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (%(default)s)")
    parser.add_argument(
        "--folds",
        type=argument_type(int | Literal[SEEN]),
        help=f"number, or {SEEN}: hold no class out (default: 4 from eight classes on, else 2; "
        f"{SEEN} for one)",
    )
    parser.add_argument(
        "--min_pixels",
        type=argument_type(NonNegativeInt),
        default=MIN_PIXELS,
        help="from this area on a class counts in an image (%(default)s)",
    )
    parser.add_argument(
        "--min_cells",
        type=argument_type(NonNegativeInt),
        default=0,
        help="and from so many cells of the network's grid on (%(default)s); the network is that of "
        f"config/NAME/NAME.yaml if there is one, else ResNet-50 at {TRAIN_SIZE} px",
    )
    parser.add_argument(
        "--mixed_images",
        type=argument_type(MixedImages),
        help="what to do with training images that also hold held-out classes: drop, background or "
        "ignore (default: drop, or background where drop leaves too few)",
    )
    add_shared_options(parser)
    return parser


@resumable
def main(arguments: list[str] | None = None) -> None:
    """Run the command line `arguments` (that of the process if None)."""
    options = _parser().parse_args(arguments)
    name, masks, out = options.name, options.masks, options.out
    class_names = read_class_names(options.class_names) if options.class_names else None
    require_own_place(name, out)
    require_folder(options.images, "give the folder of the images as --images")
    form = options.format or recognise(masks)
    if not options.format:
        print(f"--masks is read as {FORMS[form]}; --format chooses another form", flush=True)
    if form == MASKS:
        require_folder(masks, "give the folder of the masks as --masks")
    inside = [("images", "masks")] if form == MASKS else []  # Exports lie with their images.
    for inner, outer in (*inside, ("out", "masks"), ("out", "images")):
        folder, other = getattr(options, inner), getattr(options, outer)
        if Path(folder).resolve().is_relative_to(Path(other).resolve()):
            raise UserError(f"--{inner} {folder} lies in --{outer} {other}: separate them")
    if form == MASKS:
        if class_names and class_names[0].lower() in NO_CLASS:
            raise UserError(
                f"--class_names {options.class_names}: leave out {class_names[0]}, since the names are "
                "those of the values 1, 2, …"
            )
        pairs, class_names = find_pairs(options.images, masks, class_names)
        pairs, lines = one_class(pairs, options.workers)
        deeper = len(files_under(options.images, IMAGE_TYPES)) - len(pairs)
        lines += [f"images in folders of {options.images}, left out: {deeper:,}"] if deeper else []
    else:
        pairs, class_names, lines = read_export(
            form, options.images, masks, class_names, options.crowd
        )
    check_names(pair.entry for pair in pairs)
    require_same_classes(name, class_names or ())
    if class_names:
        require_text(*class_names)
        divide(len(class_names), options.folds)
    parts = split(pairs, options.val, options.val_share, options.seed)
    root = DataRoot.of(options, name)
    folders = {os.path.dirname(name) for pair in pairs for name in pair.entry}
    root.open("", IMAGE_FOLDER, MASK_FOLDER, *sorted(folders))
    if os.path.samefile(os.path.join(out, MASK_FOLDER), masks):
        raise UserError(f"--out {out}: its {MASK_FOLDER} are your masks; give another folder")

    done = place_all(partial(place, root), pairs, root, name)
    placed = [placed for placed, _ in done]
    found = Counter(note for _, notes in done for note in notes)
    lines += [*pair_summary(placed), *(f"{note}: {n:,}" for note, n in sorted(found.items()))]
    made = {pair.entry[1]: one.counts for pair, one in zip(pairs, placed, strict=True)}
    entries = {part: [pair.entry for pair in parts[part]] for part in LIST_PARTS}
    lines += [root.write_list(part, entries[part]) for part in LIST_PARTS]
    list_files = {part: root.list_file(part) for part in LIST_PARTS}
    counts = {
        part: counting_sizes(
            *(out, path, entries[part], LIST_DIR, root.workers),
            min_cells=options.min_cells,
            grid=_grid(name) if options.min_cells else None,
            known={mask: pixels for mask, pixels in made.items() if pixels is not None},
        )
        for part, path in list_files.items()
    }
    num_classes = _num_classes(
        [*parts["train"], *parts["val"]], [*counts["train"], *counts["val"]], class_names
    )
    data = {
        "num_classes": num_classes,
        **({"class_names": class_names} if class_names else {}),
        **divide(num_classes, options.folds),
        "min_pixels": options.min_pixels,
        **({"min_cells": options.min_cells} if options.min_cells else {}),
        "absent_class": "skip",
    }
    notes = {"absent_class": "a class without test episodes does not count in the mIoU"}
    if data["folds"] != SEEN:
        better, notes["mixed_images"] = choose_mixed_images(data, entries["train"], counts["train"])
        rule = data["mixed_images"] = options.mixed_images or better
        lines.append(f"held-out classes in training images: {rule} ({notes['mixed_images']})")
    write_config(name, root, data, notes)
    lines += report_lines(data, entries, counts, list_files)
    print(*lines, *root.next_commands(name), sep="\n")


if __name__ == "__main__":
    main()
