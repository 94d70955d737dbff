"""PASCAL-5^i from VOC 2012 and SBD: python -m util.prepare_pascal --voc DIR --sbd DIR --out DIR

Makes the data root OUT with JPEGImages (links, or copies) and SegmentationClassAug (index PNGs),
and the lists train.txt and val.txt that PFENet and its successors use: train is SBD's
train_noval, then the VOC segmentation train images not among them; val is VOC's. Where both
annotate an image, the mask is VOC's. OUT may be the folder of VOC 2012 itself. --sbd may also be a
folder SegmentationClassAug: the PNGs that others made of SBD's masks. After an interruption the same
command continues.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from util.config import Parser
from util.data.images import Entry, FilePath
from util.preparation.masks import Placed, pair_summary, prepare_pair
from util.preparation.pascal import download_pascal, sbd_mask, voc_mask
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
from util.runtime.texts import read_text

# Numbers of images in VOC 2012 and SBD as published.
SBD_COUNT, VOC_COUNT, VOC_TRAIN_COUNT, VAL_COUNT = 5623, 330, 1464, 1449

_VOC_HINT = "give VOC 2012 as unpacked (VOCdevkit/VOC2012) as --voc, or add --download"
_SBD_HINT = (
    "give SBD's benchmark.tgz as unpacked (its folder dataset), or a folder SegmentationClassAug, as "
    "--sbd, or add --download"
)


def prepare_pascal(voc: FilePath, sbd: FilePath, root: DataRoot) -> list[str]:
    """Make the data root and the lists.

    Where SBD's train_noval.txt is missing, it is SBD's train and val images without those of VOC's
    val: the val of all tasks (ImageSets/Main), since train_noval leaves all of these out.

    Args:
        voc: The folder of VOC 2012 as unpacked, or one above it.
        sbd: That of SBD; or a folder SegmentationClassAug of PNGs, which others made of SBD's masks.
        root: What to make.

    Returns:
        Lines that sum up what was done.

    Raises:
        UserError: Something in `voc` or `sbd` is missing or wrong, or a folder cannot be written.
    """
    voc_content = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
    voc = _find(voc, ("", "VOC2012", "VOCdevkit/VOC2012"), voc_content, _VOC_HINT)
    masks_alone = sorted(Path(sbd).glob("*.png"))
    if not masks_alone:
        sbd = _find(sbd, ("", "dataset", "benchmark_RELEASE/dataset"), ("cls",), _SBD_HINT)
    sbd = Path(sbd)
    sets = voc / "ImageSets"
    voc_train = _read_ids(sets / "Segmentation" / "train.txt", _VOC_HINT)
    val_ids = _read_ids(sets / "Segmentation" / "val.txt", _VOC_HINT)
    noval = sbd / "train_noval.txt"
    if noval.is_file():
        origin, ids = "train_noval.txt", _read_ids(noval, _SBD_HINT)
    elif masks_alone:
        origin, hint = "", f"{noval} makes it unnecessary"
        ids = {path.stem for path in masks_alone} - _read_ids(sets / "Main" / "val.txt", hint)
    else:
        origin, hint = (
            "computed without train_noval.txt",
            f"{noval} follows from it; give one of the two",
        )
        ids = _read_ids(sbd / "train.txt", _SBD_HINT) | _read_ids(sbd / "val.txt", _SBD_HINT)
        ids -= _read_ids(sets / "Main" / "val.txt", hint)
    ids -= val_ids
    rest = voc_train - ids - val_ids
    train, val = sorted(ids) + sorted(rest), sorted(val_ids)

    images = [_image(voc, sbd, stem) for stem in (*train, *val)]
    masks = [
        voc / "SegmentationClass" / f"{stem}.png"
        if stem in voc_train | val_ids
        else (masks_alone[0].with_name(f"{stem}.png") if masks_alone else sbd / f"cls/{stem}.mat")
        for stem in (*train, *val)
    ]
    require_files(images, "it is in VOC 2012; unpack it again")
    require_files(masks, "unpack VOC 2012 and SBD again")
    root.open("JPEGImages", "SegmentationClassAug")
    sources = list(zip(images, masks, strict=True))
    placed = run_parallel(partial(_place, root), sources, root.workers, "PASCAL")
    counts = [
        count_line(f"SBD ({origin})", len(ids), SBD_COUNT),
        count_line("VOC train", len(voc_train), VOC_TRAIN_COUNT),
        count_line("VOC train, not in SBD's part", len(rest), VOC_COUNT),
    ]
    return [
        *pair_summary(placed),
        *(counts if origin else [f"train.txt is not in the published order: this takes {noval}"]),
        root.write_list("train", map(_entry, train), SBD_COUNT + VOC_COUNT),
        root.write_list("val", map(_entry, val), VAL_COUNT),
    ]


def _find(given: FilePath, inside: Sequence[str], content: Sequence[str], hint: str) -> Path:
    """Return the first of the folders `inside` the given one that holds the folders `content`."""
    require_folder(given, hint)
    for folder in (Path(given, name) for name in inside):
        if all((folder / name).is_dir() for name in content):
            return folder
    raise UserError(f"{given} has no folder {' or no '.join(content)}: {hint}")


def _read_ids(path: Path, hint: str) -> set[str]:
    require_files([path], hint)
    ids = {line.strip() for line in read_text(path).split("\n")} - {""}
    if not ids:
        raise UserError(f"{path} is empty: {hint}")
    return ids


def _image(voc: Path, sbd: Path, stem: str) -> Path:
    image, other = voc / "JPEGImages" / f"{stem}.jpg", sbd / "img" / f"{stem}.jpg"
    return other if other.is_file() and not image.is_file() else image


def _entry(stem: str) -> Entry:
    return f"JPEGImages/{stem}.jpg", f"SegmentationClassAug/{stem}.png"


def _place(root: DataRoot, source: tuple[Path, Path]) -> Placed:
    image, mask = source
    data = mask.read_bytes()
    make_mask = partial(voc_mask if mask.suffix == ".png" else sbd_mask, mask, data)
    return prepare_pair(root, image, _entry(mask.stem), [data], make_mask)


@resumable
def main(arguments: list[str] | None = None) -> None:
    """Run the command line `arguments` (that of the process if None)."""
    parser = Parser(description="Prepare PASCAL-5^i from VOC 2012 and SBD.")
    parser.add_argument("--voc", required=True, help="VOC 2012 as unpacked: VOCdevkit/VOC2012")
    parser.add_argument(
        "--sbd",
        required=True,
        help="SBD's benchmark.tgz as unpacked: dataset; or SegmentationClassAug, a folder of PNGs",
    )
    add_shared_options(parser, "pascal")
    parser.add_argument(
        "--download", action="store_true", help="get both into --voc and --sbd first (3.4 GB)"
    )
    options = parser.parse_args(arguments)
    if options.download:
        download_pascal(options.voc, options.sbd)
    root = DataRoot.of(options, "pascal")
    lines = prepare_pascal(options.voc, options.sbd, root)
    print(*lines, *root.next_commands("pascal"), sep="\n")


if __name__ == "__main__":
    main()
