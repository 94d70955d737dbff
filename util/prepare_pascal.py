"""PASCAL-5^i from VOC 2012 and SBD: python -m util.prepare_pascal --voc DIR --sbd DIR --out DIR

Makes the data root OUT with JPEGImages (links, or copies) and SegmentationClassAug (index PNGs),
and the lists train.txt and val.txt that PFENet and its successors use: train is SBD's
train_noval, then the VOC segmentation train images not among them; val is VOC's. Where both
annotate an image, the mask is VOC's. OUT may be the folder of VOC 2012 itself. After an
interruption the same command continues.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from util.config import Parser
from util.data.images import Entry
from util.preparation.download_pascal import download_pascal
from util.preparation.masks import Placed, pair_summary, prepare_pair
from util.preparation.shared import (
    DataRoot,
    FilePath,
    add_shared_options,
    count_line,
    require_files,
    require_folder,
    resumable,
    run_parallel,
)
from util.preparation.voc_masks import sbd_mask, voc_mask
from util.runtime.errors import UserError

IMAGES, MASKS = "JPEGImages", "SegmentationClassAug"
# Numbers of images in VOC 2012 and SBD as published.
SBD_COUNT, VOC_COUNT, VOC_TRAIN_COUNT, VAL_COUNT = 5623, 330, 1464, 1449

_VOC_HINT = "give VOC 2012 as unpacked (VOCdevkit/VOC2012) as --voc, or add --download"
_SBD_HINT = "give SBD's benchmark.tgz as unpacked (its folder dataset) as --sbd, or add --download"


class Parts(NamedTuple):
    """Image ids of the parts, each list ascending."""

    sbd: list[str]  # SBD's train_noval
    voc: list[str]  # VOC's train images not among them
    val: list[str]  # VOC's val
    voc_train: set[str]  # all of VOC's train
    computed: bool  # whether SBD's part was computed because its file is missing


class Source(NamedTuple):
    """An image id with the files of its image and its mask."""

    stem: str
    image: Path
    mask: Path


def _read_parts(voc: Path, sbd: Path) -> Parts:
    """Read the parts from the folders of VOC 2012 and SBD.

    Where SBD's train_noval.txt is missing, it is SBD's train and val images without those of VOC's
    val: the val of all tasks (ImageSets/Main), since train_noval leaves all of these out.
    """
    voc_lists = voc / "ImageSets" / "Segmentation"
    voc_train, val = (_read_ids(voc_lists / f"{part}.txt", _VOC_HINT) for part in ("train", "val"))
    noval = sbd / "train_noval.txt"
    computed = not noval.is_file()
    if computed:
        hint = f"{noval} follows from it; give one of the two"
        ids = _read_ids(sbd / "train.txt", _SBD_HINT) | _read_ids(sbd / "val.txt", _SBD_HINT)
        ids -= _read_ids(voc / "ImageSets" / "Main" / "val.txt", hint)
    else:
        ids = _read_ids(noval, _SBD_HINT)
    ids -= val
    return Parts(sorted(ids), sorted(voc_train - ids - val), sorted(val), voc_train, computed)


def _read_ids(path: Path, hint: str) -> set[str]:
    require_files([path], hint)
    # surrogateescape, because a file name may be any bytes.
    lines = path.read_text("utf-8-sig", "surrogateescape").split("\n")
    ids = {line.strip() for line in lines} - {""}
    if not ids:
        raise UserError(f"{path} is empty: {hint}")
    return ids


def _find_sources(voc: Path, sbd: Path, parts: Parts) -> list[Source]:
    """Return the files of all images, train before val; UserError if one is missing."""
    of_voc = {*parts.voc_train, *parts.val}
    sources = []
    for stem in (*parts.sbd, *parts.voc, *parts.val):
        image, other = (folder / f"{stem}.jpg" for folder in (voc / "JPEGImages", sbd / "img"))
        if other.is_file() and not image.is_file():
            image = other
        png, mat = voc / "SegmentationClass" / f"{stem}.png", sbd / "cls" / f"{stem}.mat"
        sources.append(Source(stem, image, png if stem in of_voc else mat))
    require_files((source.image for source in sources), "it is in VOC 2012; unpack it again")
    require_files((source.mask for source in sources), "unpack VOC 2012 and SBD again")
    return sources


def _entry(stem: str) -> Entry:
    return f"{IMAGES}/{stem}.jpg", f"{MASKS}/{stem}.png"


def _place(root: DataRoot, source: Source) -> Placed:
    data = source.mask.read_bytes()
    read = voc_mask if source.mask.suffix == ".png" else sbd_mask
    make_mask = partial(read, source.mask, data)
    return prepare_pair(root, source.image, _entry(source.stem), [data], make_mask)


def prepare_pascal(voc: FilePath, sbd: FilePath, root: DataRoot) -> list[str]:
    """Make the data root and the lists.

    Args:
        voc: The folder of VOC 2012 as unpacked, or one above it.
        sbd: That of SBD.
        root: What to make.

    Returns:
        Lines that sum up what was done.

    Raises:
        UserError: Something in `voc` or `sbd` is missing or wrong, or a folder cannot be written.
    """
    voc_content = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
    voc = _find(voc, ("", "VOC2012", "VOCdevkit/VOC2012"), voc_content, _VOC_HINT)
    sbd = _find(sbd, ("", "dataset", "benchmark_RELEASE/dataset"), ("cls",), _SBD_HINT)
    parts = _read_parts(voc, sbd)
    sources = _find_sources(voc, sbd, parts)
    root.open(IMAGES, MASKS)
    placed = run_parallel(partial(_place, root), sources, root.workers, "PASCAL")
    origin = "computed without train_noval.txt" if parts.computed else "train_noval.txt"
    return [
        *pair_summary(placed),
        count_line(f"SBD ({origin})", len(parts.sbd), SBD_COUNT),
        count_line("VOC train", len(parts.voc_train), VOC_TRAIN_COUNT),
        count_line("VOC train, not in SBD's part", len(parts.voc), VOC_COUNT),
        root.write_list("train", map(_entry, parts.sbd + parts.voc), SBD_COUNT + VOC_COUNT),
        root.write_list("val", map(_entry, parts.val), VAL_COUNT),
    ]


def _find(given: FilePath, inside: Sequence[str], content: Sequence[str], hint: str) -> Path:
    """Return the first of the folders `inside` the given one that holds the folders `content`."""
    require_folder(given, hint)
    for folder in (Path(given, name) for name in inside):
        if all((folder / name).is_dir() for name in content):
            return folder
    raise UserError(f"{given} has no folder {' or no '.join(content)}: {hint}")


@resumable
def main(arguments: list[str] | None = None) -> None:
    """Run the command line `arguments` (that of the process if None)."""
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
    root = DataRoot(options.out, options.lists, options.copy, options.workers)
    lines = prepare_pascal(options.voc, options.sbd, root)
    print(*lines, *root.next_commands("pascal"), sep="\n")


if __name__ == "__main__":
    main()
