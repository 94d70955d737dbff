"""PASCAL-5^i from VOC 2012 and SBD: python -m util.prepare_pascal --voc DIR --sbd DIR --out DIR

Makes the data root OUT with JPEGImages (links, or copies) and SegmentationClassAug (index PNGs),
and the lists train.txt and val.txt that PFENet and its successors use: train is SBD's
train_noval, then the VOC segmentation train images not among them; val is VOC's. Where both
annotate an image, the mask is VOC's. OUT may be the folder of VOC 2012 itself. Interrupted, the
same command goes on where it was.
"""

import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

from util.config import Parser
from util.preparation.download_pascal import download_pascal
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
from util.preparation.voc_masks import sbd_mask, voc_mask
from util.runtime.errors import UserError

IMAGES, MASKS = "JPEGImages", "SegmentationClassAug"
# Images that VOC 2012 and SBD as published give.
SBD_COUNT, VOC_COUNT, VOC_TRAIN_COUNT, VAL_COUNT = 5623, 330, 1464, 1449

_VOC_HINT = "give VOC 2012 as unpacked (VOCdevkit/VOC2012) as --voc, or add --download"
_SBD_HINT = "give SBD's benchmark.tgz as unpacked (its folder dataset) as --sbd, or add --download"
_VOC_CONTENT = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
_SBD_CONTENT = ("cls",)


class Parts(NamedTuple):
    """Image ids, each list ascending.

    sbd: train_noval of SBD; voc: VOC train images not among them; val: VOC val; voc_train: all of
    VOC train; computed: whether SBD's part was computed for want of its file.
    """

    sbd: list[str]
    voc: list[str]
    val: list[str]
    voc_train: set[str]
    computed: bool


def read_parts(voc, sbd):
    """The Parts of the folders of VOC 2012 and SBD (Paths).

    Where SBD's train_noval.txt is missing, it is SBD's train and val images without those of VOC's
    val: of the val of all its tasks (ImageSets/Main), since train_noval leaves these out, not only
    the segmentation task's. Raises UserError for missing or empty lists.
    """
    voc_lists = voc / "ImageSets" / "Segmentation"
    voc_train, val = (_read_ids(voc_lists / f"{part}.txt", _VOC_HINT) for part in ("train", "val"))
    noval = sbd / "train_noval.txt"
    computed = not noval.is_file()
    if computed:
        every_val = voc / "ImageSets" / "Main" / "val.txt"
        hint = f"{noval} follows from it; give one of the two"
        ids = _read_ids(sbd / "train.txt", _SBD_HINT) | _read_ids(sbd / "val.txt", _SBD_HINT)
        ids -= _read_ids(every_val, hint)
    else:
        ids = _read_ids(noval, _SBD_HINT)
    ids -= val
    return Parts(sorted(ids), sorted(voc_train - ids - val), sorted(val), voc_train, computed)


def _read_ids(path, hint):
    require_files([path], hint)
    # surrogateescape: a file name may be any bytes
    lines = path.read_text("utf-8-sig", "surrogateescape").split("\n")
    ids = {line.strip() for line in lines} - {""}
    if not ids:
        raise UserError(f"{path} is empty: {hint}")
    return ids


class Source(NamedTuple):
    """An image id with the files it is made from."""

    stem: str
    image: Path
    mask: Path


def find_sources(voc, sbd, parts):
    """The Source of every image of `parts`, train before val. UserError if files are missing."""
    sources = [
        Source(
            stem,
            _image(voc, sbd, stem),
            voc / "SegmentationClass" / f"{stem}.png" if by_voc else sbd / "cls" / f"{stem}.mat",
        )
        for stems in (parts.sbd, parts.voc, parts.val)
        for stem in stems
        for by_voc in [stem in parts.voc_train or stems is parts.val]
    ]
    require_files((source.image for source in sources), "it is in VOC 2012; unpack it again")
    require_files((source.mask for source in sources), "unpack VOC 2012 and SBD again")
    return sources


def _image(voc, sbd, stem):
    of_voc, of_sbd = voc / "JPEGImages" / f"{stem}.jpg", sbd / "img" / f"{stem}.jpg"
    return of_sbd if of_sbd.is_file() and not of_voc.is_file() else of_voc


def names(stem):
    """(image, mask) of an image id, relative to the data root."""
    return f"{IMAGES}/{stem}.jpg", f"{MASKS}/{stem}.png"


def _prepare(out, copy, source):
    data = source.mask.read_bytes()
    read = voc_mask if source.mask.suffix == ".png" else sbd_mask
    return prepare_pair(
        out,
        source.image,
        *names(source.stem),
        sources=[data],
        make_mask=partial(read, source.mask, data),
        copy=copy,
    )


def prepare_pascal(voc, sbd, out, lists, copy=False, workers=None):
    """Make the data root `out` and the lists in the folder `lists`; returns lines that sum it up.

    voc, sbd: folders as unpacked, or one above. workers: processes, default all cores. Raises
    UserError for anything missing or wrong in them, and for folders that cannot be written.
    """
    voc = _find(voc, ("", "VOC2012", "VOCdevkit/VOC2012"), _VOC_CONTENT, _VOC_HINT)
    sbd = _find(sbd, ("", "dataset", "benchmark_RELEASE/dataset"), _SBD_CONTENT, _SBD_HINT)
    parts = read_parts(voc, sbd)
    sources = find_sources(voc, sbd, parts)
    for folder in (IMAGES, MASKS):
        open_folder(os.path.join(out, folder), "--out")
    open_folder(lists, "--lists")
    results = run_parallel(partial(_prepare, out, copy), sources, workers, "PASCAL")
    origin = "computed, since train_noval.txt is not there" if parts.computed else "train_noval.txt"
    lines = [
        *pair_summary(results),
        count_line(f"SBD ({origin})", len(parts.sbd), SBD_COUNT),
        count_line("VOC train", len(parts.voc_train), VOC_TRAIN_COUNT),
        count_line("VOC train, not in SBD's part", len(parts.voc), VOC_COUNT),
    ]
    for part, stems, expected in (
        ("train", parts.sbd + parts.voc, SBD_COUNT + VOC_COUNT),
        ("val", parts.val, VAL_COUNT),
    ):
        path = os.path.join(lists, f"{part}.txt")
        kept = write_list(path, map(names, stems))
        lines.append(count_line(path, len(stems), expected) + (f"; before: {path}.bak" * kept))
    return lines


def _find(given, inside, content, hint):
    require_folder(given, hint)
    folders = [Path(given, name) for name in inside]
    for folder in folders:
        if all((folder / name).is_dir() for name in content):
            return folder
    raise UserError(f"{given} has no folder {' or no '.join(content)}: {hint}")


@resumable
def main(arguments=None):
    parser = Parser(description="Prepare PASCAL-5^i from VOC 2012 and SBD.")
    parser.add_argument("--voc", required=True, help="VOC 2012 as unpacked: VOCdevkit/VOC2012")
    parser.add_argument("--sbd", required=True, help="SBD's benchmark.tgz as unpacked: dataset")
    add_shared_options(parser, "lists/pascal")
    parser.add_argument(
        "--download", action="store_true", help="get both into --voc and --sbd first (3.4 GB)"
    )
    options = parser.parse_args(arguments)
    if options.download:
        download_pascal(options.voc, options.sbd)
    lines = prepare_pascal(
        options.voc, options.sbd, options.out, options.lists, options.copy, options.workers
    )
    print(*lines, *next_commands("pascal", options.out, options.lists), sep="\n")


if __name__ == "__main__":
    main()
