"""Exports of labelling tools in little, as the tools write them: eight pictures with an object each."""

import base64
import io
import json

import numpy as np
from PIL import Image

from tests.util.coco_files import annotation, run_lengths
from tests.util.prepare_files import noise, write_image
from util.preparation.pascal import voc_colour

SIZE = HEIGHT, WIDTH = 48, 60
COUNT = 8
TEST = range(4, COUNT)  # the pictures to test on
CLASSES = ("bolt", "nut")  # of the pictures with even and with odd numbers


def box_of(number):
    """Left, top, right and bottom of the object in a picture."""
    return 6 + number, 4 + 2 * number, 40 + number, 30 + number


def corners(number):
    left, top, right, bottom = map(float, box_of(number))
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def polygon(number):
    return [value for corner in corners(number) for value in corner]


def region(left, top, right, bottom, value=1):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = value
    return mask


def expected(number):
    """The index mask of a picture."""
    return region(*box_of(number), number % 2 + 1)


def write_pictures(folder, name="p{}.jpg"):
    for number in range(COUNT):
        write_image(folder / name.format(number), noise(SIZE, number))


def write_json(path, content, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))


def runs(number, compressed=False):
    """The run-length code of an object."""
    return run_lengths(np.sign(expected(number)), compressed)


def coco(numbers=range(COUNT), name="p{}.jpg", ids=(1, 2), **more):
    """The content of an instances file."""
    return {
        "images": [
            {"id": n, "file_name": name.format(n), "height": HEIGHT, "width": WIDTH, **more}
            for n in numbers
        ],
        "annotations": [annotation(n, n, ids[n % 2], [polygon(n)]) for n in numbers],
        "categories": [{"id": key, "name": name} for key, name in zip(ids, CLASSES, strict=True)],
    }


def write_cvat_coco(root):
    """CVAT, "COCO 1.0"; a rectangle has no mask there."""
    write_pictures(root / "images/cam1")
    content = coco(name="cam1/p{}.jpg")
    for one in content["annotations"]:
        one["attributes"] = {"occluded": False}
    brush = content["annotations"][2]
    brush |= {"segmentation": runs(2)}
    content["annotations"].append(content["annotations"][0] | {"id": 9, "segmentation": []})
    write_json(root / "annotations/instances_default.json", content)
    return {n: f"cam1/p{n}" for n in range(COUNT)}, root / "images"


def write_roboflow(root):
    """Roboflow, "COCO": divided, with a category that groups the others."""
    names = {}
    for part, numbers in (("train", range(4)), ("valid", (4, 5)), ("test", (6, 7))):
        content = coco(numbers, "p{}_jpg.rf.0a.jpg")
        for category in content["categories"]:
            category["supercategory"] = "things"
        content["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
        write_json(root / part / "_annotations.coco.json", content)
        for number in numbers:
            names[number] = f"{part}/p{number}_jpg.rf.0a"
            write_image(root / f"{names[number]}.jpg", noise(SIZE, number))
    return names, root


def write_label_studio(root):
    """Label Studio, "COCO", made on Windows: ids from 0, sizes may be null."""
    write_pictures(root / "images")
    content = coco(name="images\\p{}.jpg", ids=(0, 1), width=None, height=None)
    write_json(root / "result.json", content | {"info": {"contributor": "Label Studio"}})
    write_json(root / "notes.json", {"categories": []})
    return {n: f"images/p{n}" for n in range(COUNT)}, root


def labelme_shape(number, kind="polygon", points=None, **more):
    label = CLASSES[number % 2]
    points = corners(number) if points is None else points
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, **more}


def labelme(shapes, image="p0.jpg"):
    """The content of a file of labelme."""
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    head = {"version": "5.5.0", "flags": {}, "imageData": None}
    return head | size | {"shapes": shapes, "imagePath": image}


def png_text(mask):
    data = io.BytesIO()
    Image.fromarray(mask * np.uint8(255)).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def write_labelme(root):
    """labelme: polygons, with and without their kind, a rectangle and a mask."""
    write_pictures(root / "photos")
    for number in range(COUNT):
        (left, top), _, (right, bottom), _ = corners(number)
        shape = labelme_shape(number)
        if number == 1:
            shape = labelme_shape(1, "rectangle", [[right, bottom], [left, top]])
        elif number == 2:
            height, width = int(bottom - top), int(right - left)
            mask = png_text(np.ones((height, width), np.uint8))
            shape = labelme_shape(
                2, "mask", [[left, top], [right - 1, bottom - 1]], mask=mask, flags={}
            )
        elif number == 3:
            del shape["shape_type"]
        content = labelme([shape], f"..\\photos\\p{number}.jpg")
        write_json(root / f"labels/p{number}.json", content)
    return {n: f"p{n}" for n in range(COUNT)}, root / "photos"


def write_yolo(root):
    """YOLO: lines of shares; a picture with an empty file and one without a file have no object."""
    lists = {"train": range(4), "val": TEST}
    for part, numbers in lists.items():
        for number in numbers:
            write_image(root / f"images/{part}/p{number}.jpg", noise(SIZE, number))
            shares = (np.array(corners(number)) / (WIDTH, HEIGHT)).ravel()
            path = root / f"labels/{part}/p{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{number % 2} {' '.join(map(str, shares))}\r\n".encode())
    for name in ("empty", "without"):
        write_image(root / f"images/train/{name}.jpg", noise(SIZE))
    (root / "labels/train/empty.txt").touch()
    (root / "data.yaml").write_text(
        "path: /elsewhere\ntrain: images/train\nval: images/val\nnames: [bolt, nut]\n"
    )
    (root / "train.txt").write_text("data/images/train/p0.jpg\n")
    return {n: f"images/{'train' if n < 4 else 'val'}/p{n}" for n in range(COUNT)}, root


def write_cvat_masks(root):
    """CVAT, "Segmentation mask 1.1": colours of the labels, and instances beside them."""
    colours = {"background": (0, 0, 0), "bolt": (250, 50, 83), "nut": (51, 221, 255)}
    table = np.array([*colours.values()], np.uint8)
    rows = [f"{name}:{','.join(map(str, colour))}::" for name, colour in colours.items()]
    root.mkdir()
    (root / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *rows, ""]))
    write_pictures(root / "JPEGImages")
    for folder in ("SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number in range(COUNT):
        mask = table[expected(number)]
        if number == 1:
            mask[0] = voc_colour(255)
        Image.fromarray(mask).save(root / f"SegmentationClass/p{number}.png")
        Image.fromarray(mask * 0 + 128).save(root / f"SegmentationObject/p{number}.png")
    (root / "ImageSets/Segmentation/default.txt").write_text("p0\np1\n")
    return {n: f"JPEGImages/p{n}" for n in range(COUNT)}, root
