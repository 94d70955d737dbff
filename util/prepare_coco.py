"""COCO-20^i from COCO 2014: python -m util.prepare_coco --coco DIR --out DIR

Makes the data root OUT with train2014 and val2014 (links, or copies), annotations/train2014 and
annotations/val2014 (index PNGs; classes 1..80 are the categories in the order of their ids, crowd
regions are ignored) and the lists train.txt and val.txt of the images with annotations, by image
id. OUT may be the folder of COCO itself. Interrupted, the same command goes on where it was, and
makes anew what other annotations ask for.
"""

import json
import os
from functools import partial

from util.config import Parser
from util.preparation.coco_instances import read_instances
from util.preparation.coco_masks import draw_mask
from util.preparation.masks import pair_summary, prepare_pair
from util.preparation.shared import (
    add_shared_options,
    count_line,
    next_commands,
    open_folder,
    require_files,
    require_folder,
    resumable,
    run_parallel,
    write_list,
)
from util.runtime.errors import UserError

PARTS = ("train", "val")
# Of COCO 2014 as published: images with annotations, categories.
COUNTS = {"train": 82081, "val": 40137}
CATEGORIES = 80

_HINT = "give COCO 2014 as --coco: a folder with annotations/, train2014/ and val2014/"


def image_folder(part):
    """Folder of the images of a part, relative to COCO's folder and to the data root."""
    return f"{part}2014"


def names(part, image):
    """(image, mask) of an AnnotatedImage, relative to the data root."""
    folder = image_folder(part)
    return f"{folder}/{image.file_name}", f"annotations/{folder}/{image.mask_name}"


def annotation_file(coco, part):
    """The instances file of a part."""
    return os.path.join(coco, "annotations", f"instances_{image_folder(part)}.json")


def _prepare(coco, out, copy, part, image):
    where = f"{annotation_file(coco, part)}: {image.file_name}"

    def make_mask():
        return draw_mask(image.height, image.width, json.loads(image.annotations), where)

    return prepare_pair(
        out,
        os.path.join(coco, image_folder(part), image.file_name),
        *names(part, image),
        sources=[image.annotations, image.height, image.width],
        make_mask=make_mask,
        copy=copy,
    )


def prepare_coco(coco, out, lists, copy=False, workers=None):
    """Make the data root `out` and the lists in the folder `lists`; returns lines that sum it up.

    coco: folder of COCO 2014. workers: processes, default all cores. Raises UserError for
    anything missing or wrong in it, and for folders that cannot be written.
    """
    for folder in ("annotations", *map(image_folder, PARTS)):
        require_folder(os.path.join(coco, folder), _HINT)
    require_files([annotation_file(coco, part) for part in PARTS], _HINT)
    for part in PARTS:
        open_folder(os.path.join(out, image_folder(part)), "--out")
        open_folder(os.path.join(out, "annotations", image_folder(part)), "--out")
    open_folder(lists, "--lists")
    instances = {part: _read(coco, part) for part in PARTS}
    categories = instances["train"].categories
    if instances["val"].categories != categories:
        raise UserError(
            f"{annotation_file(coco, 'train')} and {annotation_file(coco, 'val')} have different "
            "categories: give two of one dataset"
        )
    lines = [count_line("categories", len(categories), CATEGORIES)]
    for part in PARTS:
        images, total, _ = instances[part]
        work = partial(_prepare, coco, out, copy, part)
        results = run_parallel(work, images, workers, f"COCO {part}")
        path = os.path.join(lists, f"{part}.txt")
        kept = write_list(path, (names(part, image) for image in images))
        lines += pair_summary(results)
        count = count_line(path, len(images), COUNTS[part])
        lines.append(f"{count}; of {total:,} images" + f"; before: {path}.bak" * kept)
    return lines


def _read(coco, part):
    file = annotation_file(coco, part)
    print(f"reading {file}", flush=True)
    instances = read_instances(file)
    if not instances.images:
        raise UserError(f"{file} has no annotations: {_HINT}")
    folder = os.path.join(coco, image_folder(part))
    require_files((os.path.join(folder, image.file_name) for image in instances.images), _HINT)
    return instances


@resumable
def main(arguments=None):
    parser = Parser(description="Prepare COCO-20^i from COCO 2014.")
    parser.add_argument(
        "--coco", required=True, help="folder with annotations/, train2014/ and val2014/"
    )
    add_shared_options(parser, "lists/coco")
    options = parser.parse_args(arguments)
    lines = prepare_coco(options.coco, options.out, options.lists, options.copy, options.workers)
    print(*lines, *next_commands("coco", options.out, options.lists), sep="\n")


if __name__ == "__main__":
    main()
