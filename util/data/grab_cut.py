"""Masks from boxes, points and scribbles, by GrabCut (Rother et al., SIGGRAPH 2004).

GrabCut separates the colours of the object from those of its surroundings. It fails where the two are
alike, so the masks are shown to the user.
"""

import cv2
import numpy as np

from util.data.annotations import DISK

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels; x1 and y1 are outside
OBJECT, BACKGROUND = 1, 2  # labels of scribbles; 0 is unmarked
_LONGEST = 400  # pixels of the longer side in GrabCut, which takes about a second then
_ITERATIONS = 5
_MARGIN = 0.5  # of surroundings that GrabCut sees beside a box, in sides of the box
_SMALLEST = 0.05  # share of a box below which GrabCut has lost the object
_PEN = 0.01  # radius of a point for GrabCut, in shorter sides of the picture
_NEAR = 0.15  # distance to the marks within which GrabCut first expects the object, likewise


def mask_of_box(image: np.ndarray, box: Box, refine: bool = True) -> np.ndarray:
    """Return the mask of the object in a box, bool (H, W).

    It is the filled box without `refine`, or where GrabCut finds no object or no surroundings.

    Args:
        image: uint8 (H, W, 3).
        box: within the image.
        refine: whether GrabCut looks for the object in the box.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = round(box[0]), round(box[1]), round(box[2]), round(box[3])
    filled = np.zeros((height, width), bool)
    filled[y0:y1, x0:x1] = True
    if not refine:
        return filled
    across, down = round(_MARGIN * (x1 - x0)), round(_MARGIN * (y1 - y0))
    window = np.s_[max(0, y0 - down) : y1 + down, max(0, x0 - across) : x1 + across]
    inside = filled[window]
    found = np.zeros((height, width), bool)
    nothing = np.zeros_like(inside)
    found[window] = _grab_cut(image[window], nothing, ~inside, inside) & inside
    return found if found.sum() > _SMALLEST * inside.sum() else filled


def mask_of_scribble(image: np.ndarray, scribble: np.ndarray, refine: bool = True) -> np.ndarray:
    """Return the mask of the object that a scribble marks, bool (H, W).

    Only connected parts that the scribble touches belong to it. It is the scribble itself without
    `refine`, or where nothing but the object is left in the image.

    Args:
        image: uint8 (H, W, 3).
        scribble: uint8 (H, W) of `OBJECT`, `BACKGROUND` and 0.
        refine: whether GrabCut looks for the object.
    """
    drawn = scribble == OBJECT
    if not refine:
        return drawn
    distance = cv2.distanceTransform((~drawn).astype(np.uint8), cv2.DIST_L2, 3)
    near = distance < _NEAR * min(drawn.shape)
    found = _grab_cut(image, drawn, scribble == BACKGROUND, near) | drawn
    _, parts = cv2.connectedComponents(found.astype(np.uint8), connectivity=8)
    return np.isin(parts, np.unique(parts[drawn]))


def draw_points(
    shape: tuple[int, int], points: np.ndarray, labels: np.ndarray, refine: bool = True
) -> np.ndarray:
    """Return points as a scribble, uint8 (H, W): disks that are larger without `refine`.

    Args:
        shape: (H, W).
        points: (n, 2), x and y in pixels.
        labels: (n,), 1 on the object and 0 beside it.
        refine: see `mask_of_scribble`.
    """
    radius = max(1, round(_PEN * min(shape) if refine else DISK * max(shape)))
    scribble = np.zeros(shape, np.uint8)
    # Those on the object come last, since a disk of another point must not hide one.
    for label, value in ((0, BACKGROUND), (1, OBJECT)):
        for x, y in points[labels == label]:
            cv2.circle(scribble, (int(x), int(y)), radius, value, cv2.FILLED)
    return scribble


def _grab_cut(
    image: np.ndarray, certain: np.ndarray, outside: np.ndarray, likely: np.ndarray
) -> np.ndarray:
    """Return where GrabCut finds the object, bool (h, w).

    Args:
        image: uint8 (h, w, 3).
        certain: bool (h, w), certainly the object.
        outside: bool (h, w), certainly not the object.
        likely: bool (h, w), what GrabCut first takes for the object.
    """
    height, width = certain.shape
    scale = min(1.0, _LONGEST / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))

    def share(region: np.ndarray) -> np.ndarray:
        """Return how much of each small pixel lies in a region."""
        return cv2.resize(region.astype(np.float32), size, interpolation=cv2.INTER_AREA)

    marks = np.where(share(likely) >= 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    # Any share counts, so that thin strokes are not lost.
    marks[share(outside) > 0] = cv2.GC_BGD
    marks[share(certain) > 0] = cv2.GC_FGD
    found = _is_object(marks)
    if found.any() and not found.all():  # GrabCut needs pixels of both sides.
        cv2.setRNGSeed(0)  # The same picture always gives the same mask.
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        models = np.zeros((2, 1, 65))
        bgr = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
        cv2.grabCut(
            bgr, marks, (0, 0, 0, 0), models[0], models[1], _ITERATIONS, cv2.GC_INIT_WITH_MASK
        )
        found = _is_object(marks)
    # Linear interpolation gives smoother outlines than the nearest pixel does.
    large = cv2.resize(
        255 * found.astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR
    )
    return large >= 128


def _is_object(marks: np.ndarray) -> np.ndarray:
    return (marks == cv2.GC_FGD) | (marks == cv2.GC_PR_FGD)
