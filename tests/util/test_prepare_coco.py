import json
import shutil

import cv2
import numpy as np
import pytest

from tests.util.coco_files import ODD, TRAIN, VAL, expected_masks, write_coco, write_json
from tests.util.prepare_files import contents, remove
from util.data.lists import read_entries
from util.preparation.coco import read_instances
from util.preparation.shared import DataRoot
from util.prepare_coco import prepare_coco
from util.runtime.errors import UserError


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("my COCO ü")
    write_coco(folder)
    return folder


@pytest.fixture
def coco(originals, tmp_path):
    """A copy of the stand-in that a test may spoil."""
    return shutil.copytree(originals, tmp_path / "coco")


def prepare(coco, out):
    return prepare_coco(coco, DataRoot(out, out / "lists", workers=1))


@pytest.fixture(scope="module")
def prepared(originals, tmp_path_factory):
    """The data root of an uninterrupted run, and the lines it ended with."""
    out = tmp_path_factory.mktemp("out") / "COCO ready"
    return out, prepare(originals, out)


def test_masks(prepared):
    root, _ = prepared
    for name, mask in expected_masks().items():
        np.testing.assert_array_equal(cv2.imread(str(root / name), cv2.IMREAD_UNCHANGED), mask)


def test_layout_is_that_of_the_images_with_annotations_by_id(prepared, originals):
    root, _ = prepared
    stems = {"train": ["COCO é 1", "COCO_5", "COCO_9"], "val": ["COCO_4"]}
    names = {f"lists/{part}.txt" for part in stems}
    for part, expected in stems.items():
        pairs = [
            (f"{part}2014/{stem}.jpg", f"annotations/{part}2014/{stem}.png") for stem in expected
        ]
        assert read_entries(str(root), str(root / "lists" / f"{part}.txt")) == pairs
        names |= {name for pair in pairs for name in pair}
        for image, _ in pairs:
            assert (root / image).samefile(originals / image)
    assert set(contents(root)) == names


def test_counts_are_said_with_those_expected(prepared):
    root, lines = prepared
    assert lines[0].startswith("categories: 3 (warning: 80 expected")
    assert lines[1:3] == ["images: 3 linked", "masks: 3, 3 of them written now"]
    assert lines[3].startswith(f"{root}/lists/train.txt: 3 (warning: 82,081 expected")
    assert lines[3].endswith("; 4 images with and without annotations")
    assert lines[6].startswith(f"{root}/lists/val.txt: 1 (warning: 40,137 expected")


@pytest.mark.parametrize(
    "missing",
    ["annotations", "val2014", "annotations/instances_val2014.json", "train2014/COCO_9.jpg"],
)
def test_what_is_missing_is_named(coco, tmp_path, missing):
    remove(coco / missing)
    with pytest.raises(UserError, match=rf"{missing} .*: give COCO 2014 as --coco"):
        prepare(coco, tmp_path / "out")
    assert not [name for name in contents(tmp_path) if name.startswith("out/")]


def test_an_image_without_annotations_may_be_missing(coco, prepared, tmp_path):
    (coco / "train2014" / "COCO_7.jpg").unlink()
    prepare(coco, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(prepared[0])


def set_in(path, value):
    """The instances with another `value` at `path` (key, index, key)."""
    place = content = json.loads(json.dumps(TRAIN))
    *way, last = path
    for key in way:
        place = place[key]
    place[last] = value
    return content


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", r"no COCO instances file \(file: Invalid JSON.*give annotations/instances"),
        ([], r"no COCO instances file \(file: should be an object"),
        ({"images": [], "annotations": []}, r"\(categories: it is missing\)"),
        (set_in(["images", 1], 3), r"\(images\.1: should be an object"),
        (set_in(["images", 1, "height"], 48.5), r"images\.1\.height: should be a whole number"),
        (set_in(["images", 1, "width"], -1), r"images\.1\.width: should be above 0"),
        (set_in(["images", 1, "id"], 9), "two images, or two categories, have the same id"),
        (set_in(["images", 1, "file_name"], "../x.jpg"), r"\.\./x\.jpg lies outside"),
        (set_in(["images", 1, "file_name"], "COCO_9.png"), "would share one mask"),
        (set_in(["images", 1, "file_name"], "COCO_9.jpg"), "would share one mask"),
        (set_in(["categories", 0, "name"], None), r"categories\.0\.name: should be text"),
        (set_in(["categories"], [{"id": i, "name": "x"} for i in range(255)]), "255 categories"),
        (set_in(["annotations"], []), "has no annotations"),
        (
            set_in(["annotations", 0], {"id": 1, "image_id": 9, "caption": "a dog"}),
            r"annotations\.0\.category_id: it is missing",
        ),
        (set_in(["annotations", 0, "image_id"], 3), "annotation 1 names image 3 and category 18"),
        (set_in(["annotations", 0, "category_id"], 2), "annotation 1 names image 9 and category 2"),
        (set_in(["annotations", 0, "category_id"], [2]), r"annotations\.0\.category_id: should"),
    ],
)
def test_a_wrong_instances_file_is_named_before_anything_is_drawn(coco, tmp_path, content, message):
    path = write_json(coco, "train", content)
    with pytest.raises(UserError, match=message) as error:
        prepare(coco, tmp_path / "out")
    assert str(path) in str(error.value)
    assert not contents(tmp_path / "out")


def test_categories_have_to_agree(coco, tmp_path):
    content = json.loads(json.dumps(VAL))
    content["categories"].append({"id": 3, "name": "car"})
    write_json(coco, "val", content)
    with pytest.raises(UserError, match=r"train2014\.json and .*val2014\.json have different"):
        prepare(coco, tmp_path / "out")


def test_instances(originals):
    found = read_instances(originals / "annotations" / "instances_train2014.json")
    assert found.categories == ["person", "dog", "toothbrush"] and found.total == 4
    assert [image.file_name for image in found.images] == [ODD, "COCO_5.jpg", "COCO_9.jpg"]
    labels = [label for _, label, _ in json.loads(found.images[0].annotations)]
    assert labels == [3, 255, 255]
