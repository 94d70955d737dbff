import shutil
from functools import partial

import cv2
import numpy as np
import pytest

from tests.util.pascal_files import (
    ODD,
    SBD,
    TRAIN,
    VAL,
    VOC,
    area,
    stems,
    write_lines,
    write_mat,
    write_palette_png,
)
from tests.util.prepare_files import contents, cut, remove
from util.preparation.shared import DataRoot
from util.prepare_pascal import prepare_pascal
from util.runtime.errors import UserError


@pytest.fixture
def data(voc_and_sbd, tmp_path):
    """A copy of the stand-ins that a test may spoil."""
    return shutil.copytree(voc_and_sbd, tmp_path / "data")


def prepare(data, out, workers=1):
    return prepare_pascal(data, data, DataRoot(out, out / "lists", workers=workers))


@pytest.fixture(scope="module")
def prepared(voc_and_sbd, tmp_path_factory):
    """The data root of an uninterrupted run, and the lines it ended with."""
    out = tmp_path_factory.mktemp("out") / "VOC ready"
    return out, prepare(voc_and_sbd, out)


def test_layout(prepared):
    root, _ = prepared
    assert stems(root, "train") == TRAIN and stems(root, "val") == VAL
    names = {f"JPEGImages/{stem}.jpg" for stem in TRAIN + VAL}
    names |= {f"SegmentationClassAug/{stem}.png" for stem in TRAIN + VAL}
    assert set(contents(root)) == names | {"lists/train.txt", "lists/val.txt"}
    text = (root / "lists" / "train.txt").read_text("utf-8")
    assert text.startswith("JPEGImages/2007_1.jpg SegmentationClassAug/2007_1.png\n")
    assert f"JPEGImages/{ODD}.jpg\tSegmentationClassAug/{ODD}.png\n" in text


def test_masks_are_class_ids_and_those_of_voc_go_first(prepared):
    root, _ = prepared
    for stem in TRAIN + VAL:
        mask = cv2.imread(str(root / "SegmentationClassAug" / f"{stem}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(mask, VOC.get(stem, SBD.get(stem)))


def test_images_are_links_to_those_of_voc_else_of_sbd(prepared, voc_and_sbd):
    root, _ = prepared
    voc = voc_and_sbd / "VOCdevkit" / "VOC2012" / "JPEGImages"
    sbd = voc_and_sbd / "benchmark_RELEASE" / "dataset" / "img"
    for stem in TRAIN + VAL:
        source = (sbd if stem == "2008_3" else voc) / f"{stem}.jpg"
        assert (root / "JPEGImages" / source.name).samefile(source)


def test_counts_are_said_with_those_expected(prepared):
    root, lines = prepared
    assert lines[:2] == ["images: 7 linked", "masks: 7, 7 of them written now"]
    text = "\n".join(lines[2:])
    assert "SBD (computed without train_noval.txt): 3 (warning: 5,623 expected" in text
    assert "VOC train: 3 (warning: 1,464 expected" in text
    assert "VOC train, not in SBD's part: 2 (warning: 330 expected" in text
    assert f"{root}/lists/train.txt: 5 (warning: 5,953 expected" in text
    assert f"{root}/lists/val.txt: 2 (warning: 1,449 expected" in text


def test_train_noval_is_taken_where_it_is_but_never_an_image_of_val(data, tmp_path):
    sbd = data / "benchmark_RELEASE" / "dataset"
    write_lines(sbd / "train_noval.txt", ["2008_3", "2007_4", "2008_9", "2007_1"])
    (data / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main" / "val.txt").unlink()
    lines = prepare(data, tmp_path / "out")
    assert stems(tmp_path / "out", "train") == ["2007_1", "2008_3", "2008_9", "2007_2", ODD]
    assert any(line.startswith("SBD (train_noval.txt): 3 ") for line in lines)


def test_folders_may_be_given_at_any_depth(voc_and_sbd, prepared, tmp_path):
    root, _ = prepared
    for voc, sbd in (
        ("VOCdevkit", "benchmark_RELEASE"),
        ("VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"),
    ):
        out = tmp_path / voc
        sbd_folder = voc_and_sbd / "benchmark_RELEASE" / "dataset" if "/" in sbd else voc_and_sbd
        prepare_pascal(voc_and_sbd / voc, sbd_folder, DataRoot(out, out / "lists", workers=1))
        assert contents(out)["lists/train.txt"] == contents(root)["lists/train.txt"]


V, S = "VOCdevkit/VOC2012/", "benchmark_RELEASE/dataset/"


@pytest.mark.parametrize(
    "missing, message",
    [
        ("VOCdevkit", r"no folder JPEGImages or .*VOCdevkit/VOC2012\) as --voc, or add --download"),
        (V + "SegmentationClass", r"has no folder .*SegmentationClass.* as --voc"),
        (V + "ImageSets/Segmentation/val.txt", r"Segmentation/val\.txt does not exist: .*--voc"),
        (V + "ImageSets/Main/val.txt", r"Main/val\.txt does not exist: .*train_noval\.txt follows"),
        (V + "JPEGImages/2007_2.jpg", r"JPEGImages/2007_2\.jpg does not exist: .*VOC 2012"),
        (V + "SegmentationClass/2007_1.png", r"2007_1\.png does not exist"),
        ("benchmark_RELEASE", r"no folder cls: .*benchmark\.tgz .* as --sbd, or add --download"),
        (S + "train.txt", r"dataset/train\.txt does not exist: .*--sbd"),
        (S + "cls/2008_2.mat", r"cls/2008_2\.mat does not exist"),
        (S + "img/2008_3.jpg", r"2008_3\.jpg does not exist"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_written(data, tmp_path, missing, message):
    remove(data / missing)
    with pytest.raises(UserError, match=message):
        prepare(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_none_and_an_empty_list_are_named(data, tmp_path):
    for voc, sbd, name in ((tmp_path / "no", data, "voc"), (data, tmp_path / "no", "sbd")):
        with pytest.raises(UserError, match=rf"/no is not a folder: give .*--{name}"):
            prepare_pascal(voc, sbd, DataRoot(tmp_path / "out", tmp_path / "lists"))
    write_lines(data / V / "ImageSets" / "Segmentation" / "train.txt", [""])
    with pytest.raises(UserError, match=r"Segmentation/train\.txt is empty"):
        prepare(data, tmp_path / "out")


MAT, PNG = S + "cls/2008_2.mat", V + "SegmentationClass/2007_2.png"


@pytest.mark.parametrize(
    "name, spoil, message",
    [
        (PNG, cut, "damaged or truncated"),
        (PNG, partial(write_palette_png, mask=area(254)), r"the value 254; classes are 1\.\.20"),
        (MAT, cut, "damaged or no MATLAB file"),
        (MAT, lambda path: path.write_bytes(b"x"), "damaged or no MATLAB file"),
        (MAT, partial(write_mat, mask=area(1), field="Other"), "has no field"),
        (MAT, partial(write_mat, mask=area(1), name="GTinst"), "has no field"),
        (MAT, partial(write_mat, mask=area(21)), "holds the value 21"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(data, tmp_path, name, spoil, message):
    spoil(data / name)
    with pytest.raises(UserError, match=message) as error:
        prepare(data, tmp_path / "out")
    assert str(data / name) in str(error.value)
    assert not list((tmp_path / "out" / "lists").iterdir())


@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_of_sbd_may_be_pngs_alone(data, prepared, tmp_path, mode):
    """Gray ones, as most people have them, or with a palette."""
    root, _ = prepared
    pngs = data / "SegmentationClassAug"
    pngs.mkdir()
    for stem, mask in {**SBD, **VOC}.items():
        if mode == "P":
            write_palette_png(pngs / f"{stem}.png", mask)
        else:
            cv2.imwrite(str(pngs / f"{stem}.png"), mask)
    shutil.rmtree(data / "benchmark_RELEASE/dataset/cls")
    shutil.copy(data / "benchmark_RELEASE/dataset/img/2008_3.jpg", data / V / "JPEGImages")
    out = tmp_path / "out"
    lines = prepare_pascal(data, pngs, DataRoot(out, out / "lists", workers=1))
    assert any("train.txt is not in the published order: this takes" in line for line in lines)
    made, whole = contents(out), contents(root)
    assert made.keys() == whole.keys()
    for name in whole:
        if name.endswith(".png"):
            both = [cv2.imread(str(place / name), cv2.IMREAD_UNCHANGED) for place in (out, root)]
            np.testing.assert_array_equal(*both)
    assert stems(out, "train") == sorted(TRAIN) and stems(out, "val") == VAL
    # With the list of SBD the order is the published one.
    write_lines(pngs / "train_noval.txt", ["2007_1", "2008_2", "2008_3"])
    prepare_pascal(data, pngs, DataRoot(out, out / "lists", workers=1))
    assert stems(out, "train") == TRAIN
