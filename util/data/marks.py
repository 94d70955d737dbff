"""How a user marks an object in a picture: by a mask, boxes, points or a scribble."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from util.data.grab_cut import BACKGROUND, OBJECT, draw_points, mask_of_box, mask_of_scribble
from util.data.images import as_shown
from util.data.pictures import Picture, read_marks


class Marks(NamedTuple):
    """The marks of one picture, of which exactly one kind is given; see `segmenter.Support`."""

    mask: Picture | None = None
    box: ArrayLike | None = None
    points: ArrayLike | None = None
    scribble: Picture | None = None

    @property
    def kind(self) -> str:
        """The kind that is given.

        Raises:
            ValueError: there is none, or there are several.
        """
        given = [kind for kind, value in self._asdict().items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                "a support has exactly one of mask, box, points and scribble, not "
                f"{' and '.join(given) or 'none of them'}"
            )
        return given[0]


def marked_mask(
    image: np.ndarray,
    marks: Marks,
    labels: ArrayLike | None,
    refine: bool,
    picture: Picture | None = None,
) -> np.ndarray:
    """Return the mask of the marked object, bool (H, W).

    Args:
        image: uint8 (H, W, 3).
        marks: its marks.
        labels: of points, 1 on the object and 0 beside it; None: all are on the object.
        refine: whether boxes, points and scribbles are refined by GrabCut.
        picture: what the image was read from; it may know the orientation of the camera.

    Raises:
        ValueError: the marks are empty, unreadable, or do not fit the picture.
    """
    kind = marks.kind
    if labels is not None and kind != "points":
        raise ValueError("labels belong to points, and there are none")
    if kind == "mask":
        mask = _read_fitting(marks.mask, kind, image, picture) != 0
    elif kind == "box":
        boxes = _boxes(marks.box, image)
        mask = np.logical_or.reduce([mask_of_box(image, tuple(box), refine) for box in boxes])
    else:
        if kind == "points":
            scribble = draw_points(image.shape[:2], *_points(marks.points, labels, image), refine)
        else:
            scribble = _read_fitting(marks.scribble, kind, image, picture)
            # A drawing program may write another value than 1.
            scribble = np.where(np.isin(scribble, (0, BACKGROUND)), scribble, OBJECT)
        if not (scribble == OBJECT).any():
            raise ValueError(f"no pixel of the object is marked by the {kind}")
        mask = mask_of_scribble(image, scribble, refine)
    if not mask.any():
        raise ValueError(f"the {kind} is empty")
    return mask


def _read_fitting(
    labels: Picture | None, kind: str, image: np.ndarray, picture: Picture | None
) -> np.ndarray:
    """Return the labels (H, W) of a mask or scribble, which must have the size of its picture."""
    assert labels is not None
    shape = image.shape[:2]
    read = as_shown(read_marks(labels, binary=kind == "mask"), shape, picture)
    if read.shape != shape:
        turned = ""
        if read.shape == shape[::-1]:
            turned = "; if the picture has an EXIF orientation, turn the marks in the same way"
        raise ValueError(
            f"the {kind} is {read.shape[1]}×{read.shape[0]} pixels and its picture "
            f"{shape[1]}×{shape[0]}{turned}"
        )
    return read


def _boxes(box: ArrayLike | None, image: np.ndarray) -> np.ndarray:
    """Return boxes (n, 4), which must lie within the image."""
    boxes, (height, width) = _rows(box, 4, "a box"), image.shape[:2]
    for x0, y0, x1, y1 in boxes.round():
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(
                f"the box {x0:g},{y0:g},{x1:g},{y1:g} is no x0,y0,x1,y1 within the picture of "
                f"{width}×{height} pixels"
            )
    return boxes


def _points(
    points: ArrayLike | None, labels: ArrayLike | None, image: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return points (n, 2), which must lie within the image, and their labels (n,)."""
    rows, (height, width) = _rows(points, 2, "a point"), image.shape[:2]
    for x, y in rows:
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"the point {x:g},{y:g} is outside the picture of {width}×{height} pixels"
            )
    signs = np.ones(len(rows), int) if labels is None else np.atleast_1d(np.asarray(labels))
    if signs.shape != (len(rows),) or not np.isin(signs, (0, 1)).all():
        raise ValueError(f"expected one label, 0 or 1, for each of {len(rows)} points")
    return rows, signs


def _rows(values: ArrayLike | None, length: int, kind: str) -> np.ndarray:
    """Return one or several rows of numbers as (n, length)."""
    try:
        rows = np.atleast_2d(np.asarray(values, np.float64))
    except (TypeError, ValueError):
        rows = np.empty((0, 0))
    if rows.ndim != 2 or rows.shape[1] != length or not len(rows) or not np.isfinite(rows).all():
        raise ValueError(f"{kind} is {length} numbers, not {values!r}")
    return rows
