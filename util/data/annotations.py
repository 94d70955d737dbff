"""Weak annotations of supports: `ann_type` mask, bbox, scribble or point.

An annotation is drawn from the support's mask at its original size, before any transform, as a
person marks the picture: it is the same for every test size. Each 8-connected component of the
class is annotated separately. Ignored pixels (255) stay ignored, and all other pixels that are not
annotated are 0.

bbox: the component's bounding box, filled, as in BAM (CVPR 2022).
scribble: a stroke along the middle of the component. It covers a random stretch, at least half, of
    the longest path of the component's skeleton, with a pen of radius `STROKE`.
point: a disk of radius `DISK` around a random pixel of the component.

Strokes and disks are cut off at the component's edge: they mark pixels of the object only.
"""

import zlib
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from util.data.folds import IGNORE

STROKE = 0.02  # radii are shares of the longer side of the image
DISK = 0.05  # smaller ones fall between the positions of the feature grid of small test sizes
SHORTEST = 0.5  # smallest share of the path through a component that a scribble covers


def annotation_stream(image: str, class_id: int, seed: int) -> np.random.Generator:
    """Return the random stream of one annotation.

    The annotation of a support depends on the name of its image in the list file, its class and
    the seed alone: neither on the episodes and their order, nor on the number of processes.
    """
    # surrogateescape, because a file name may be any bytes.
    name = image.encode(errors="surrogateescape")
    return np.random.default_rng((seed, class_id, zlib.crc32(name)))


def annotate(mask: np.ndarray, ann_type: str, rng: np.random.Generator) -> np.ndarray:
    """Return the weak annotation of a support, uint8 (H, W) in {0, 1, 255}.

    A mask without the class is returned unchanged.

    Args:
        mask: uint8 (H, W): 1 = the class, 0 = other, 255 = ignore. It is not changed.
        ann_type: A key of `ANNOTATIONS`.
        rng: The random stream; "mask" and "bbox" draw nothing from it.
    """
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


def _point(component: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.nonzero(component)
    chosen = rng.integers(len(x))
    return _drawn([(y[chosen], x[chosen])], component, DISK * side)


def _scribble(component: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    # Imported here, because it takes a second and few runs draw scribbles.
    from skimage.morphology import skeletonize

    path = _longest_path(skeletonize(np.pad(component, 1))[1:-1, 1:-1])
    length = max(1, round(rng.uniform(SHORTEST, 1) * len(path)))
    start = rng.integers(len(path) - length + 1)
    return _drawn(path[start : start + length], component, STROKE * side)


# Each takes a component, uint8 (h, w) in {0, 1}, the longer side of its image and the random stream.
ANNOTATIONS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "mask": lambda component, side, rng: component,
    "bbox": lambda component, side, rng: np.ones_like(component),
    "scribble": _scribble,
    "point": _point,
}


def _drawn(pixels: Sequence[tuple[int, int]], component: np.ndarray, radius: float) -> np.ndarray:
    """Draw `pixels` (y, x) with a pen of `radius` pixels, inside the component only."""
    radius = max(1, round(radius))
    line = np.zeros_like(component)
    line[tuple(np.transpose(pixels))] = 1
    pen = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.dilate(line, pen) & component


def _longest_path(skeleton: np.ndarray) -> list[tuple[int, int]]:
    """Return the pixels (y, x) of the longest of the shortest paths in a connected skeleton.

    The pixel farthest from any pixel is one end of it, and the pixel farthest from there the other:
    this is exact for a skeleton without loops and close to it otherwise.
    """
    from skimage.graph import MCP

    end = tuple(np.argwhere(skeleton)[0])
    for _ in range(2):
        paths = MCP(np.where(skeleton, 1.0, np.inf))
        costs, _ = paths.find_costs([end])
        end = np.unravel_index(np.where(skeleton, costs, -1).argmax(), costs.shape)
    return paths.traceback(end)
