"""Segment a folder of pictures by a few marked ones.

Example: python predict.py --weights best.pth --support a.jpg a.png --support b.jpg 40,30,200,180
--query photos --out labels. docs/own_pictures.md explains it. If the command was interrupted, run it
again: it continues.
"""

import hashlib
import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, PositiveInt
from tqdm import tqdm

import util  # noqa: F401  # It ends the process with one line where no command can run.
from segmenter import FewShotSegmenter, Support, SupportSet
from util.config import Parser
from util.data.label_maps import draw_overlay
from util.data.pictures import read_picture
from util.predict import formats
from util.predict.inputs import Query, find_queries, find_supports, read_supports
from util.predict.review import Reviewed, write_review
from util.preparation.shared import argument_type, open_folder, resumable
from util.runtime.errors import UserError, errors_as
from util.runtime.files import write_atomically
from util.runtime.lock import in_turn

FORMATS = ("masks", "coco", "coco_polygons", "labelme", "yolo", "overlay", "probability")
SOME_FAILED = 1  # the exit code where some pictures could not be segmented


@dataclass
class Labelling:
    """Labels pictures, and writes the wanted formats to a folder.

    Masks are always written, and last: a picture that has one is done. The other formats but
    `probability` are made from it, and made again where a person has changed it since.
    """

    segmenter: FewShotSegmenter
    supports: SupportSet
    threshold: float
    out: Path
    wanted: Sequence[str]
    segmented: int = 0  # pictures by this run
    reviewed: list[Reviewed] = field(default_factory=list)

    def __post_init__(self) -> None:
        kinds = {"coco": False, "coco_polygons": True}
        self.coco = {
            kind: formats.CocoFile(self.supports.classes, polygons)
            for kind, polygons in kinds.items()
            if kind in self.wanted
        }

    def label(self, query: Query) -> None:
        """Write what is missing for one picture.

        Raises:
            ValueError: the picture, or a mask that was written before, cannot be read.
        """
        masks = self.out / "masks" / f"{query.name}.png"
        probabilities = self._probability_files(query)
        if not (masks.exists() and all(path.exists() for path in probabilities.values())):
            result = self.segmenter.segment(query.path, self.supports, self.threshold)
            for name, path in probabilities.items():
                formats.write_probability(path, result.probabilities[name])
            if not masks.exists():
                formats.write_labels(masks, result.label_map, result.uncertainty)
            self.segmented += 1
        label_map, uncertainty = formats.read_labels(masks, len(self.supports.classes))
        # Reading all pictures would take longer than the rest of a rerun.
        if uncertainty is None and label_map.shape != (shape := read_picture(query.path).shape[:2]):
            sizes = [f"{width}×{height}" for height, width in (label_map.shape, shape)]
            raise ValueError(
                f"{masks} is {sizes[0]} pixels and its picture {sizes[1]}; correct it, or delete it"
            )
        self._convert(query, masks, label_map)
        for file in self.coco.values():
            file.add(query.name + query.path.suffix, label_map)
        if uncertainty is not None:
            share = (label_map > 0).mean()
            self.reviewed.append(Reviewed(query.path, masks, uncertainty, share))

    def finish(self, review: bool) -> None:
        """Write the files that hold all pictures."""
        for kind, file in self.coco.items():
            file.write(self.out / f"{kind}.json")
        if "yolo" in self.wanted:
            formats.write_yolo_classes(self.out / "yolo", self.supports.classes)
        if review:
            write_review(self.out, self.reviewed)

    def _probability_files(self, query: Query) -> dict[str, Path]:
        """Return the wanted files of the probability of each class."""
        if "probability" not in self.wanted:
            return {}
        folder, classes = self.out / "probability", self.supports.classes
        folders = {name: folder / name if len(classes) > 1 else folder for name in classes}
        return {name: place / f"{query.name}.png" for name, place in folders.items()}

    def _convert(self, query: Query, masks: Path, label_map: np.ndarray) -> None:
        """Write the formats of one file per picture that are missing or older than the mask."""
        classes, changed = self.supports.classes, masks.stat().st_mtime_ns
        for kind, suffix in (("labelme", "json"), ("yolo", "txt"), ("overlay", "jpg")):
            path = self.out / kind / f"{query.name}.{suffix}"
            if kind not in self.wanted or (path.exists() and path.stat().st_mtime_ns >= changed):
                continue
            if kind == "labelme":
                formats.write_labelme(path, query.path, label_map, classes)
            elif kind == "yolo":
                formats.write_yolo(path, label_map)
            else:
                formats.write_jpeg(path, draw_overlay(read_picture(query.path), label_map))


@resumable
def main(arguments: list[str] | None = None) -> None:
    """Run the command line `arguments` (that of the process if None)."""
    options = _parser().parse_args(arguments)
    out = Path(options.out)
    given = read_supports(options.support, not options.no_refine)
    for name, more in (find_supports(options.supports) if options.supports else {}).items():
        given.setdefault(name, []).extend(more)
    if not given:
        raise UserError("there is no support: give --support IMAGE ANNOTATION or --supports FOLDER")
    # The mask files of supports are no pictures to segment.
    masks = [one.mask for ones in given.values() for one in ones if isinstance(one.mask, Path)]
    queries = find_queries(options.query, out, masks)
    with errors_as(UserError, ValueError):
        segmenter = FewShotSegmenter.from_pretrained(
            options.weights, size=options.size, device=options.device, amp=options.amp
        )
        supports = segmenter.fit(given)
    open_folder(out, "--out")
    _claim(out, _settings(options, segmenter, given, supports))
    write_atomically(out / "classes.txt", "".join(f"{name}\n" for name in supports.classes))
    _show_supports(out / "supports", given, supports)

    labelling = Labelling(segmenter, supports, options.threshold, out, options.format)
    failures = []
    for query in tqdm(queries, unit="picture", smoothing=0, disable=None):
        try:
            labelling.label(query)
        except ValueError as error:
            failures.append(str(error))
    labelling.finish(options.review)
    done = len(queries) - len(failures)
    print(
        f"{done} of {len(queries)} pictures have labels, {labelling.segmented} of them new: {out}"
    )
    if failures:
        print(f"{len(failures)} cannot be used:", *failures, sep="\n", file=sys.stderr)
        sys.exit(SOME_FAILED)


def _parser() -> Parser:
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--weights",
        required=True,
        help="checkpoint, folder of a run, or OWNER/NAME of the Hugging Face Hub",
    )
    parser.add_argument(
        "--support",
        nargs=2,
        action="append",
        default=[],
        metavar=("[CLASS=]IMAGE", "ANNOTATION"),
        help="a marked picture: a mask file, a box x0,y0,x1,y1 or a point x,y; give as many as you have",
    )
    parser.add_argument(
        "--supports", metavar="FOLDER", help="CLASS/NAME.jpg with CLASS/NAME.png, its mask"
    )
    parser.add_argument(
        "--query", nargs="+", required=True, metavar="PATH", help="files, folders or patterns"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where to write the labels")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=["masks"],
        metavar="FORMAT",
        help=f"what to write beside masks: {', '.join(FORMATS[1:])}",
    )
    parser.add_argument(
        "--review", action="store_true", help="list the least certain pictures first"
    )
    parser.add_argument(
        "--threshold",
        type=argument_type(Annotated[float, Field(gt=0, lt=1)]),
        default=0.5,
        help="probability from which a pixel belongs to a class (%(default)s)",
    )
    parser.add_argument(
        "--size", type=argument_type(PositiveInt), help="S of the images S×S (that of the training)"
    )
    parser.add_argument("--no_refine", action="store_true", help="take boxes and points as masks")
    parser.add_argument("--amp", choices=("off", "bf16", "fp16", "auto"), default="off")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="by default CUDA if there is a GPU"
    )
    return parser


def _settings(
    options: Namespace,
    segmenter: FewShotSegmenter,
    given: Mapping[str, Sequence[Support]],
    supports: SupportSet,
) -> dict[str, Any]:
    """Return what the labels depend on, beside the pictures."""
    digest = hashlib.sha256()
    for name, masks in supports.masks.items():
        for support, mask in zip(given[name], masks, strict=True):
            digest.update(Path(str(support.image)).read_bytes() + mask.tobytes())
    return {
        "weights": segmenter.weights,
        "classes": list(supports.classes),
        "supports": digest.hexdigest(),
        "size": supports.size,
        "threshold": options.threshold,
        "amp": options.amp,
    }


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Require that other results in a folder, if there are any, are made with these settings."""
    path = out / "predict.json"
    with in_turn(out / ".lock"):
        if path.exists():
            try:
                earlier = json.loads(path.read_text("utf-8"))
                changed = [key for key, value in settings.items() if earlier.get(key) != value]
            except (ValueError, AttributeError):
                changed = ["settings"]
            if changed:
                raise UserError(
                    f"--out {out}: it holds results for another {', '.join(changed)}; give another "
                    "folder, or remove this one"
                )
        write_atomically(path, json.dumps(settings, indent=1) + "\n")


def _show_supports(
    folder: Path, given: Mapping[str, Sequence[Support]], supports: SupportSet
) -> None:
    """Write the supports with their masks, so that the user sees what a box or point became.

    A mask that covers a whole picture, such as one that was left white, is said.
    """
    for label, (name, masks) in enumerate(supports.masks.items(), 1):
        for number, (support, mask) in enumerate(zip(given[name], masks, strict=True), 1):
            image = draw_overlay(read_picture(support.image), np.uint8(label) * mask)
            formats.write_jpeg(folder / f"{name}-{number}.jpg", image)
            if mask.all():
                print(f"{support.image}: the mask covers the whole picture", file=sys.stderr)


if __name__ == "__main__":
    main()
