"""COCO's annotations: reading an instances file, and drawing index masks of its segmentations."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from pydantic import BaseModel, PositiveInt, ValidationError

from util.data.folds import IGNORE, MAX_CLASSES
from util.preparation.masks import stack_regions
from util.preparation.shared import FilePath
from util.runtime.errors import UserError

_SMALLEST_POLYGON = 6  # numbers: three points


class AnnotatedImage(NamedTuple):
    """An image with its annotations."""

    file_name: str  # relative to the folder of images
    height: int
    width: int
    # JSON of a list of (annotation id, label, segmentation): compact, for there are 120,000 images.
    annotations: bytes

    @property
    def mask_name(self) -> str:
        """The file name with the suffix of a mask."""
        return os.path.splitext(self.file_name)[0] + ".png"


class Instances(NamedTuple):
    """The content of an instances file."""

    images: list[AnnotatedImage]  # those with annotations, by image id
    total: int  # number of images with and without annotations
    categories: list[str]  # names of the classes 1, 2, …: the categories in the order of their ids


class _Image(BaseModel, strict=True):
    id: int
    file_name: str
    height: PositiveInt
    width: PositiveInt


class _Category(BaseModel, strict=True):
    id: int
    name: str


class _Annotation(BaseModel, strict=True):
    id: Any = None
    image_id: int
    category_id: int
    segmentation: Any
    iscrowd: Any = 0


class _File(BaseModel, strict=True):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def read_instances(path: FilePath) -> Instances:
    """Read an instances file; the label of a crowd region is 255.

    Raises:
        UserError: The file is no COCO instances file, two images would share a mask, or an
            annotation names an unknown image or category.
    """
    try:
        content = _File.model_validate_json(Path(path).read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "file"
        raise UserError(
            f"{path} is no COCO instances file ({where}: {problem['msg']}): give "
            "annotations/instances_*2014.json of COCO"
        ) from None
    images = {image.id: image for image in content.images}
    categories = {category.id: category.name for category in content.categories}
    if len(images) < len(content.images) or len(categories) < len(content.categories):
        raise UserError(f"{path}: two images, or two categories, have the same id")
    if len(categories) > MAX_CLASSES:
        raise UserError(f"{path} has {len(categories)} categories; at most {MAX_CLASSES} fit")
    labels = {category: rank for rank, category in enumerate(sorted(categories), 1)}
    drawings: dict[int, list[tuple[Any, int, Any]]] = {}
    for annotation in content.annotations:
        if annotation.image_id not in images or annotation.category_id not in labels:
            raise UserError(
                f"{path}: annotation {annotation.id} names image {annotation.image_id} and "
                f"category {annotation.category_id}, which the file does not have both"
            )
        label = IGNORE if annotation.iscrowd else labels[annotation.category_id]
        drawing = (annotation.id, label, annotation.segmentation)
        drawings.setdefault(annotation.image_id, []).append(drawing)
    records: dict[str, AnnotatedImage] = {}
    for key in sorted(drawings):
        image = images[key]
        name = os.path.normpath(image.file_name)
        if os.path.isabs(name) or name.split(os.sep)[0] == os.pardir:
            raise UserError(f"{path}: the image {image.file_name} lies outside the image folder")
        data = json.dumps(drawings.pop(key), separators=(",", ":")).encode()
        record = AnnotatedImage(image.file_name, image.height, image.width, data)
        other = records.setdefault(record.mask_name, record)
        if other is not record:
            raise UserError(f"{path}: {other.file_name} and {name} would share one mask")
    names = [categories[key] for key in sorted(categories)]
    return Instances(list(records.values()), len(images), names)


def draw_mask(
    height: int, width: int, annotations: Iterable[tuple[Any, int, Any]], where: str
) -> np.ndarray:
    """Return the index mask, uint8 (height, width), of the annotations of an image.

    An annotation is its id, label and segmentation: polygons [x0, y0, x1, y1, …] or a run-length
    code {size, counts}, compressed or not.

    Raises:
        UserError: A segmentation is malformed; the message begins with `where`.
    """
    regions = []
    for number, label, segmentation in annotations:
        try:
            regions.append((label, _region(segmentation, height, width)))
        except ValueError as error:
            raise UserError(f"{where}: annotation {number}: {error}") from error
    return stack_regions(height, width, regions)


def _region(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Return where a segmentation is, bool (height, width); ValueError if it is malformed."""
    if isinstance(segmentation, list):
        # pycocotools would take two points for a box.
        polygons = [_points(polygon, height, width) for polygon in segmentation]
        polygons = [points for points in polygons if len(points) >= _SMALLEST_POLYGON]
        if not polygons:
            return np.zeros((height, width), bool)
        code = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    elif isinstance(segmentation, dict):
        code = _run_lengths(segmentation, height, width)
    else:
        raise ValueError("its segmentation is neither polygons nor a run-length code")
    return coco_mask.decode(code).astype(bool)


def _points(polygon: Any, height: int, width: int) -> list[float]:
    """Return the numbers of a polygon; ValueError if it is malformed."""
    try:
        points = np.asarray(polygon, np.float64)
    except TypeError as error:
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
    valid = isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts)
    if not valid or sum(counts or []) != height * width:
        raise ValueError(f"its runs do not add up to {height}×{width} pixels")
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)


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
