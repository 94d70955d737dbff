"""Reading YOLO segmentation labels: a text file per image with a polygon per line."""

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from util.preparation.exports import Export, files_under
from util.preparation.segmentations import AnnotatedImage, segmentation_region
from util.runtime.errors import UserError
from util.runtime.texts import read_text

YAML = (".yaml", ".yml")
_LABEL = re.compile(r"\s*\d+(\.0*)?([ \t]+-?[\d.]+(e-?\d+)?){4,}\s*(\n|$)", re.IGNORECASE)
_SMALLEST, _QUADRANGLE = 7, 9  # fields: the class and three or four points


def is_labels(path: str) -> bool:
    """Return whether a text file begins with a line of YOLO: a class and numbers."""
    with contextlib.suppress(UserError):
        return bool(_LABEL.match(read_text(path)))
    return False


def read_yolo(export: Export, masks: str) -> None:
    """Read the labels in a folder and its folders into `export`; class 0 of YOLO is class 1.

    An image without a file is one without objects if its folder has images with files.

    Raises:
        UserError: A label is malformed, all are boxes, or nothing names the classes.
    """
    source, names = _class_names(masks, export.class_names)
    classes = export.set_classes(names.values(), source)
    labels = boxes = quadrangles = 0
    for path in files_under(masks, (".txt",)):
        if export.images.find(path) is None and not is_labels(path):
            continue  # a list, or class names
        drawn = []
        for number, line in enumerate(read_text(path).split("\n"), 1):
            try:
                fields = [float(word) for word in line.split()]
            except ValueError:
                fields = [0]
            if not fields:
                continue
            box = len(fields) in (5, 6)
            if not box and (len(fields) < _SMALLEST or len(fields) % 2 == 0):
                what = f"is no label of YOLO (class x y x y x y …): {line.strip()[:60]!r}"
                raise UserError(f"{path} line {number} {what}")
            if fields[0] not in names:
                what = f"{source} does not name the class {fields[0]:g}"
                raise UserError(f"{path} line {number}: {what}")
            labels, boxes = labels + 1, boxes + box
            quadrangles += len(fields) == _QUADRANGLE
            if not box:
                drawn.append((number, classes[names[int(fields[0])]], fields[1:]))
        data = json.dumps(drawn).encode()
        export.add(AnnotatedImage(path, None, None, data, path, relative_region), path)
    export.check_boxes(boxes, labels, masks)
    if labels and quadrangles == labels:
        export.notes.append(
            "warning: all labels have four points, as oriented boxes do; each is taken as a mask"
        )
    labelled = {os.path.dirname(image) for image in export.masks}
    for image in export.images.parts:
        if image not in export.masks and os.path.dirname(image) in labelled:
            export.masks[image] = AnnotatedImage(image, None, None, b"[]", masks)


def relative_region(numbers: Sequence[float], height: int, width: int) -> np.ndarray:
    """Return where a polygon (x0, y0, x1, …), in shares of the sides, is, bool (height, width)."""
    points = np.reshape(numbers, (-1, 2)) * (width, height)
    return segmentation_region([points.ravel().tolist()], height, width)


def _class_names(masks: str, given: Sequence[str] | None) -> tuple[str, Mapping[int, str]]:
    """Return what names the classes, and id → name."""
    above = Path(masks).absolute().parents[:2]  # The labels may be export/train/labels.
    nearby = [str(folder / "data.yaml") for folder in above if (folder / "data.yaml").is_file()]
    named = _named_in(files_under(masks, YAML)) or _named_in(nearby[:1])
    for folder in (Path(masks), above[0]):
        path = str(folder / "classes.txt")  # that of Label Studio
        if os.path.isfile(path):
            names = filter(None, map(str.strip, read_text(path).split("\n")))
            named[path] = dict(enumerate(names))
            break
    if not named:
        if not given:
            raise UserError(
                f"{masks}: no data.yaml names the classes; put it there, or give --class_names a,b,c"
            )
        return "--class_names", dict(enumerate(given))
    first, *others = named
    for other in others:
        if named[other] != named[first]:
            raise UserError(
                f"{first} and {other} name different classes: keep one of them, or give the folder of one"
            )
    return first, named[first]


def _named_in(paths: Sequence[str]) -> dict[str, dict[int, str]]:
    """Return the classes, id → name, that the descriptions at `paths` name, if they name any."""
    named: dict[str, dict[int, str]] = {}
    for path in paths:
        try:
            content = yaml.safe_load(read_text(path))
            names = content["names"] if isinstance(content, dict) and "names" in content else {}
            pairs = enumerate(names) if isinstance(names, list) else names.items()
            found = sorted((int(key), str(name)) for key, name in pairs)
        except (yaml.YAMLError, ValueError, AttributeError) as error:
            text = " ".join(str(error).split())
            raise UserError(f"{path} does not name classes as YOLO does: {text}") from error
        if found and "kpt_shape" in content:
            raise UserError(f"{path} describes keypoints: export polygons")
        if found:
            named[path] = dict(found)
    return named
