"""The formats of label maps that annotation tools and trainings read.

Each connected part of a class is an object of its own, since a label map does not tell objects apart.
"""

import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pycocotools import mask as coco_mask

from util.data.label_maps import index_image
from util.data.masks import UNREADABLE
from util.runtime.files import write_atomically

_KEY = "uncertainty"


class Part(NamedTuple):
    """A connected part of a class: label, left and top of its box, and its pixels, bool (h, w)."""

    label: int
    left: int
    top: int
    region: np.ndarray


def parts_of(label_map: np.ndarray) -> Iterator[Part]:
    """Yield the connected parts of a label map, uint8 (H, W), class by class."""
    for label in np.unique(label_map[label_map > 0]).tolist():
        region = (label_map == label).astype(np.uint8)
        count, numbers, boxes, _ = cv2.connectedComponentsWithStats(region, connectivity=8)
        for number in range(1, count):
            left, top, width, height = boxes[number, : cv2.CC_STAT_AREA].tolist()
            window = np.s_[top : top + height, left : left + width]
            yield Part(label, left, top, numbers[window] == number)


def outlines_of(part: Part, on_edges: bool = False) -> list[np.ndarray]:
    """Return the outline of a part as polygons (n, 2) of x and y, n ≥ 3; holes are filled.

    Args:
        part: one part of a label map.
        on_edges: the polygons run along the edges of the outermost pixels, for programs that fill what
            is inside, as pycocotools does; otherwise through their centres, as whole numbers, for
            those that draw the outline too, as OpenCV does.
    """
    scale = 2 if on_edges else 1
    region = part.region.astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
    contours, _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outlines = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, 0.7 * scale, True)
        if len(points) < 3:  # As narrow as this, it must not be simplified.
            points = contour
        corners = (points[:, 0] + 0.5) / scale if on_edges else points[:, 0]
        outlines.append(corners + np.array([part.left, part.top]))
    return [outline for outline in outlines if len(outline) > 2]


def write_labels(path: Path, label_map: np.ndarray, uncertainty: float) -> None:
    """Write a label map as a PNG of indices, with the uncertainty of its picture as a text."""
    text = PngInfo()
    text.add_text(_KEY, repr(uncertainty))
    image = index_image(label_map)
    write_atomically(path, lambda file: image.save(file, "PNG", pnginfo=text))


def read_labels(path: Path, classes: int = 255) -> tuple[np.ndarray, float | None]:
    """Return a label map and its uncertainty, None where another program wrote the file.

    Raises:
        ValueError: the file is no label map of 1, 2, … `classes`.
    """
    try:
        with Image.open(path) as image:
            label_map, text = np.array(image), image.info.get(_KEY)
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read: {error}; delete it") from error
    if label_map.ndim != 2:
        raise ValueError(f"{path} holds colours instead of class indices; delete it")
    if (beyond := label_map[label_map > classes]).size:
        raise ValueError(
            f"{path} holds the value {beyond.min()}, but the classes are 1 to {classes}, as in "
            "classes.txt; correct it, or delete it"
        )
    return label_map.astype(np.uint8), None if text is None else float(text)


def write_jpeg(path: Path, image: Image.Image) -> None:
    """Write a JPEG of high quality."""
    # In memory first: Pillow does not notice where a full disk cuts the file of a JPEG off.
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    write_atomically(path, file.getvalue())


def write_probability(path: Path, probability: np.ndarray) -> None:
    """Write a probability (H, W) in [0, 1] as a grey PNG, 255 for 1."""
    image = Image.fromarray((255 * probability).round().astype(np.uint8))
    write_atomically(path, lambda file: image.save(file, "PNG"))


def write_labelme(path: Path, picture: Path, label_map: np.ndarray, classes: Sequence[str]) -> None:
    """Write the polygons of a label map for labelme, which finds the picture by a relative path."""
    height, width = label_map.shape
    shapes = [
        {
            "label": classes[part.label - 1],
            "points": points.tolist(),
            "group_id": None,
            "shape_type": "polygon",
            "flags": {},
        }
        for part in parts_of(label_map)
        for points in outlines_of(part)
    ]
    content = {
        "version": "5.0.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": os.path.relpath(picture, path.parent),
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    write_atomically(path, json.dumps(content, indent=1))


def write_yolo(path: Path, label_map: np.ndarray) -> None:
    """Write the polygons of a label map for YOLO: class, then x and y as shares, a line each."""
    height, width = label_map.shape
    lines = []
    for part in parts_of(label_map):
        for points in outlines_of(part):
            shares = (points + 0.5) / (width, height)
            numbers = " ".join(f"{value:.6f}" for value in shares.ravel())
            lines.append(f"{part.label - 1} {numbers}\n")
    write_atomically(path, "".join(lines))


def write_yolo_classes(folder: Path, classes: Sequence[str]) -> None:
    """Write data.yaml, which names the classes 0, 1, … of YOLO's files."""
    names = yaml.safe_dump({"names": dict(enumerate(classes))}, sort_keys=False, allow_unicode=True)
    write_atomically(folder / "data.yaml", names)


class CocoFile:
    """A COCO instances file that grows by one picture at a time.

    Args:
        classes: names of the classes, which become the categories 1, 2, …
        polygons: whether parts are polygons, without their holes, or exact run-length codes.
    """

    def __init__(self, classes: Sequence[str], polygons: bool):
        self.polygons = polygons
        self.content: dict[str, list[dict[str, Any]]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": n, "name": name} for n, name in enumerate(classes, 1)],
        }

    def add(self, file_name: str, label_map: np.ndarray) -> None:
        """Add a picture and its label map, uint8 (H, W)."""
        height, width = label_map.shape
        images, annotations = self.content["images"], self.content["annotations"]
        image_id = len(images) + 1
        about = {"id": image_id, "file_name": file_name, "height": height, "width": width}
        images.append(about)
        for part in parts_of(label_map):
            segmentation: Any = _run_lengths(part, height, width)
            if self.polygons:
                segmentation = [line.ravel().tolist() for line in outlines_of(part, on_edges=True)]
            box = [part.left, part.top, part.region.shape[1], part.region.shape[0]]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": part.label,
                    "segmentation": segmentation,
                    "area": int(part.region.sum()),
                    "bbox": box,
                    "iscrowd": 0,
                }
            )

    def write(self, path: Path) -> None:
        """Write the file."""
        write_atomically(path, json.dumps(self.content))


def _run_lengths(part: Part, height: int, width: int) -> dict[str, Any]:
    """Return a part as COCO's compressed run-length code of the whole picture."""
    whole = np.zeros((height, width), np.uint8, order="F")
    rows, columns = part.region.shape
    whole[part.top : part.top + rows, part.left : part.left + columns] = part.region
    counts = coco_mask.encode(whole)["counts"].decode("ascii")
    return {"size": [height, width], "counts": counts}
