"""COCO 2014 in little: its folders and every kind of annotation, a few images."""

import json

import numpy as np
from pycocotools import mask as coco_mask

from tests.util.prepare_files import noise, write_image

HEIGHT, WIDTH = 48, 64
CATEGORIES = {90: "toothbrush", 1: "person", 18: "dog"}  # classes 3, 1 and 2
ODD = "COCO é 1.jpg"  # a name with a letter beyond ASCII and a blank


def box(top, left, bottom, right):
    return [left, top, right, top, right, bottom, left, bottom]


def region(top, left, bottom, right):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def run_lengths(mask, compressed):
    """The run-length code of a mask as COCO writes it: columns first, beginning with zeros."""
    if compressed:
        code = coco_mask.encode(np.asfortranarray(mask))
        return {"size": list(mask.shape), "counts": code["counts"].decode()}
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, flat.size]).tolist()}


def annotation(number, image, category, segmentation, iscrowd=0):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
        "iscrowd": iscrowd,
        "area": 1.0,
        "bbox": [0, 0, 1, 1],
    }


def instances(names, annotations):
    images = [
        {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH, "license": 3}
        for number, name in names.items()
    ]
    categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


TRAIN = instances(
    {9: "COCO_9.jpg", 2: ODD, 7: "COCO_7.jpg", 5: "COCO_5.jpg"},
    [
        # a small dog in a big person, the dog first; parts of one instance that overlap
        annotation(1, 9, 18, [box(10, 10, 20, 20)]),
        annotation(2, 9, 1, [box(0, 0, 30, 30), box(20, 20, 40, 60)]),
        # a crowd within a toothbrush, and one over it
        annotation(3, 2, 90, run_lengths(region(5, 5, 45, 60), compressed=True)),
        annotation(4, 2, 1, run_lengths(region(8, 8, 12, 12), compressed=False), iscrowd=1),
        annotation(5, 2, 18, run_lengths(region(0, 0, 48, 8), compressed=False), iscrowd=1),
        # nothing to draw
        annotation(6, 5, 18, []),
        annotation(7, 5, 18, [[3, 3, 9, 9]]),
    ],
)
VAL = instances({4: "COCO_4.jpg"}, [annotation(8, 4, 18, [box(1, 1, 47, 63)])])


def expected_masks():
    first = region(0, 0, 30, 30) | region(20, 20, 40, 60)
    first[10:20, 10:20] = 2
    second = 3 * region(5, 5, 45, 60)
    second[:, :8] = 255
    second[8:12, 8:12] = 255
    return {
        "annotations/train2014/COCO_9.png": first,
        "annotations/train2014/COCO é 1.png": second,
        "annotations/train2014/COCO_5.png": np.zeros_like(first),
        "annotations/val2014/COCO_4.png": 2 * region(1, 1, 47, 63),
    }


def write_json(coco, part, content):
    path = coco / "annotations" / f"instances_{part}2014.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def write_coco(folder):
    """Write annotations/ and the folders of images into `folder`."""
    for part, content in (("train", TRAIN), ("val", VAL)):
        write_json(folder, part, content)
        for image in content["images"]:
            write_image(folder / f"{part}2014" / image["file_name"], noise((HEIGHT, WIDTH)))
