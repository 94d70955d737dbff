"""Reading a COCO instances file: the images with annotations, each with what to draw on its mask."""

import json
import os
from typing import NamedTuple

from util.data.folds import IGNORE, MAX_CLASSES
from util.runtime.errors import UserError


class AnnotatedImage(NamedTuple):
    """An image with its annotations.

    file_name: relative to the folder of images; height, width: pixels; annotations: JSON bytes
    of a list of (annotation id, label, segmentation): compact, since there are 120,000 images.
    """

    file_name: str
    height: int
    width: int
    annotations: bytes

    @property
    def mask_name(self):
        """The file name with the ending of a mask."""
        return os.path.splitext(self.file_name)[0] + ".png"


class Instances(NamedTuple):
    """images: those with annotations, by image id; total: how many there are with and without;
    categories: names of classes 1, 2, …, which are the categories in the order of their ids."""

    images: list[AnnotatedImage]
    total: int
    categories: list[str]


def read_instances(path):
    """The Instances of the file `path`; the label of a crowd region is 255.

    Raises UserError for a file that is missing or holds no COCO instances, and for an annotation
    of an unknown image or category.
    """
    content = _read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise _no_instances(path, f"no list {key}")
    images = _by_id(path, content, "images", {"file_name": str, "height": int, "width": int})
    for image in images.values():
        if min(image["height"], image["width"]) < 1:
            raise _no_instances(path, f"image {image['id']} has no pixels")
    categories = _by_id(path, content, "categories", {"name": str})
    if len(categories) > MAX_CLASSES:
        raise UserError(f"{path} has {len(categories)} categories; at most {MAX_CLASSES} fit")
    labels = {category: rank for rank, category in enumerate(sorted(categories), 1)}
    drawn = {}
    for annotation in content["annotations"]:
        image, drawing = _drawing(path, annotation, images, labels)
        drawn.setdefault(image, []).append(drawing)
    records = [
        AnnotatedImage(
            *(images[image][key] for key in ("file_name", "height", "width")),
            json.dumps(drawn.pop(image), separators=(",", ":")).encode(),
        )
        for image in sorted(drawn)
    ]
    _check_names(path, records)
    return Instances(records, len(images), [categories[key]["name"] for key in sorted(categories)])


def _read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist: give the folder of COCO 2014 as --coco, with annotations/, "
            "train2014/ and val2014/"
        ) from error
    except ValueError as error:
        raise _no_instances(path, f"it is damaged or no JSON ({error})") from error


def _no_instances(path, why):
    return UserError(
        f"{path} is no COCO instances file, {why}: give annotations/instances_*2014.json of COCO"
    )


def _by_id(path, content, key, fields):
    """Entries of a list of the file by id, each of which has `fields` (name → type)."""
    entries = {}
    for number, entry in enumerate(content[key]):
        fields_of_entry = entry if isinstance(entry, dict) else {}
        for field, kind in {"id": int, **fields}.items():
            if not isinstance(fields_of_entry.get(field), kind):
                raise _no_instances(path, f"{key}[{number}] has no {field}")
        if entries.setdefault(entry["id"], entry) is not entry:
            raise _no_instances(path, f"{key} has the id {entry['id']} twice")
    return entries


def _drawing(path, annotation, images, labels):
    """The image id of an annotation, and what to draw: (annotation id, label, segmentation)."""
    fields = annotation if isinstance(annotation, dict) else {}
    number = fields.get("id")
    for field in ("image_id", "category_id", "segmentation"):
        if field not in fields:
            raise _no_instances(path, f"annotation {number} has no {field}")
    image, category = fields["image_id"], fields["category_id"]
    for kind, key, known in (("image", image, images), ("category", category, labels)):
        if not isinstance(key, int) or key not in known:
            raise UserError(
                f"{path}: annotation {number} names the {kind} {key}, which the file does not have"
            )
    label = IGNORE if fields.get("iscrowd") else labels[category]
    return image, (number, label, fields["segmentation"])


def _check_names(path, images):
    seen = {}
    for image in images:
        name = os.path.normpath(image.file_name)
        if os.path.isabs(name) or name.split(os.sep)[0] == os.pardir:
            raise UserError(f"{path}: the image {image.file_name} lies outside the image folder")
        other = seen.setdefault(image.mask_name, image.file_name)
        if other is not image.file_name:
            raise UserError(f"{path}: {other} and {image.file_name} would share one mask")
