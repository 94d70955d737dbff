"""COCO-20^i from COCO 2014: python -m util.prepare_coco --coco DIR --out DIR

Makes the data root OUT with train2014 and val2014 (links, or copies), annotations/train2014 and
annotations/val2014 (index PNGs; classes 1..80 are the categories in the order of their ids, crowd
regions are ignored) and the lists train.txt and val.txt of the images with annotations, by image
id. OUT may be the folder of COCO itself. After an interruption the same command continues; it
draws only masks that are missing or whose annotations changed.
"""

import os
from functools import partial

from util.config import Parser
from util.data.folds import LIST_PARTS
from util.data.images import Entry, FilePath
from util.preparation.coco import Instances, read_instances
from util.preparation.masks import Placed, pair_summary, prepare_pair
from util.preparation.segmentations import AnnotatedImage
from util.preparation.shared import (
    DataRoot,
    add_shared_options,
    count_line,
    require_files,
    require_folder,
    resumable,
)
from util.runtime.errors import UserError
from util.runtime.parallel import run_parallel

# COCO 2014 as published: images with annotations, and categories.
COUNTS = {"train": 82081, "val": 40137}
CATEGORIES = 80

_HINT = "give COCO 2014 as --coco: a folder with annotations/, train2014/ and val2014/"


def prepare_coco(coco: FilePath, root: DataRoot) -> list[str]:
    """Make the data root and the lists from the folder of COCO 2014.

    Returns:
        Lines that sum up what was done.

    Raises:
        UserError: Something in `coco` is missing or wrong, or a folder cannot be written.
    """
    folders = [f"{part}2014" for part in LIST_PARTS]
    for folder in ("annotations", *folders):
        require_folder(os.path.join(coco, folder), _HINT)
    files = {
        part: os.path.join(coco, f"annotations/instances_{part}2014.json") for part in LIST_PARTS
    }
    require_files(files.values(), _HINT)
    root.open(*folders, *(f"annotations/{folder}" for folder in folders))
    instances = {part: _read(coco, part, files[part]) for part in LIST_PARTS}
    categories = instances["train"].categories
    if instances["val"].categories != categories:
        raise UserError(
            f"{files['train']} and {files['val']} have different categories: give two of one "
            "dataset"
        )
    lines = [count_line("categories", len(categories), CATEGORIES)]
    for part, (images, total, _) in instances.items():
        work = partial(_place, coco, root, part)
        lines += pair_summary(run_parallel(work, images, root.workers, f"COCO {part}"))
        line = root.write_list(part, (_entry(part, image) for image in images), COUNTS[part])
        lines.append(f"{line}; {total:,} images with and without annotations")
    return lines


def _read(coco: FilePath, part: str, file: str) -> Instances:
    # Without its folder, whose name may be no text.
    print(f"reading {os.path.basename(file)}", flush=True)
    instances = read_instances(file)
    if not instances.images:
        raise UserError(f"{file} has no annotations: {_HINT}")
    names = (_entry(part, image)[0] for image in instances.images)
    require_files((os.path.join(coco, name) for name in names), _HINT)
    return instances


def _entry(part: str, image: AnnotatedImage) -> Entry:
    folder = f"{part}2014"  # of the images, under COCO's folder and under the data root
    return f"{folder}/{image.file_name}", f"annotations/{folder}/{image.mask_name}"


def _place(coco: FilePath, root: DataRoot, part: str, image: AnnotatedImage) -> Placed:
    entry = _entry(part, image)
    path = os.path.join(coco, entry[0])
    return prepare_pair(root, path, entry, image.sources, partial(image.draw, path))


@resumable
def main(arguments: list[str] | None = None) -> None:
    """Run the command line `arguments` (that of the process if None)."""
    parser = Parser(description="Prepare COCO-20^i from COCO 2014.")
    parser.add_argument(
        "--coco", required=True, help="folder with annotations/, train2014/ and val2014/"
    )
    add_shared_options(parser, "coco")
    options = parser.parse_args(arguments)
    root = DataRoot.of(options, "coco")
    print(*prepare_coco(options.coco, root), *root.next_commands("coco"), sep="\n")


if __name__ == "__main__":
    main()
