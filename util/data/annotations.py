"""Weak annotations of supports: `ann_type` mask, bbox, scribble or point.

An annotation is drawn from the support's mask at its original size, before any transform, as a
person marks the picture: it is the same whatever the test size. Each 8-connected component of the
class is annotated by itself. Ignored pixels (255) stay ignored whatever covers them, and all other
pixels that are not annotated are 0.

bbox: the component's bounding box, filled, as BAM (CVPR 2022) does.
scribble: a stroke along the middle of the component: the longest path of its skeleton, of which a
    random stretch of half the length or more is drawn with a pen of radius `STROKE`.
point: a disk of radius `DISK` at a random pixel of the component.

Strokes and disks are cut off at the component's edge: they mark pixels of the object only.
"""

import zlib
from collections import deque

import cv2
import numpy as np

from util.data.folds import IGNORE

STROKE = 0.02  # radii are shares of the longer side of the image
DISK = 0.05  # smaller ones fall between the positions of the feature grid of small test sizes
SHORTEST = 0.5  # of the path through a component, what a scribble covers at least

# The eight structuring elements of thinning (Golay's L): 1 object, -1 background, 0 either.
_EDGE = np.array([[-1, -1, -1], [0, 1, 0], [1, 1, 1]], np.int32)
_CORNER = np.array([[0, -1, -1], [1, 1, -1], [0, 1, 0]], np.int32)
_THINNING = [np.rot90(kernel, -turns).copy() for turns in range(4) for kernel in (_EDGE, _CORNER)]
_NEIGHBOURS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]


def annotation_stream(image, class_id, seed):
    """The random stream of one annotation: the same for an image, a class and a seed.

    image: its name in the list file. So the annotation of a support does not depend on the episode
    it comes in, on the order of the episodes or on how many processes share them.
    """
    return np.random.default_rng((seed, class_id, zlib.crc32(str(image).encode())))


def annotate(mask, ann_type, rng):
    """The weak annotation of a support, uint8 (H, W) in {0, 1, 255}.

    mask: (H, W) uint8, 1 = the class, 0 = other, 255 = ignore; only read. ann_type: a key of
    `ANNOTATIONS`. rng: numpy Generator; "mask" and "bbox" draw nothing from it. A mask without the
    class has none and comes back equal. Raises ValueError for another ann_type.
    """
    if ann_type not in ANNOTATIONS:
        raise ValueError(f"ann_type {ann_type!r} is none of {', '.join(ANNOTATIONS)}")
    mark = ANNOTATIONS[ann_type]
    count, components, boxes, _ = cv2.connectedComponentsWithStats(
        (mask == 1).astype(np.uint8), connectivity=8
    )
    annotated = np.zeros_like(mask)
    for number in range(1, count):
        left, top, width, height = boxes[number, : cv2.CC_STAT_AREA]
        window = np.s_[top : top + height, left : left + width]
        component = (components[window] == number).astype(np.uint8)
        annotated[window] |= mark(component, max(mask.shape), rng)
    annotated[mask == IGNORE] = IGNORE
    return annotated


def _mask(component, side, rng):
    return component


def _bbox(component, side, rng):
    return np.ones_like(component)


def _point(component, side, rng):
    y, x = np.nonzero(component)
    chosen = rng.integers(len(x))
    return _drawn([(y[chosen], x[chosen])], component, DISK * side)


def _scribble(component, side, rng):
    path = _longest_path(_thinned(component))
    length = max(1, round(rng.uniform(SHORTEST, 1) * len(path)))
    start = rng.integers(len(path) - length + 1)
    return _drawn(path[start : start + length], component, STROKE * side)


ANNOTATIONS = {"mask": _mask, "bbox": _bbox, "scribble": _scribble, "point": _point}


def _drawn(pixels, component, radius):
    """A pen of `radius` drawn over `pixels` (y, x), inside the component only."""
    radius = max(1, round(radius))
    line = np.zeros_like(component)
    line[tuple(np.transpose(pixels))] = 1
    pen = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.dilate(line, pen) & component


def _thinned(component):
    """The skeleton of a component, connected as it is and one pixel wide."""
    shape = np.pad(component, 1)  # the structuring elements have to see the outside
    before = None
    while not np.array_equal(before, shape):
        before = shape
        for kernel in _THINNING:
            shape = shape & ~cv2.morphologyEx(shape, cv2.MORPH_HITMISS, kernel)
    return shape[1:-1, 1:-1]


def _longest_path(skeleton):
    """Pixels (y, x) of the longest of the shortest paths in a connected skeleton.

    From any pixel the farthest one is an end of it, and the one farthest from there the other end:
    exact for a skeleton without loops, close to it otherwise.
    """
    pixels = set(zip(*(axis.tolist() for axis in np.nonzero(skeleton)), strict=True))
    end = _walk(pixels, min(pixels))[-1]
    return _walk(pixels, end)


def _walk(pixels, start):
    """The shortest path within `pixels` from `start` to the pixel farthest from it."""
    came_from = {start: None}
    waiting = deque([start])
    while waiting:
        pixel = waiting.popleft()
        for step in _NEIGHBOURS:
            near = (pixel[0] + step[0], pixel[1] + step[1])
            if near in pixels and near not in came_from:
                came_from[near] = pixel
                waiting.append(near)
    path = []
    while pixel is not None:
        path.append(pixel)
        pixel = came_from[pixel]
    return path[::-1]
