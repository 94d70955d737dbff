"""Reading the files of labelme: a JSON per image with its shapes."""

import base64
import json
import os
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from util.data.masks import UNREADABLE
from util.preparation.exports import Export, json_files
from util.preparation.segmentations import LONGEST, AnnotatedImage, segmentation_region
from util.runtime.errors import UserError

POINTS = {"polygon": 3, "oriented_rectangle": 4, "rectangle": 2, "circle": 2}  # at least; else 1
SIDES = ("Height", "Width")
RADIUS, STROKE = 5, 10  # pixels, with which labelme draws points and lines
_ANGLES = np.linspace(0, 2 * np.pi, 100, endpoint=False)
_CIRCLE = np.column_stack([np.cos(_ANGLES), np.sin(_ANGLES)])


class _File(NamedTuple):
    image: str
    height: int | None
    width: int | None
    shapes: list[tuple[str, str, Any, str | None]]  # label, kind, points and mask


def read_labelme(export: Export, masks: str) -> None:
    """Read the files of labelme in a folder into `export`; the classes are in alphabetical order.

    Raises:
        UserError: A file is damaged.
    """
    contents = {path: _load(path) for path in json_files(masks, "labelme")}
    shapes = [shape for content in contents.values() for shape in content.shapes]
    classes = export.set_classes(sorted({shape[0] for shape in shapes}), masks)
    if {kind for _, kind, *_ in shapes} == {"rectangle"}:
        export.notes.append("warning: all shapes are rectangles, each of which is taken as a mask")
    for path, (name, height, width, shapes) in contents.items():
        drawn = [
            (number, classes[label], shape)
            for number, (label, *shape) in enumerate(shapes, 1)
            if shape[0] != "points"  # Some forks add what a network drew a mask from.
        ]
        data = json.dumps(drawn).encode()
        image = AnnotatedImage(name or path, height, width, data, path, shape_region)
        export.add(image, *([os.path.join(os.path.dirname(path), name)] if name else []), path)


def _load(path: str) -> _File:
    """Return what is needed of a file, which may also hold its image."""
    try:
        content = json.loads(Path(path).read_bytes())
        # Old files do not say the kind of a shape.
        shapes = [
            (
                str(one["label"]),
                str(one.get("shape_type") or "polygon"),
                one["points"],
                one.get("mask"),
            )
            for one in content["shapes"]
        ]
        height, width = (int(content.get(f"image{side}") or 0) or None for side in SIDES)
        if not all(side is None or 0 < side <= LONGEST for side in (height, width)):
            raise ValueError(f"its image has {width}×{height} pixels")
        return _File(str(content.get("imagePath") or ""), height, width, shapes)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is no file of labelme ({error!r}): save it again") from error


def shape_region(shape: tuple[str, Any, str | None], height: int, width: int) -> np.ndarray:
    """Return where a shape (kind, points, mask) is, bool (height, width).

    Raises:
        ValueError: It is malformed.
    """
    kind, points, mask = shape
    try:
        polygon = np.reshape(np.array(points, np.float64), (-1, 2))
    except (TypeError, ValueError, OverflowError):
        raise ValueError("its points are no pairs of numbers") from None
    # This also finds NaN.
    if not (np.abs(polygon) <= 2 * max(height, width)).all():
        raise ValueError(f"a {kind} leaves the image of {width}×{height} pixels by far")
    if len(polygon) < POINTS.get(kind, 1):
        raise ValueError(f"a {kind} has {POINTS.get(kind, 1)} points or more, not {len(polygon)}")
    if kind == "mask":
        left, top = polygon[0].round().astype(int).tolist()
        return _mask_region(str(mask or ""), left, top, height, width)
    if kind in ("line", "linestrip"):
        canvas = np.zeros((height, width), np.uint8)
        cv2.polylines(canvas, [polygon.round().astype(np.int32)], False, 1, STROKE)
        return canvas.astype(bool)
    if kind in ("circle", "point"):
        radius = np.linalg.norm(polygon[1] - polygon[0]) if kind == "circle" else RADIUS
        polygon = polygon[0] + radius * _CIRCLE
    elif kind == "rectangle":
        (left, top), (right, bottom) = polygon[:2]
        polygon = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    elif kind not in POINTS:
        raise ValueError(f"the shape {kind} is not known")
    return segmentation_region([polygon.ravel().tolist()], height, width)


def _mask_region(mask: str, left: int, top: int, height: int, width: int) -> np.ndarray:
    """Return a mask, a PNG in base64, whose first pixel is at `left` and `top`."""
    try:
        with Image.open(BytesIO(base64.b64decode(mask))) as image:
            covered = np.asarray(image.convert("L")) > 0
    except UNREADABLE as error:
        raise ValueError(f"its mask is no image ({error})") from error
    if left < 0 or top < 0:
        raise ValueError("its mask leaves the image")
    region = np.zeros((height, width), bool)
    place = region[top : top + covered.shape[0], left : left + covered.shape[1]]
    place[:] = covered[: place.shape[0], : place.shape[1]]
    return region
