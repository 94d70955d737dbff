"""Index masks drawn from annotations: polygons, run-length codes, and what else labelling tools have.

pycocotools decides which pixels a polygon covers, as in COCO, whatever tool drew it.
"""

import json
import os
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from util.data.folds import IGNORE
from util.data.images import FilePath, check_labels, read_whole_image
from util.data.masks import MaskFile
from util.preparation.masks import stack_regions
from util.preparation.pascal import Colour, ids_of_colours
from util.runtime.errors import UserError

# Pixels of the longest side of an annotated image: pycocotools counts pixels in 32 bits, and crashes
# where they do not suffice.
LONGEST = 40_000
LABEL_MAP = "labelmap.txt"  # It names the colours of masks of CVAT.


def segmentation_region(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Return where a segmentation of COCO is, bool (height, width).

    It is a list of polygons [x0, y0, x1, y1, …], or a run-length code {size, counts}, compressed or
    not. None is empty.

    Raises:
        ValueError: It is malformed.
    """
    if isinstance(segmentation, list) or segmentation is None:
        polygons = [_points(points, height, width) for points in polygons_of(segmentation or [])]
        if not polygons:
            return np.zeros((height, width), bool)
        code = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    elif isinstance(segmentation, dict):
        code = _run_lengths(segmentation, height, width)
    else:
        raise ValueError("its segmentation is neither polygons nor a run-length code")
    return coco_mask.decode(code).astype(bool)


class AnnotatedImage(NamedTuple):
    """An image with its annotations, from which its index mask is drawn."""

    file_name: str  # as the file of the annotations has it
    height: int | None  # of the image that was annotated; None is the size of the image at hand
    width: int | None
    # JSON of a list of (annotation id, label, shape): compact, for there may be 120,000 images.
    annotations: bytes
    file: str = ""  # that of the annotations, for messages
    region: Callable[[Any, int, int], np.ndarray] = segmentation_region  # where a shape is

    @property
    def mask_name(self) -> str:
        """The file name with the suffix of a mask."""
        return os.path.splitext(self.file_name)[0] + ".png"

    @property
    def is_empty(self) -> bool:
        """Whether the image has no annotation."""
        return self.annotations == b"[]"

    @property
    def sources(self) -> list[object]:
        """What the mask is made from, for `util.preparation.masks.fingerprint`."""
        return [self.annotations, self.height, self.width]

    def draw(self, image: FilePath) -> np.ndarray:
        """Return the index mask, uint8 (H, W), of an image file, in the size that was annotated.

        Raises:
            UserError: A shape is malformed, or the image is damaged.
        """
        height, width = self.height, self.width
        if height is None or width is None:
            height, width = read_whole_image(image, pixels=False).shape[:2]
        regions = []
        for number, label, shape in json.loads(self.annotations):
            try:
                regions.append((label, self.region(shape, height, width)))
            except ValueError as error:
                where = f"{self.file}: {self.file_name}"
                raise UserError(f"{where}: annotation {number}: {error}") from error
        return stack_regions(height, width, regions)


class ColouredMask(NamedTuple):
    """A mask file of colours, each of which means a class id; or of indices of these classes."""

    file: str
    colours: dict[Colour, int]  # the classes in the order of their indices

    @property
    def file_name(self) -> str:
        """The name that the mask shares with its image."""
        return os.path.basename(self.file)

    @property
    def sources(self) -> list[object]:
        """What the mask is made from, for `util.preparation.masks.fingerprint`."""
        return [Path(self.file).read_bytes(), self.colours]

    def draw(self, image: FilePath) -> np.ndarray:
        """Return the index mask, uint8 (H, W); UserError if its file is damaged or of other colours."""
        file = MaskFile(self.file, Path(self.file).read_bytes())
        mask = np.asarray(file.image.convert("RGB"))
        try:
            return ids_of_colours(mask, self.colours, self.file, f"{LABEL_MAP} does not have")
        except UserError:
            if len(file.image.getbands()) > 1:
                raise
        values = file.class_ids()
        ids = [class_id for class_id in self.colours.values() if class_id not in (0, IGNORE)]
        check_labels(values, len(ids), self.file)
        return np.array([0, *ids, *[IGNORE] * (IGNORE - len(ids))], np.uint8)[values]


Drawable = AnnotatedImage | ColouredMask


def has_region(segmentation: Any) -> bool:
    """Return whether a segmentation of COCO covers anything; else its annotation is a box only."""
    return bool(polygons_of(segmentation) if isinstance(segmentation, list) else segmentation)


def polygons_of(segmentation: list[Any]) -> list[list[Any]]:
    """Return the polygons of three points and more, [x0, y0, x1, y1, …], as COCO has them.

    Tools also write one polygon without the list around it, and points as [x, y].
    """
    lists = [isinstance(item, list) for item in segmentation]
    if segmentation and all(lists):
        numbers = [*chain(*segmentation)]
        if {len(item) for item in segmentation} == {2} and not isinstance(numbers[0], list):
            return polygons_of(numbers)
        return [polygon for item in segmentation for polygon in polygons_of(item)]
    # pycocotools would take two points for a box.
    return [] if len(segmentation) in (0, 2, 4) and not any(lists) else [segmentation]


def _points(polygon: Any, height: int, width: int) -> list[float]:
    """Return the numbers of a polygon; ValueError if it is malformed."""
    try:
        points = np.asarray(polygon, np.float64)
    except (TypeError, OverflowError) as error:
        raise ValueError("a polygon holds something other than numbers") from error
    if points.ndim != 1 or len(points) % 2:
        raise ValueError("a polygon is no list of x, y, x, y, …")
    # This also finds NaN. pycocotools follows every edge in memory that grows with its length.
    if not (np.abs(points) <= 2 * max(height, width)).all():
        raise ValueError(f"a polygon leaves the image of {width}×{height} pixels by far")
    return points.tolist()


def _run_lengths(segmentation: dict, height: int, width: int) -> dict:
    """Return pycocotools' code of a run-length code, compressed or not."""
    counts = segmentation.get("counts")
    if segmentation.get("size") != [height, width]:
        raise ValueError(f"its size is not that of the image, [{height}, {width}]")
    if isinstance(counts, str):
        counts = decompress(counts)
    # pycocotools returns uninitialised pixels for too few runs and may write beyond the mask.
    valid = isinstance(counts, list) and all(
        type(run) in (int, float) and run >= 0 and run % 1 == 0 for run in counts
    )
    if not valid or sum(counts or []) != height * width:
        raise ValueError(f"its runs do not add up to {height}×{width} pixels")
    runs = [int(run) for run in counts or []]
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)


def decompress(text: str) -> list[int]:
    """Return the unchecked runs of COCO's compressed run-length code.

    A number is written in characters of 48 + 6 bits: five bits of the number, the lowest first, and
    one that says whether more follow. The highest bit of the number is its sign. From the fourth
    number on, it is the difference to the run two before.
    """
    runs: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = shift = 0
    return runs
