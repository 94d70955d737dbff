"""Drawing a COCO image's annotations as one index mask."""

import numpy as np
from pycocotools import mask as coco_mask

from util.runtime.errors import UserError

_SMALLEST_POLYGON = 6  # numbers: three points


def draw_mask(height, width, annotations, where):
    """The index mask (height, width) uint8 of `annotations`: 0 where there is none.

    annotations: (id, label, segmentation), where segmentation is a list of polygons
    [x0, y0, x1, y1, …] or a run-length code {size, counts}, compressed or not. Those that cover
    more are drawn first, so that small ones stay visible; of equal ones the first is. Raises
    UserError, which begins with `where` and the annotation's id, for a malformed segmentation.
    """
    regions = []
    for number, label, segmentation in annotations:
        try:
            region = _region(segmentation, height, width)
        except ValueError as error:
            raise UserError(f"{where}: annotation {number}: {error}") from error
        regions.append((label, region))
    result = np.zeros((height, width), np.uint8)
    for label, region in sorted(regions, key=lambda entry: -int(np.count_nonzero(entry[1]))):
        result[region] = label
    return result


def _region(segmentation, height, width):
    """The area of one segmentation, (height, width) bool. ValueError if it is malformed."""
    if isinstance(segmentation, list):
        code = _polygons(segmentation, height, width)
    elif isinstance(segmentation, dict):
        code = _run_lengths(segmentation, height, width)
    else:
        raise ValueError("its segmentation is neither polygons nor a run-length code")
    if code is None:
        return np.zeros((height, width), bool)
    return coco_mask.decode(code).astype(bool)


def _polygons(polygons, height, width):
    """pycocotools' code of the union of polygons; None if none of them has an area."""
    limit = 2 * max(height, width)
    usable = []
    for polygon in polygons:
        try:
            points = np.asarray(polygon, np.float64)
        except TypeError as error:
            raise ValueError("a polygon holds what is no number") from error
        if points.ndim != 1 or len(points) % 2:
            raise ValueError("a polygon is no list of x, y, x, y, …")
        # Also catches not-a-number. pycocotools walks every edge, in memory that grows with it.
        if not (np.abs(points) <= limit).all():
            raise ValueError(f"a polygon leaves the image of {width}×{height} pixels by far")
        # pycocotools would take two points for a box.
        if len(points) >= _SMALLEST_POLYGON:
            usable.append(points.tolist())
    if not usable:
        return None
    return coco_mask.merge(coco_mask.frPyObjects(usable, height, width))


def _run_lengths(segmentation, height, width):
    """pycocotools' code of a run-length code, compressed or not."""
    counts = segmentation.get("counts")
    if segmentation.get("size") != [height, width]:
        raise ValueError(f"its size is not that of the image, [{height}, {width}]")
    if isinstance(counts, str):
        counts = decompress(counts)
    # pycocotools does not look: it leaves memory as it was, or writes beyond it.
    valid = isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts)
    if not valid or sum(counts) != height * width:
        raise ValueError(f"its runs do not add up to {height}×{width} pixels")
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def decompress(text):
    """The runs (list of int) of COCO's compressed run-length code `text`.

    A number is written in characters of 48 + 6 bits, five of it and one that says that it goes on,
    lowest first, the highest bit being the sign. From the fourth number on it is the difference to
    the run two before. The runs are checked where they are used, not here.
    """
    runs, number, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number, shift = 0, 0
    return runs
