"""Preparation of what labelling tools export: miniatures of their exports, and the quirks of files."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.util import export_files
from tests.util.export_files import (
    CLASSES,
    COUNT,
    HEIGHT,
    SIZE,
    TEST,
    WIDTH,
    coco,
    corners,
    expected,
    labelme,
    labelme_shape,
    png_text,
    polygon,
    region,
    runs,
    write_json,
    write_pictures,
)
from tests.util.prepare_files import forget_classes, noise, write_image
from util.checks.data import data_rows
from util.checks.rows import ERROR
from util.config import load_config
from util.data.images import read_mask
from util.data.lists import read_entries
from util.predict.formats import CocoFile, write_labelme, write_yolo, write_yolo_classes
from util.preparation.labelme import shape_region
from util.preparation.pascal import voc_colour
from util.prepare_custom import main


def prepare(images, masks, *options):
    """The tool with one worker."""
    words = ["--name", "mine", "--images", str(images), "--masks", str(masks), "--out", "root"]
    main([*words, "--workers", "1", "--min_pixels", "1", "--folds", "seen", *options])


def prepare_coco(content, *options):
    """The tool with a COCO file of this content, and the pictures beside it."""
    write_json(Path("a.json"), content)
    prepare("pics", "a.json", *options)


@pytest.fixture
def folder(folder):
    write_pictures(folder / "pics")
    return folder


def config():
    return load_config(
        "config/mine/mine_split0_resnet50.yaml", ["batch_size", "1", "base_batch_size", "1"]
    )


def mask_of(name):
    return read_mask(f"root/index_masks/{name}.png")


@pytest.fixture
def fails(error_line):
    """A function that runs the tool with an error, and returns the line of this error."""
    return partial(error_line, prepare)


@pytest.fixture
def coco_fails(error_line):
    return partial(error_line, prepare_coco)


@pytest.mark.parametrize(
    ("tool", "form", "line"),
    [
        ("cvat_coco", "COCO instances", "boxes without masks, left out: 1 of 9 annotations"),
        ("roboflow", "COCO instances", "no class, since it only groups others: things"),
        ("label_studio", "COCO instances", ""),
        ("labelme", "files of labelme", ""),
        ("yolo", "YOLO segmentation labels", "images without objects, all background: 2"),
        ("cvat_masks", "coloured masks with labelmap.txt", ""),
    ],
)
def test_the_export_of_a_tool_becomes_a_dataset(folder, capsys, tool, form, line):
    names, images = getattr(export_files, f"write_{tool}")(folder / "export")
    (folder / "val.txt").write_text("".join(f"{names[number]}\n" for number in TEST))
    options = [] if tool == "roboflow" else ["--val", "val.txt"]
    prepare(images, "export", *options)
    printed = capsys.readouterr().out
    assert f"--masks is read as {form}; --format chooses another form" in printed
    assert line in printed
    assert ("val is what lies in the folders valid, val and test" in printed) == (not options)
    for number, name in names.items():
        mask = expected(number)
        if tool == "cvat_masks" and number == 1:
            mask[0] = 255
        np.testing.assert_array_equal(mask_of(name), mask)
    assert config().class_names == [*CLASSES]
    entries = {part: read_entries("root", f"lists/mine/{part}.txt") for part in ("train", "val")}
    made = {image for part in entries.values() for image, _ in part}
    others = {"images/images/train/empty.jpg", "images/images/train/without.jpg"}
    assert made - others == {f"images/{name}.jpg" for name in names.values()}
    assert len(made) == COUNT + (2 if tool == "yolo" else 0)
    assert {image for image, _ in entries["val"]} == {
        f"images/{names[number]}.jpg" for number in TEST
    }
    assert [row for row in data_rows(config(), True, 1, "") if row.status == ERROR] == []
    prepare(images, "export", *options)
    assert ", 0 of them written now" in capsys.readouterr().out


def of_annotations(change):
    def apply(content):
        for annotation in content["annotations"]:
            number = annotation["image_id"]
            annotation |= change(number)

    return apply


def segmented(make):
    return of_annotations(lambda number: {"segmentation": make(number)})


def of_images(**values):
    def apply(content):
        for image in content["images"]:
            image |= values

    return apply


def renamed(name):
    def apply(content):
        for image in content["images"]:
            image["file_name"] = name.format(image["id"])

    return apply


def text_ids(content):
    for image in content["images"]:
        image["id"] = f"i{image['id']}"
    for annotation in content["annotations"]:
        annotation["image_id"] = f"i{annotation['image_id']}"
        annotation["category_id"] = str(annotation["category_id"])


def other_ids(content):
    """Gaps, an order that is neither that of the list nor that of text, and whole floats."""
    keys = {1: 9, 2: 10.0}
    for annotation in content["annotations"]:
        annotation["category_id"] = keys[annotation["category_id"]]
    content["categories"] = [{"id": 10, "name": "nut"}, {"id": 9, "name": "bolt"}]


def same_name_as_its_parent(content):
    content["categories"].insert(0, {"id": 0, "name": "bolt", "supercategory": "none"})
    content["categories"][1]["supercategory"] = "bolt"


def of_other_images(content):
    content["annotations"].append(content["annotations"][0] | {"image_id": 77})


def listed_elsewhere(content):
    content["images"].append({"id": 50, "file_name": "far/away.jpg"})


QUIRKS = {
    "flat list": segmented(polygon),
    "pairs": segmented(corners),
    "pairs in a list": segmented(lambda number: [corners(number)]),
    "two points and nothing beside it": segmented(lambda n: [polygon(n), [1, 2, 3, 4], []]),
    "beyond the edge": segmented(lambda n: [polygon(n), [60, 50, 70, 50, 70, 60]]),
    "runs": segmented(runs),
    "runs as floats": segmented(lambda n: runs(n) | {"counts": [*map(float, runs(n)["counts"])]}),
    "compressed runs": segmented(lambda number: runs(number, compressed=True)),
    "crowds": of_annotations(lambda number: {"segmentation": runs(number), "iscrowd": 1}),
    "iscrowd as text": of_annotations(lambda number: {"iscrowd": "0"}),
    "iscrowd null": of_annotations(lambda number: {"iscrowd": None}),
    "ids as text": text_ids,
    "other ids": other_ids,
    "floats": of_images(height=48.0, width=60.0),
    "no sizes": of_images(height=None, width=0),
    "a backslash": renamed("D:\\data\\p{}.jpg"),
    "an address": renamed("https://example.org/p{}.jpg"),
    "a folder above": renamed("../../p{}.jpg"),
    "another type": renamed("p{}.PNG"),
    "no type": renamed("p{}"),
    "a parent of the same name": same_name_as_its_parent,
    "unknown images": of_other_images,
    "absent images": listed_elsewhere,
}
LINES = {
    "crowds": "annotations with iscrowd 1: 8, read as --crowd object; see --crowd ignore",
    "unknown images": "annotations of images that a.json does not list: 1",
    "absent images": "warning: annotated images that are not in pics: 1, such as far/away.jpg",
}


@pytest.mark.parametrize("quirk", QUIRKS)
def test_quirks_of_coco_files_change_nothing(folder, capsys, quirk):
    content = coco()
    QUIRKS[quirk](content)
    prepare_coco(content)
    assert LINES.get(quirk, "") in capsys.readouterr().out
    for number in range(COUNT):
        np.testing.assert_array_equal(mask_of(f"p{number}"), expected(number))
    assert config().class_names == [*CLASSES]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("form", ["coco", "labelme"])
def test_json_in_any_encoding(folder, encoding, form):
    if form == "coco":
        content = coco()
        content["categories"][0]["name"] = "größer"
        write_json(folder / "labels/a.json", content, encoding)
    else:
        for number in range(COUNT):
            shape = labelme_shape(number) | ({} if number % 2 else {"label": "größer"})
            content = labelme([shape], f"p{number}.jpg")
            write_json(folder / f"labels/p{number}.json", content, encoding)
    prepare("pics", "labels", "--class_names", "größer,nut")
    np.testing.assert_array_equal(mask_of("p3"), expected(3))
    assert config().class_names == ["größer", "nut"]


def test_names_of_the_background_are_classes_only_if_the_user_says_so(folder, capsys, error_line):
    """datumaro makes a category of VOC's background, and labelme2coco one of labelme's holes."""
    content = coco()
    for key, name in ((0, "background"), (3, "_background_")):
        content["categories"].append({"id": key, "name": name})
    hole = {"id": 9, "category_id": 3, "segmentation": [[20, 15, 25, 15, 25, 20, 20, 20]]}
    content["annotations"].append(content["annotations"][2] | hole)
    prepare_coco(content)
    line = "no class, but background or ignored: background, _background_"
    assert line in capsys.readouterr().out
    mask = expected(2)
    mask[15:20, 20:25] = 0
    np.testing.assert_array_equal(mask_of("p2"), mask)
    assert config().class_names == [*CLASSES]
    prepare_coco(content, "--class_names", "bolt,nut,_background_")
    content["categories"] = [{"id": 1, "name": "background"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = 1
    message = error_line(prepare_coco, content)
    assert "a.json names no class but background" in message
    assert "give it as --class_names background" in message
    mask[15:20, 20:25] = 3
    np.testing.assert_array_equal(mask_of("p2"), mask)


def test_crowds_are_objects_unless_the_user_says_otherwise(folder, capsys):
    """CVAT and supervision write run-length codes with iscrowd 1 beside polygons with iscrowd 0."""
    content = coco()
    content["annotations"][4] |= {"segmentation": runs(4), "iscrowd": 1}
    prepare_coco(content)
    assert "annotations with iscrowd 1: 1, read as --crowd object;" in capsys.readouterr().out
    np.testing.assert_array_equal(mask_of("p4"), expected(4))
    prepare_coco(content, "--crowd", "ignore")
    np.testing.assert_array_equal(mask_of("p4"), 255 * (expected(4) > 0))


@pytest.mark.parametrize("upright", [True, False])
def test_the_size_tells_whether_the_camera_had_turned_what_was_annotated(folder, upright):
    """The pixels of the sixth picture are stored lying, and shown upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(folder / "pics/p5.jpg", noise(SIZE), exif=exif)
    content = coco()
    if upright:
        content["images"][5] |= {"height": WIDTH, "width": HEIGHT}
    prepare_coco(content)
    drawn = np.zeros((WIDTH, HEIGHT) if upright else (HEIGHT, WIDTH), np.uint8)
    drawn[14:35, 11:45] = 2
    np.testing.assert_array_equal(mask_of("p5"), drawn if upright else np.rot90(drawn, -1))


def without_masks(content):
    for annotation in content["annotations"]:
        del annotation["segmentation"]


def of_one_image(content):
    content["images"][1]["file_name"] = "pics/p0.jpg"


def spoiled(**values):
    return lambda content: content["annotations"][1].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_masks, "a.json holds 8 boxes without masks: draw polygons or masks in the"),
        (of_one_image, "are both the image p0.jpg: keep one of them"),
        (of_images(height=96), "p0.jpg is 60×48 pixels but its mask 60×96"),
        (spoiled(category_id=5), "annotation 1 names image 1 and category 5, which the file does"),
        (spoiled(segmentation="text"), "p1.jpg: annotation 1: its segmentation is neither"),
        (spoiled(segmentation=runs(1) | {"counts": [5]}), "its runs do not add up to 48×60"),
        (renamed("q{}.jpg"), "no image of a.json is in pics, such as q0.jpg, q1.jpg, q2.jpg, …"),
        (lambda content: content.update(images=[], annotations=[]), "a.json names no image"),
    ],
)
def test_what_is_wrong_in_a_coco_file_is_named(folder, coco_fails, change, message):
    content = coco()
    change(content)
    assert message in coco_fails(content)
    assert not Path("config/mine").exists()


def test_a_name_that_fits_several_images_is_refused(folder, coco_fails):
    for part in ("a", "b"):
        write_image(folder / f"pics/{part}/p0.jpg", noise(SIZE))
    prepare_coco(coco())  # The image without a folder is named exactly.
    assert Path("root/images/p0.jpg").exists() and not Path("root/images/a").exists()
    content = coco()
    content["images"][0]["file_name"] = "b/p0.jpg"
    prepare_coco(content)
    assert Path("root/images/b/p0.jpg").exists()
    (folder / "pics/p0.jpg").unlink()
    content["images"][0]["file_name"] = "c/p0.jpg"
    assert "c/p0.jpg may be the image a/p0.jpg or b/p0.jpg: name its" in coco_fails(content)
    for kind in ("jpg", "png"):
        write_image(folder / f"pics/x.{kind}", noise(SIZE))
        content["images"][0 if kind == "jpg" else 1]["file_name"] = f"x.{kind}"
    assert "x.jpg and pics/x.png differ only in their type" in coco_fails(content)


def test_files_of_one_export_have_the_same_categories(folder, fails):
    _, images = export_files.write_roboflow(folder / "export")
    content = coco((4,), "p{}_jpg.rf.0a.jpg")
    content["categories"][0]["name"] = "screw"
    write_json(folder / "export/valid/_annotations.coco.json", content)
    error = fails(images, "export")
    assert "_annotations.coco.json: category 1 has another name in another file" in error


def text(content):
    return lambda path: path.write_text(content)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.json", lambda path: None, "a.json does not exist"),
        ("a.json", text('{"images": [], "annotations": [{"id"'), "is no COCO instances file"),
        ("a.json", text('{"images": ['), "a.json is damaged, packed, or of another form: give a"),
        ("a.json", text("[]"), "a.json is damaged, packed, or of another form"),
        ("a.zip", text(""), "a.zip is damaged, packed, or of another form"),
        ("a.xml", text("<annotations/>"), "datumaro converts most other formats to COCO"),
        ("ann/a.xml", text("<annotation/>"), "ann is damaged, packed, or of another form"),
        ("pics/a.xml", text("<annotations/>"), "to COCO; --format masks passes over pics/a.xml"),
        ("pics/a.json", text('{"items": []}'), "--format masks passes over pics/a.json"),
        ("pics/data.yaml", text("names: [bolt]"), "--format masks passes over pics/data.yaml"),
    ],
)
def test_what_is_no_known_export_is_named(folder, fails, name, write, message):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    write(path)
    masks = name.split("/")[0]
    assert message in fails("pics", masks)


def test_several_forms_are_refused_and_one_can_be_chosen(folder, fails):
    """What predict.py writes: masks, COCO, labelme and YOLO in one folder, and each is read alone."""
    file = CocoFile(CLASSES, polygons=False)
    labels = folder / "labels"
    (labels / "masks").mkdir(parents=True)
    for number in range(COUNT):
        name = f"p{number}"
        # A hole, a part of the other class, and parts that touch only at a corner.
        mask = expected(number)
        mask[20:25, 20:25], mask[40, 50], mask[41, 51] = 0, 2, 2
        Image.fromarray(mask).save(labels / f"masks/{name}.png")
        file.add(f"{name}.jpg", mask)
        write_labelme(labels / f"labelme/{name}.json", folder / f"pics/{name}.jpg", mask, CLASSES)
        write_yolo(labels / f"yolo/{name}.txt", mask)
    write_yolo_classes(labels / "yolo", CLASSES)
    file.write(labels / "coco.json")

    error = fails("pics", "labels")
    assert "labels holds several forms (labels/coco.json, labels/labelme/p0.json," in error
    assert "or choose by --format" in error
    for masks, exact in (("labels/coco.json", True), ("labels/labelme", False), ("labels/yolo", 0)):
        prepare("pics", masks)
        for number in range(COUNT):
            mask = np.array(Image.open(labels / f"masks/p{number}.png"))
            drawn = mask_of(f"p{number}")
            if exact:
                np.testing.assert_array_equal(drawn, mask)
            assert ((drawn > 0) | (mask == 0)).mean() > 0.95
    prepare("pics", "labels", "--format", "coco")
    np.testing.assert_array_equal(mask_of("p0"), np.array(Image.open(labels / "masks/p0.png")))
    assert "labels holds no labelmap.txt" in fails("pics", "labels", "--format", "cvat")
    forget_classes()
    prepare("pics", "labels/masks")


def test_every_shape_of_labelme(folder, capsys):
    shapes = {
        "oriented_rectangle": corners(0),
        "circle": [[30, 24], [40, 24]],
        "point": [[30, 24]],
        "linestrip": [[10, 10], [50, 10], [50, 40]],
        "line": [[10, 10], [50, 10]],
        "points": [[3, 3]],
    }
    for number, (kind, points) in enumerate(shapes.items()):
        shape = labelme_shape(0, kind, points)
        write_json(folder / f"labels/p{number}.json", labelme([shape], "moved.jpg"))
    prepare("pics", "labels")
    np.testing.assert_array_equal(mask_of("p0"), expected(0))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    disk = np.hypot(rows - 24, columns - 30)
    assert ((disk < 9) <= mask_of("p1")).all() and (mask_of("p1") <= (disk < 11)).all()
    assert 60 < mask_of("p2").sum() < 90 and mask_of("p2")[24, 30]
    strip, line = mask_of("p3"), mask_of("p4")
    assert strip[10, 30] and strip[30, 50] and line[10, 30] and not line[30, 50]
    assert 8 <= line[:, 30].sum() <= 12
    assert not mask_of("p5").any()


def test_labels_of_labelme_for_the_background_and_what_is_ignored(folder, capsys):
    hole = labelme_shape(0, "rectangle", [[20, 10], [25, 15]]) | {"label": "_background_"}
    edge = labelme_shape(0, "rectangle", [[0, 40], [5, 48]]) | {"label": "__ignore__"}
    for number in range(COUNT):
        shapes = [labelme_shape(0, "rectangle", [[6, 4], [40, 30]]), hole, edge]
        write_json(folder / f"labels/p{number}.json", labelme(shapes, f"p{number}.jpg"))
    prepare("pics", "labels")
    assert "warning: all shapes are rectangles, each of which" in capsys.readouterr().out
    mask = expected(0)
    mask[10:15, 20:25], mask[40:, :5] = 0, 255
    np.testing.assert_array_equal(mask_of("p2"), mask)
    assert config().class_names == ["bolt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"shapes": [], "imagePath"', "p0.json is no file of labelme (JSONDecodeError("),
        (labelme([labelme_shape(0, "star")]), "p0.jpg: annotation 1: the shape star is not known"),
        (labelme([labelme_shape(0, "circle", [[1, 1]])]), "a circle has 2 points or more, not 1"),
        (labelme([{"points": []}]), "p0.json is no file of labelme (KeyError('label'))"),
        (labelme([labelme_shape(0, "mask", mask="QUJD")]), "annotation 1: its mask is no image"),
        (
            labelme(
                [labelme_shape(0, "mask", [[-3, 0], [5, 5]], mask=png_text(region(0, 0, 9, 9)))]
            ),
            "its mask leaves the image",
        ),
    ],
)
def test_what_is_wrong_in_a_file_of_labelme_is_named(folder, fails, content, message):
    write_json(folder / "labels/p1.json", labelme([labelme_shape(1)], "p1.jpg"))
    path = folder / "labels/p0.json"
    if isinstance(content, str):
        path.write_text(content)
    else:
        write_json(path, content)
    assert message in fails("pics", "labels")


def test_a_mask_of_labelme_may_reach_over_the_edge():
    mask = png_text(np.ones((5, 5), np.uint8))
    drawn = shape_region(("mask", [[58.0, 46.0], [62.0, 50.0]], mask), HEIGHT, WIDTH)
    np.testing.assert_array_equal(drawn, region(58, 46, 60, 48))


def yolo_line(number, fields=()):
    shares = (np.array(corners(number)) / (WIDTH, HEIGHT)).ravel()
    return " ".join(map(str, [number % 2, *shares, *fields])) + "\n"


def write_labels(folder, **lines):
    (folder / "labels").mkdir()
    for number in range(COUNT):
        line = lines.get(f"p{number}", yolo_line(number))
        (folder / f"labels/p{number}.txt").write_text(line)


def test_classes_of_yolo_are_named_in_a_file_or_on_the_command_line(folder, fails, capsys):
    write_labels(folder, p0=yolo_line(0) + "1 0.5 0.5 0.1 0.1\n")
    error = fails("pics", "labels")
    assert "labels: no data.yaml names the classes; put it there, or give --class_names" in error
    prepare("pics", "labels", "--class_names", "bolt,nut,screw")
    assert "warning: boxes without masks, left out: 1 of 9 annotations" in capsys.readouterr().out
    assert config().class_names == ["bolt", "nut", "screw"]
    (folder / "labels/classes.txt").write_text("screw\nbolt\n")
    forget_classes()
    prepare("pics", "labels")
    assert config().class_names == ["screw", "bolt"]
    # A description may lie beside the folder, and the command line orders its classes.
    (folder / "data.yaml").write_text("nc: 2\nnames: {0: bolt, 1: nut}\n")
    error = fails("pics", "labels")
    assert "data.yaml and labels/classes.txt name different classes: keep one of them" in error
    (folder / "labels/classes.txt").unlink()
    forget_classes()
    prepare("pics", "labels", "--class_names", "nut,bolt")
    np.testing.assert_array_equal(mask_of("p0"), expected(0) * 2)
    error = fails("pics", "labels", "--class_names", "bolt")
    assert "data.yaml holds the class nut: add it to --class_names" in error


@pytest.mark.parametrize(
    ("line", "yaml", "message"),
    [
        ("0 0.5 0.5 0.1\n", "", "p0.txt line 1 is no label of YOLO (class x y x y x y …): '0 0.5"),
        (yolo_line(0, [0.5]), "", "line 1 is no label of YOLO"),
        ("\n0 a 1 1 1 1 1\n", "", "p0.txt line 2 is no label of YOLO"),
        ("7 0 0 0 1 1 1\n", "", "p0.txt line 1: labels/data.yaml does not name the class 7"),
        ("0 0 0 0 1 90 1\n", "", "annotation 1: a polygon leaves the image of 60×48 pixels by far"),
        ("", "kpt_shape: [17, 3]\n", "data.yaml describes keypoints"),
        ("", "names: [\n", "data.yaml does not name classes as YOLO does: while parsing"),
    ],
)
def test_what_is_wrong_in_labels_of_yolo_is_named(folder, fails, line, yaml, message):
    write_labels(folder, p0=line)
    (folder / "labels/data.yaml").write_text(yaml + "names: [bolt, nut]\n")
    assert message in fails("pics", "labels")


def test_boxes_of_yolo_are_no_masks(folder, fails):
    write_labels(folder, **{f"p{number}": "0 0.5 0.5 0.1 0.1\n" for number in range(COUNT)})
    (folder / "labels/data.yaml").write_text("names: [bolt]\n")
    assert "labels holds 8 boxes without masks: draw polygons" in fails("pics", "labels")


def test_an_image_without_labels_is_background_only_among_labelled_ones(folder, capsys):
    _, images = export_files.write_yolo(folder / "export")
    prepare(images, "export/labels/train")
    printed = capsys.readouterr().out
    assert "images that are not in the export, left out: 4, such as images/val/p4.jpg" in printed
    assert "images without objects, all background: 2" in printed
    assert "warning: all labels have four points, as oriented boxes do" in printed
    assert not Path("root/images/images/val").exists()


def test_palettes_and_values_of_masks_with_a_label_map(folder, fails):
    names, images = export_files.write_cvat_masks(folder / "export")
    masks = folder / "export/SegmentationClass"
    coloured = Image.open(masks / "p0.png")
    coloured.convert("P", palette=Image.Palette.ADAPTIVE).save(masks / "p0.png")
    Image.fromarray(expected(2)).save(masks / "p2.png")
    prepare(images, "export")
    for number in (0, 2, 3):
        np.testing.assert_array_equal(mask_of(names[number]), expected(number))
    Image.fromarray(expected(2) * 3).save(masks / "p2.png")
    assert "p2.png holds the value 3; classes are 1..2" in fails(images, "export")
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 9, np.uint8)).save(masks / "p2.png")
    error = fails(images, "export")
    assert "p2.png holds the colour (9, 9, 9), which labelmap.txt does not have" in error
    (folder / "export/labelmap.txt").write_text("nut:1,2,3\nscrew:1,2,3\n")
    assert "nut and screw have the same colour (1, 2, 3)" in fails(images, "export")
    for row in ("bolt;1;2;3", "bolt:1,2::"):
        (folder / "export/labelmap.txt").write_text(f"{row}\n")
        error = fails(images, "export")
        assert f"labelmap.txt line 1 is not NAME:RED,GREEN,BLUE: {row!r}" in error


def test_exports_with_different_classes_in_one_folder_are_refused(folder, fails):
    (folder / "jobs").mkdir()
    _, images = export_files.write_cvat_masks(folder / "jobs/a")
    export_files.write_cvat_masks(folder / "jobs/b")
    error = fails(images, "jobs")
    assert "jobs holds jobs/a/labelmap.txt and jobs/b/labelmap.txt: give the folder of one" in error
    export_files.write_yolo(folder / "export")
    (folder / "export/other").mkdir()
    (folder / "export/other/data.yaml").write_text("names: [nut, bolt]\n")
    error = fails("export", "export")
    assert "export/data.yaml and export/other/data.yaml name different classes" in error


def test_the_background_of_a_label_map_may_have_any_colour(folder):
    names, images = export_files.write_cvat_masks(folder / "export")
    masks, rows = folder / "export/SegmentationClass", "Background:9,9,9::\nnut: a:0,0,0::\n"
    (folder / "export/labelmap.txt").write_text(f"{rows}bolt:1,2,3::\n", encoding="utf-16")
    for number in range(COUNT):
        table = np.array([(9, 9, 9), (1, 2, 3), (0, 0, 0)], np.uint8)
        Image.fromarray(table[expected(number)]).save(masks / f"p{number}.png")
    prepare(images, "export")
    assert config().class_names == ["nut: a", "bolt"]
    np.testing.assert_array_equal(mask_of(names[1]), expected(1) // 2)


def test_a_label_map_without_colours_means_those_of_voc(folder):
    names, images = export_files.write_cvat_masks(folder / "export")
    rows = "# label:color_rgb:parts:actions\nbackground:::\nbolt:::\nnut:::\n"
    (folder / "export/labelmap.txt").write_text(rows)
    table = np.array([voc_colour(index) for index in range(3)], np.uint8)
    for number in range(COUNT):
        path = folder / f"export/SegmentationClass/p{number}.png"
        Image.fromarray(table[expected(number)]).save(path)
    prepare(images, "export")
    assert config().class_names == [*CLASSES]
    np.testing.assert_array_equal(mask_of(names[1]), expected(1))


def test_folders_of_an_export_divide_the_images_unless_the_user_says_otherwise(folder):
    _, images = export_files.write_roboflow(folder / "export")
    (folder / "val.txt").write_text("p0_jpg.rf.0a\n")
    prepare(images, "export", "--val", "val.txt")
    assert [name for name, _ in read_entries("root", "lists/mine/val.txt")] == [
        "images/train/p0_jpg.rf.0a.jpg"
    ]
    prepare(images, "export", "--val_share", "0.5")
    assert len(read_entries("root", "lists/mine/val.txt")) == 4


def test_an_export_without_annotations_is_named(folder, coco_fails):
    assert "a.json holds no object in any image of pics" in coco_fails(coco() | {"annotations": []})


def test_classes_with_nearly_the_same_name_are_a_warning(folder, capsys):
    content = coco()
    for category, name in zip(content["categories"], ("bolt", "Bolt "), strict=True):
        category["name"] = name
    prepare_coco(content)
    printed = capsys.readouterr().out
    assert "warning: classes that differ only in capitals or blanks: 'bolt', 'Bolt '" in printed


def test_a_changed_annotation_draws_its_mask_again(folder, capsys):
    prepare_coco(coco())
    content = coco()
    content["annotations"][3]["segmentation"] = [polygon(4)]
    write_json(folder / "a.json", content)
    capsys.readouterr()
    prepare("pics", "a.json")
    assert "masks: 8, 1 of them written now" in capsys.readouterr().out
    np.testing.assert_array_equal(mask_of("p3"), 2 * (expected(4) > 0))


def test_the_export_may_lie_in_the_folder_of_the_images_but_the_result_may_not(folder, fails):
    write_json(folder / "pics/a.json", coco())
    prepare("pics", "pics")
    assert json.loads((folder / "pics/a.json").read_text()) == coco()
    error = fails("pics", "pics", "--out", "pics/new")
    assert "--out pics/new lies in --" in error
