"""Preparation of the user's own images and masks, up to training on them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import unicodedata
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save

import test
import train
import train_base
import util.preparation.custom_pairs
from tests.paths import ROOT
from tests.util.hub import Hub
from tests.util.prepare_files import (
    becomes,
    contents,
    cut,
    forget_classes,
    noise,
    run_killed,
    write_image,
)
from util.config import load_config
from util.data.dataset import read_pair
from util.data.images import read_image, read_mask
from util.data.lists import read_entries
from util.preparation.custom_config import divide
from util.preparation.custom_pairs import Pair, merged_mask, split
from util.preparation.custom_report import choose_mixed_images
from util.preparation.shared import INTERRUPTED
from util.prepare_custom import main
from util.runtime.errors import UserError

SIZE = (48, 60)


def disk(radius, size=SIZE):
    """A disk of ones in the middle, uint8."""
    mask = np.zeros(size, np.uint8)
    return cv2.circle(mask, (size[1] // 2, size[0] // 2), radius, 1, -1)


def write_data(root, count=12, classes=3, binary=False):
    """Images pics/nI.jpg, each with one object of class I mod `classes`."""
    for index in range(count):
        write_image(root / f"pics/n{index:02d}.jpg", noise(SIZE, index))
        class_id, mask = 1 + index % classes, disk(15)
        name = f"class{class_id}/n{index:02d}.png" if binary else f"n{index:02d}.png"
        write_image(root / "masks" / name, mask * (255 if binary else class_id))


def run(*options, name="mine", out="root"):
    """The tool on pics and masks of the current folder, with one worker."""
    words = ["--name", name, "--images", "pics", "--masks", "masks", "--out", out]
    main([*words, "--workers", "1", "--min_pixels", "100", *options])


def config(split=0, name="mine"):
    return load_config(f"config/{name}/{name}_split{split}_resnet50.yaml")


def entries(part):
    return read_entries("root", f"lists/mine/{part}.txt")


def test_index_masks_become_a_dataset_that_loads(folder, capsys):
    write_data(folder)
    before = contents(folder / "pics") | contents(folder / "masks")
    run()
    assert contents(folder / "pics") | contents(folder / "masks") == before
    train, val = entries("train"), entries("val")
    assert len(val) == 2
    assert sorted(train + val) == [
        (f"images/n{index:02d}.jpg", f"index_masks/n{index:02d}.png") for index in range(12)
    ]
    for image, mask in train + val:
        stem = Path(image).stem
        assert os.path.samefile(f"root/{image}", f"pics/{stem}.jpg")
        assert np.array_equal(read_mask(f"root/{mask}"), read_mask(f"masks/{stem}.png"))
    for split_ in range(2):
        cfg = config(split_)
        assert (cfg.data_set, cfg.split, cfg.net_name) == ("mine", split_, "resnet50")
        assert (cfg.num_classes, cfg.folds, cfg.min_pixels) == (3, [[1, 2], [3]], 100)
        assert (cfg.data_root, cfg.train_list) == ("root", "lists/mine/train.txt")
        assert (cfg.epochs, cfg.train_h) == (200, 473)
    printed = capsys.readouterr().out
    assert "images: 12 linked" in printed and "masks: 12, 12 of them written now" in printed
    assert "|   3 | class 3 |" in printed
    assert "fold 1 holds class 3 out; " in printed and "left out" not in printed
    assert "sh train.sh split0 mine 1" in printed


def test_palette_masks_keep_their_indices_and_other_files_are_passed_over(folder, capsys):
    write_data(folder)
    write_image(folder / "pics/more/n99.jpg", noise(SIZE))
    for name in ("pics/notes.json", "pics/.hidden.jpg", "masks/Thumbs.db", "masks/._n00.png"):
        (folder / name).write_text("other")
    image = Image.fromarray(disk(15) * 2, mode="P")
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 90, 7])
    image.save("masks/n00.png")
    run()
    assert set(np.unique(read_mask("root/index_masks/n00.png"))) == {0, 2}
    assert len(entries("train") + entries("val")) == 12
    assert "images in folders of pics, left out: 1\n" in capsys.readouterr().out


def test_folders_of_binary_masks_are_the_classes(folder):
    write_data(folder, binary=True)
    write_image(folder / "pics/empty.jpg", noise(SIZE))
    write_image(folder / "masks/class2/empty.png", np.zeros(SIZE, np.uint8))
    run()
    assert config().class_names == ["class1", "class2", "class3"]
    for index in range(12):
        expected = disk(15) * (1 + index % 3)
        assert np.array_equal(read_mask(f"root/index_masks/n{index:02d}.png"), expected)
    assert not read_mask("root/index_masks/empty.png").any()


def write_masks(save, kind, binary):
    """Masks of two classes in a form: `save` writes an object (0 and 1) to a file."""
    for path in list(Path("masks").rglob("*.png")):
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        path.unlink()
        save((mask > 0).astype(np.uint8) if binary else mask, str(path.with_suffix(kind)))


def save_palette(mask, path):
    """The object is white, whose index is 0."""
    image = Image.fromarray(1 - mask, "P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(path)


def save_alpha(mask, path):
    Image.fromarray(np.dstack([np.full_like(mask, 255)] * 3 + [255 * mask])).save(path)


def save_soft(mask, path):
    shades = np.random.RandomState(0).randint(-7, 8, mask.shape)
    Image.fromarray(np.clip(255 * mask.astype(int) + shades, 0, 255).astype(np.uint8)).save(path)


def save_white(mask, path):
    Image.fromarray(255 * mask).save(path)


THRESHOLD = "masks with soft edges or of JPEG, where values from 128 on are the object: 12"


@pytest.mark.parametrize("binary", [True, False], ids=["class folders", "one folder"])
@pytest.mark.parametrize(
    ("save", "kind", "note"),
    [
        (save_palette, ".png", ""),
        (save_palette, ".bmp", ""),
        (save_alpha, ".png", ""),
        (save_alpha, ".tiff", ""),
        (save_soft, ".png", THRESHOLD),
        (save_white, ".tif", ""),
        (save_white, ".jpg", THRESHOLD),
    ],
)
def test_black_and_white_masks_may_have_any_form(folder, capsys, save, kind, note, binary):
    write_data(folder, classes=2, binary=binary)
    write_masks(save, kind, True)
    run("--folds", "seen")
    for index in range(12):
        expected = disk(15) * (1 + index % 2 if binary else 1)
        found = read_mask(f"root/index_masks/n{index:02d}.png").astype(int)
        assert np.mean(found != expected) < 0.002, kind
    printed = capsys.readouterr().out
    assert note in printed
    assert ("masks: all are black and white, so they are of one class" in printed) != binary
    assert config().num_classes == (2 if binary else 1)


def test_index_masks_of_other_types_and_of_16_bits(folder):
    write_data(folder)
    write_masks(
        lambda mask, path: Image.fromarray(mask.astype(np.uint16)).save(path), ".TIFF", False
    )
    run()
    assert read_mask("root/index_masks/n01.png").max() == 2 and config().num_classes == 3


def test_0_and_1_beside_0_and_255_are_ambiguous(folder, fails):
    write_data(folder, classes=1)
    write_image(folder / "masks/n03.png", disk(15) * 255)
    error = fails()
    assert "holds 0 and 1, but masks/n03.png 0 and 255, which is the object or ignored" in error
    # Where another class shows that the masks are index masks, 255 is ignored.
    write_image(folder / "masks/n04.png", disk(15) * 2)
    run()
    assert read_mask("root/index_masks/n03.png").max() == 255


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name", ["{}_mask", "label-{}", "gt {} 1"])
def test_all_masks_may_have_an_addition_to_the_names_of_the_images(folder, fails, name, binary):
    write_data(folder, binary=binary)
    for path in list((folder / "masks").rglob("*.png")):
        path.rename(path.with_name(name.format(path.stem) + ".png"))
    run()
    assert read_mask("root/index_masks/n10.png").max() == 2
    (folder / "pics/n01.jpg").unlink()
    assert "masks without an image in pics (" in fails()


def test_what_systems_leave_behind_is_no_class(folder):
    write_data(folder, binary=True)
    for place in ("masks/__MACOSX", "masks/@eaDir", "masks/.ipynb_checkpoints", "pics/__MACOSX"):
        write_image(folder / place / "._n00.png", disk(15))
        write_image(folder / place / "n00.png", disk(15))
    run()
    assert config().class_names == ["class1", "class2", "class3"]


@pytest.mark.parametrize("on_stored", [False, True])
@pytest.mark.parametrize(("orientation", "turns"), [(6, -1), (8, 1), (3, 2)])
def test_image_and_mask_end_up_the_same_way_round(folder, capsys, orientation, turns, on_stored):
    write_data(folder, classes=1)
    tags, stored = Image.Exif(), disk(15)
    tags[0x0112] = orientation
    stored[:9, :20] = 1
    shown = np.rot90(stored, turns)
    for path in (folder / "pics").iterdir():
        Image.open(path).save(path, exif=tags)
        drawn = stored if on_stored and orientation != 3 else shown
        Image.fromarray(np.ascontiguousarray(drawn)).save(f"masks/{path.stem}.png")
    run()
    for image, mask in entries("train"):
        pair = read_pair("root", (image, mask))
        assert pair[0].shape[:2] == shown.shape and np.array_equal(pair[1], shown)
    printed = capsys.readouterr().out
    turned = "masks of the size that the camera stored, which are turned like their images: 12"
    assert (turned in printed) == (on_stored and orientation != 3)
    assert ("images that a viewer turns without a change of size" in printed) == (orientation == 3)


def test_images_of_12_bits_span_the_whole_range(folder, capsys):
    write_data(folder)
    values = np.random.RandomState(0).randint(0, 4096, SIZE).astype(np.uint16)
    for path in list((folder / "pics").iterdir()):
        path.unlink()
        write_image(path.with_suffix(".png"), values)
    run()
    assert "images of 12 bits, of which the upper 8 are used: 12" in capsys.readouterr().out
    assert np.array_equal(read_image("root/images/n00.png")[..., 1], values >> 4)


@pytest.mark.parametrize(
    ("mask", "radius", "message"),
    [
        ("n03.tif", 9, "masks/class2/n03.tif may be a mask, but those of masks/class2 are PNGs"),
        ("more/n03.png", 9, "masks/class2/more is not searched: put the masks into masks"),
        ("n03.png", 15, "masks/class1/n03.png and masks/class2/n03.png mark the same pixels"),
    ],
)
def test_folders_of_masks_that_would_be_misread_are_refused(folder, fails, mask, radius, message):
    write_data(folder, binary=True)
    write_image(folder / "masks/class1/n00.jpg", disk(9))  # beside its mask
    write_image(folder / "masks/class2" / mask, disk(radius))
    assert message in fails()


def test_folders_of_parts_are_no_classes(folder, fails):
    write_data(folder, binary=True)
    for index, part in enumerate(("train", "val", "test"), 1):
        (folder / f"masks/class{index}").rename(folder / f"masks/{part}")
    assert "the folders of masks (test, train, val) look like parts of a dataset" in fails()


def test_class_names_order_the_folders_and_have_to_agree_with_them(folder, fails, capsys):
    write_data(folder, binary=True)
    run()
    forget_classes()
    run("--class_names", "class3,class1,class2")
    assert config().class_names == ["class3", "class1", "class2"]
    assert read_mask("root/index_masks/n02.png").max() == 1
    assert read_mask("root/index_masks/n00.png").max() == 2
    capsys.readouterr()
    error = fails("--class_names", "class1,class2")
    assert "masks/class3 is not in --class_names" in error
    error = fails("--class_names", "class1,class2,class3,nut")
    assert "class nut of --class_names has no folder in masks" in error


def test_the_smaller_of_two_overlapping_masks_is_on_top(tmp_path):
    files = []
    for class_id, radius in ((1, 5), (2, 15), (3, 10)):
        write_image(tmp_path / f"{class_id}.png", disk(radius))
        files.append((class_id, "", (tmp_path / f"{class_id}.png").read_bytes()))
    merged = merged_mask(files, [])
    assert merged[24, 30] == 1 and merged[24, 38] == 3 and merged[24, 43] == 2 and merged[0, 0] == 0
    write_image(tmp_path / "4.png", disk(10) - disk(5))
    notes = []
    merged_mask([*files, (4, "", (tmp_path / "4.png").read_bytes())], notes)
    assert notes == ["images in which smaller objects of other classes hide all of a class"]


def test_names_with_blanks_and_accents_pair_up_however_they_are_encoded(folder):
    write_data(folder)
    composed, parted = (unicodedata.normalize(form, "été à  8 h") for form in ("NFC", "NFD"))
    write_image(folder / f"pics/{parted}.JPG", noise(SIZE))
    write_image(folder / f"masks/{composed}.png", disk(15))
    latin = os.fsdecode(b"\xe9t\xe9")  # été in Latin-1, no UTF-8
    write_image(folder / f"pics/{latin}.png", noise(SIZE))
    write_image(folder / f"masks/{latin}.png", disk(15))
    (folder / "val.txt").write_text(f"\n{composed}\nn03.jpg\r\n", encoding="utf-8")
    run("--val", "val.txt", "--class_names", "Säge, größer als 1, 3")
    assert entries("val") == [
        (f"images/{parted}.JPG", f"index_masks/{parted}.png"),
        ("images/n03.jpg", "index_masks/n03.png"),
    ]
    assert len(entries("train")) == 12
    assert config().class_names == ["Säge", "größer als 1", "3"]
    assert (f"images/{latin}.png", f"index_masks/{latin}.png") in entries("train")
    assert np.array_equal(read_mask(f"root/index_masks/{latin}.png"), disk(15))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_the_list_of_test_images_may_be_written_in_several_ways(folder, encoding):
    write_data(folder)
    write_image(folder / "pics/a b.jpg", noise(SIZE))
    write_image(folder / "masks/a b.png", disk(15))
    write_image(folder / "pics/#1.jpg", noise(SIZE))
    write_image(folder / "masks/#1.png", disk(15))
    lines = [
        "# what to test on",
        "#n05.jpg",
        "n00",
        "n01.png",
        "elsewhere\\pics\\n02.jpg",
        "JPEGImages/n03.jpg SegmentationClass/x03.png",
        "pics/n04.jpg\tmasks/n04.png",
        "a b\tmasks/a b.png",
        "#1.jpg",
        "",
    ]
    (folder / "val.txt").write_bytes("\r\n".join(lines).encode(encoding))
    run("--val", "val.txt")
    names = ["#1", "a b", "n00", "n01", "n02", "n03", "n04"]
    assert [image for image, _ in entries("val")] == [f"images/{name}.jpg" for name in names]


@pytest.mark.parametrize("line", ["n01.jpg n02.jpg", "n01.jpg\tmasks/n02.png"])
def test_two_images_in_a_line_of_the_list_are_refused(folder, fails, line):
    write_data(folder)
    (folder / "val.txt").write_text(f"n00.jpg\n{line}\n")
    assert f"val.txt line 2 names two images: {line}" in fails("--val", "val.txt")


def test_class_names_from_a_file_one_of_which_has_no_image_yet(folder, capsys):
    write_data(folder)
    (folder / "names.txt").write_text("bolt\nnut, hexagonal\n\nscrew\nnail\n")
    run("--class_names", "names.txt", "--copy")
    assert config().class_names == ["bolt", "nut, hexagonal", "screw", "nail"]
    assert (config().folds, config().num_folds) == ("contiguous", 2)
    assert not os.path.samefile("root/images/n00.jpg", "pics/n00.jpg")
    printed = capsys.readouterr().out
    assert "warning: no image of train has so much of nail\n" in printed
    assert "but shot 1 needs at least 2" in printed


def test_images_for_one_shot_but_not_for_five_are_a_warning(folder, capsys):
    write_data(folder, count=15)
    (folder / "val.txt").write_text("".join(f"n{index:02d}\n" for index in range(6)))
    run("--val", "val.txt", "--folds", "seen")
    printed = capsys.readouterr().out
    warnings = [line for line in printed.splitlines() if "warning" in line]
    assert "another --val_share or --seed, or --val FILE, divides the images" in printed
    assert [line.split(" in lists")[0] for line in warnings] == [
        *(f"warning: fold 0: class {class_id} has 3 usable images" for class_id in (1, 2, 3)),
        *(f"warning: fold 0: class {class_id} has 2 usable images" for class_id in (1, 2, 3)),
    ]
    assert all("shot 5 needs at least 6" in line for line in warnings)


def test_the_random_split_is_that_of_the_seed_and_moves_few_images_when_more_come():
    pairs = [Pair(f"pics/{index}.jpg", "") for index in range(200)]
    parts = split(pairs, None, 0.25, 3)
    assert parts == split(pairs, None, 0.25, 3) != split(pairs, None, 0.25, 4)
    assert len(parts["val"]) == 50
    assert [pair for pair in pairs if pair in parts["train"]] == parts["train"]
    more = pairs + [Pair(f"pics/new {index}.jpg", "") for index in range(20)]
    moved = set(parts["val"]) ^ (set(split(more, None, 0.25, 3)["val"]) & set(pairs))
    assert len(moved) <= 10


@pytest.mark.parametrize(
    ("classes", "wanted", "expected"),
    [
        (1, None, {"folds": "seen"}),
        (2, None, {"folds": "contiguous", "num_folds": 2}),
        (7, None, {"folds": [[1, 2, 3, 4], [5, 6, 7]]}),
        (8, None, {"folds": "contiguous", "num_folds": 4}),
        (9, None, {"folds": [[1, 2, 3], [4, 5], [6, 7], [8, 9]]}),
        (3, 3, {"folds": "contiguous", "num_folds": 3}),
        (5, "seen", {"folds": "seen"}),
    ],
)
def test_classes_divide_into_folds(classes, wanted, expected):
    assert divide(classes, wanted) == expected


@pytest.mark.parametrize(
    ("classes", "wanted", "message"),
    [(3, 4, "for 3 classes it has to be 2..3 or seen"), (1, 2, "for 1 class it has to be seen")],
)
def test_impossible_numbers_of_folds_are_named(classes, wanted, message):
    with pytest.raises(UserError, match=f"--folds {wanted}: {message}"):
        divide(classes, wanted)


@pytest.fixture
def fails(error_line):
    """A function that runs the tool with an error, and returns the line of this error."""
    return partial(error_line, run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "nowhere"], "nowhere is not a folder: give the folder of the images"),
        (["--masks", "nowhere"], "nowhere does not exist: give the masks or annotations"),
        (["--masks", "val.txt", "--format", "masks"], "val.txt is not a folder: give the folder"),
        (["--images", "masks"], "--images masks lies in --masks masks"),
        (["--out", "masks/new"], "--out masks/new lies in --masks masks"),
        (["--out", "pics"], "--out pics lies in --images pics: separate them"),
        (["--out", "pics/new"], "--out pics/new lies in --images pics: separate them"),
        (["--out", "val.txt"], "cannot write in val.txt: "),
        (["--name", "a b"], "argument --name: a b: names a folder: letters"),
        (
            ["--name", "pascal"],
            "config/datasets/pascal.yaml is not from this command; give another",
        ),
        (["--name", "base"], "config/base is not from this command"),
        (["--val", "nowhere.txt"], "nowhere.txt cannot be read: No such file"),
        (["--val", "val.txt"], "val.txt line 2: there is no image n77.jpg"),
        (["--val", "zeros.txt"], "zeros.txt is no text in UTF-8 or UTF-16: save it as UTF-8"),
        (["--val", "none.txt"], "--val none.txt leaves no image for val"),
        (["--val", "all.txt"], "--val all.txt leaves no image for train"),
        (["--val", "val.txt", "--val_share", "0.3"], "not allowed with argument"),
        (["--val_share", "1"], "argument --val_share: 1: should be less than 1"),
        (["--val_share", "some"], "some: should be a number"),
        (["--min_pixels", "-1"], "-1: should be at least 0"),
        (["--folds", "5"], "--folds 5: for 3 classes it has to be 2..3 or seen"),
        (["--folds", "half"], "half: should be a whole number or should be 'seen'"),
        (["--class_names", "a,,b"], "--class_names a,,b: a name is empty"),
        (["--class_names", "a,b,a"], "the name a occurs twice"),
        (["--class_names", "names.txt"], "--class_names names.txt: there is no such file"),
        (["--class_names", ",".join(map(str, range(255)))], "255 classes; at most 254 fit"),
        (["--class_names", "latin.txt"], "is no text in UTF-8: rename it"),
        (["--class_names", "a,b"], "masks/n02.png holds the value 3; classes are 1..2"),
        (["--class_names", "Background,a,b,c"], "leave out Background, since the names are those"),
    ],
)
def test_wrong_arguments_are_one_line_and_configure_nothing(folder, fails, options, message):
    write_data(folder)
    (folder / "val.txt").write_text("n00.jpg\nn77.jpg\n")
    (folder / "none.txt").write_text("\n")
    (folder / "zeros.txt").write_bytes(b"n00.jpg\0\0\0")
    (folder / "all.txt").write_text("".join(f"n{index:02d}\n" for index in range(12)))
    (folder / "latin.txt").write_bytes(b"S\xe4ge\n")
    assert message in fails(*options)
    assert not (folder / "config/mine").exists()


def test_the_data_of_another_dataset_is_not_replaced(folder, fails):
    write_data(folder)
    run()
    before = contents(folder / "root")
    (folder / "config/datasets/broken.yaml").write_text("Data: [")
    message = "is the data root of the dataset mine, whose masks would be replaced"
    assert f"--out root: {message}" in fails(name="other")
    assert f"--out {folder}/root: {message}" in fails(name="other", out=f"{folder}/root")
    assert contents(folder / "root") == before
    run()
    run(name="other", out="new")


def without_masks(folder):
    shutil.rmtree(folder / "masks")
    (folder / "masks").mkdir()


def rename(*names):
    def change(folder):
        for old, new in names:
            (folder / old).rename(folder / new)

    return change


def remove_many(folder):
    for index in range(4):
        (folder / f"masks/n{index:02d}.png").unlink()
    (folder / "pics/n07.jpg").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: write_image(folder / "pics/n00.png", disk(3)), "pics/n00.png differ only"),
        (lambda folder: (folder / "masks/extra").mkdir(), "masks holds masks and folders (extra)"),
        (without_masks, "masks holds no mask: give index masks"),
        (lambda folder: shutil.rmtree(folder / "pics") or (folder / "pics").mkdir(), "no image ("),
        (
            remove_many,
            "images without a mask in masks (4): n00, n01, n02, …; masks without an image in pics (1): "
            "n07. Add what is missing",
        ),
        (rename(("masks/n00.png", "masks/N00.png")), "in masks (1): n00; masks without an image"),
        (
            rename(("pics/n00.jpg", "pics/n\t.jpg"), ("masks/n00.png", "masks/n\t.png")),
            "a list cannot hold a name with a tab",
        ),
    ],
)
def test_what_does_not_pair_up_is_named(folder, fails, change, message):
    write_data(folder)
    change(folder)
    assert message in fails()
    assert not (folder / "root/index_masks").exists()


def as_float_tiff(path):
    Image.new("F", SIZE[::-1]).save(path.with_suffix(".tif"))
    path.unlink()


INDEX, BINARY = "masks/n04.png", "masks/class2/n04.png"


@pytest.mark.parametrize(
    ("path", "spoil", "message"),
    [
        ("pics/n04.jpg", cut, "image pics/n04.jpg is damaged or truncated"),
        ("pics/n04.jpg", as_float_tiff, "pics/n04.tif is damaged or truncated, or of a kind that "),
        (INDEX, cut, "mask masks/n04.png is damaged or truncated"),
        (INDEX, becomes(disk(9, (48, 61))), "n04.jpg is 60×48 pixels but its mask"),
        (INDEX, becomes(disk(9).astype(np.uint16) * 300), "holds the value 300;"),
        (INDEX, becomes(noise(SIZE)), "nothing says which colour is which class: add a labelmap"),
        (BINARY, becomes(noise(SIZE)), "class2/n04.png holds 2880 values besides 0"),
        (BINARY, becomes(disk(9) + disk(3)), "n04.png holds 2 values besides 0"),
        (BINARY, lambda path: path.write_text("text"), "class2/n04.png is damaged or truncated"),
        (
            "masks/class3/n04.png",
            becomes(disk(9, (48, 61))),
            "class2/n04.png is 60×48 pixels but masks/class3/n04.png is 61×48",
        ),
    ],
)
def test_a_wrong_file_is_named(folder, fails, path, spoil, message):
    write_data(folder, binary=path.startswith("masks/class"))
    spoil(folder / path)
    assert message in fails()
    assert not (folder / "config/mine").exists()
    assert not (folder / "root/index_masks/n04.png").exists()


def test_all_wrong_files_are_found_at_once(folder, fails):
    write_data(folder)
    whole = (folder / "masks/n08.png").read_bytes()
    for name in ("pics/n04.jpg", "masks/n08.png"):
        cut(folder / name)
    error = fails()
    assert "n04.jpg is damaged" in error and "(2 problems; all: root/problems.txt)" in error
    problems = (folder / "root/problems.txt").read_text().splitlines()
    assert ["n04.jpg" in problems[0], "n08.png" in problems[1], len(problems)] == [True, True, 2]
    write_image(folder / "pics/n04.jpg", noise(SIZE))
    (folder / "masks/n08.png").write_bytes(whole)
    run()
    assert not (folder / "root/problems.txt").exists()


def test_gray_levels_are_no_class_ids_but_named_classes_may_lack_images(folder, fails):
    write_data(folder)
    for path in (folder / "masks").iterdir():
        write_image(path, disk(0) * 0)
    assert "no mask holds a class" in fails()
    write_data(folder)
    for index in range(2, 12, 3):
        write_image(folder / f"masks/n{index:02d}.png", disk(15) * 5)
    error = fails()
    assert "masks/n02.png holds the value 5, but none holds 3: values are class ids" in error
    run("--class_names", "a,b/c,d,e,f")
    assert config().num_classes == 5 and config().class_names[1] == "b/c"


def test_a_configuration_that_cannot_be_written_is_said_before_the_work(folder, fails):
    write_data(folder)
    Path("config/mine").symlink_to("/proc")  # It refuses even root.
    error = fails()
    assert "cannot write in " in error and "config/mine: " in error
    assert "it gets the configuration of the dataset" in error and not Path("root").exists()


def test_images_may_lie_in_the_data_root_already(folder, capsys):
    write_data(folder)
    shutil.move("pics", "root/images")
    run("--images", "root/images")
    assert "images: 12 in place" in capsys.readouterr().out


@pytest.mark.parametrize("renames", [7, 23, 25, 27])
def test_a_killed_run_goes_on_to_the_same_end(folder, renames):
    def made():
        names = ("root", "lists/mine", "config/mine", "config/datasets")
        everything = [contents(folder / name) for name in names]
        return [{k: v for k, v in files.items() if ".tmp" not in k} for files in everything]

    write_data(folder, binary=True)
    run()
    whole = made()
    for name in ("root", "lists", "config/mine"):
        shutil.rmtree(name)
    os.remove("config/datasets/mine.yaml")
    assert run_killed(run, renames)
    assert made() != whole
    run()
    assert made() == whole
    assert not list(Path("root").rglob("*.tmp"))


def test_an_interrupted_run_says_that_it_goes_on(folder, fails, capsys, monkeypatch):
    write_data(folder)
    calls = []

    def interrupted(*arguments, place=util.preparation.custom_pairs.prepare_pair, **options):
        calls.append(arguments)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return place(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(util.preparation.custom_pairs, "prepare_pair", interrupted)
        assert "run the same command again to continue" in fails(code=INTERRUPTED)
    assert len(list(Path("root/index_masks").iterdir())) == 5
    assert not Path("lists/mine/train.txt").exists() and not Path("config/mine").exists()
    run()
    assert "masks: 12, 7 of them written now" in capsys.readouterr().out


def test_running_again_with_other_classes_changes_nothing(folder, fails):
    write_data(folder)
    run("--class_names", "a,b,c")
    before = contents(folder / "root") | contents(folder / "config")
    for names in ([], ["--class_names", "a,c,b"], ["--class_names", "b,c,d"]):
        assert "its classes are a, b, c, and those given now are" in fails(*names)
        assert contents(folder / "root") | contents(folder / "config") == before
    run("--class_names", "a,b,c,d")  # More may come.
    assert config().class_names == ["a", "b", "c", "d"]


def test_running_again_takes_in_new_data_and_keeps_what_the_user_edited(
    folder, capsys, tmp_path_factory
):
    write_data(folder)
    run()
    mask = Path("root/index_masks/n00.png")
    before = mask.stat().st_mtime_ns
    with open("config/mine/mine.yaml", "a") as handle:
        handle.write("  epochs: 7\n")
    capsys.readouterr()
    run()
    assert "masks: 12, 0 of them written now" in capsys.readouterr().out
    write_data(folder, count=16, classes=4)
    run()
    assert (config().num_classes, config().folds, config().num_folds) == (4, "contiguous", 2)
    assert config().epochs == 7
    assert mask.stat().st_mtime_ns == before
    assert len(entries("train") + entries("val")) == 16
    # A folder outside the repository stays as it is given.
    elsewhere = str(tmp_path_factory.mktemp("data root"))
    run(out=elsewhere)
    assert config().data_root == elsewhere


SIZES = ("train_h", "train_w", "val_size", "base_h", "base_w")
SMALL = [*(f"{key}=33" for key in SIZES), "workers=0"]


@pytest.fixture
def start(monkeypatch):
    """A function that runs a script on a prepared dataset, with a small model for a short time."""

    def start(name, script, *opts):
        file = f"config/{name}/{name}_split0_resnet50.yaml"
        short = ["backbone=resnet18", "epochs=1", "val_num=2", "batch_size=2"]
        words = [f"{script.__name__}.py", "--config", file, "--opts", *SMALL, *short, *opts]
        monkeypatch.setattr(sys, "argv", words)
        script.main()

    return start


@pytest.mark.slow
def test_from_a_clone_to_a_training_from_public_weights(tmp_path):
    """What docs/data.md tells a new user, with a stand-in for the hub."""
    clone = tmp_path / "clone"
    for name in ("config", "model", "util"):
        shutil.copytree(ROOT / name, clone / name)
    for name in ("train_base.py", "train.sh"):
        shutil.copy(ROOT / name, clone / name)
    write_data(tmp_path, count=16, classes=1, binary=True)
    folders = ["--images", tmp_path / "pics", "--masks", tmp_path / "masks", "--out", "data/mine"]
    python = [sys.executable, "-m"]
    with Hub() as hub:
        weights = timm.create_model("resnet50s").state_dict()
        hub.files["timm/resnet50s.gluon_in1k"] = save(weights)
        environment = os.environ | {"PYTHON": sys.executable, "HF_ENDPOINT": hub.address}
        environment |= {"HF_HOME": str(tmp_path / "hub")}
        for command in (
            [*python, "util.prepare_custom", "--name", "mine", *folders, "--min_pixels", "100"],
            [*python, "util.weights", "fetch", "resnet50"],
        ):
            done = subprocess.run(
                command, cwd=clone, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
    assert "initmodel/resnet50_v2.pth" in done.stdout and "licence apache-2.0" in done.stdout
    with subprocess.Popen(
        ["sh", "train.sh", "split0", "mine", "1", *SMALL, "print_freq=1"],
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as training:
        said = ""
        while "items/s" not in said and (line := training.stdout.readline()):
            said += line
        row = training.stdout.readline()  # the first iteration, below its header
        os.killpg(training.pid, signal.SIGKILL)
    assert "backbone: resnet50 from initmodel/resnet50_v2.pth" in said
    assert row.split()[2:4] == ["1/100", "1/100"], said + row


@pytest.mark.slow
def test_the_command_starts_without_torch():
    """It takes most of the time that a small dataset needs."""
    code = "import sys, util.prepare_custom; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.slow
def test_one_class_from_folders_to_the_test(folder, capsys, start):
    write_data(folder, count=16, classes=1, binary=True)
    for path in (*(folder / "pics").iterdir(), *(folder / "masks/class1").iterdir()):
        path.rename(path.with_stem(os.fsdecode(b"caf\xe9 ") + path.stem))  # Latin-1, no UTF-8
    run("--val_share", "0.25", name="cells")
    assert "fold 0 holds no class out; images to train: 12, to test: 4" in capsys.readouterr().out
    start("cells", train_base, "base_epochs=1")
    start("cells", train)
    start("cells", test, "test_runs=1", "test_num=4", "vis_num=1")
    printed = capsys.readouterr().out
    assert "distill" in printed and "class1" in printed
    (report,) = (folder / "exp/cells/HDMNet/split0/resnet18/result").glob("test-1shot-*.json")
    assert set(json.loads(report.read_text())["runs"][0]["class_iou"]) == {"1"}


def write_scenes(root, count=10, classes=4):
    """Images with an object of each class, of growing size."""
    for index in range(count):
        write_image(root / f"pics/n{index:02d}.jpg", noise(SIZE, index))
        mask = np.zeros(SIZE, np.uint8)
        for rank in range(classes):
            mask[:40, rank * 15 : rank * 15 + 4 + 2 * rank] = rank + 1
        write_image(root / f"masks/n{index:02d}.png", mask)


def test_scenes_keep_their_images(folder, capsys):
    write_scenes(folder)
    run()
    printed = capsys.readouterr().out
    reason = "drop leaves 0, 0 training images in the folds, background 8, 8"
    assert f"held-out classes in training images: background ({reason})\n" in printed
    assert "images to train: 8, to test: 2" in printed
    description = Path("config/datasets/mine.yaml").read_text()
    assert f"  mixed_images: background  # {reason}\n" in description
    cfg = config(1)
    assert (cfg.mixed_images, cfg.absent_class, cfg.min_cells) == ("background", "skip", 0)
    run("--mixed_images", "drop")
    assert config().mixed_images == "drop"
    assert "warning: fold 0: no image of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mixed", "pure", "rule"),
    [
        ({}, {3: 3, 4: 3, 1: 3, 2: 3}, "drop"),
        ({3: 6, 1: 6}, {3: 3, 4: 3, 1: 3, 2: 3}, "drop"),  # half of the images of each fold
        ({3: 20, 1: 20}, {3: 3, 4: 3, 1: 3, 2: 3}, "background"),  # less than a quarter
        ({4: 2}, {3: 9, 4: 1, 1: 9, 2: 9}, "background"),  # one support of class 4
        ({4: 2}, {3: 9, 4: 2, 1: 9, 2: 9}, "drop"),
    ],
)
def test_the_better_rule_for_images_of_held_out_classes(mixed, pure, rule):
    data = {"num_classes": 4, "folds": "contiguous", "num_folds": 2, "min_pixels": 5}
    counts = [{c: 9} for c, number in pure.items() for _ in range(number)]
    counts += [{c: 9, 5 - c: 1} for c, number in mixed.items() for _ in range(number)]
    entries = [(f"{i}.jpg", f"{i}.png") for i in range(len(counts))]
    found, reason = choose_mixed_images(data, entries, counts)
    assert found == rule
    assert reason.startswith(
        f"drop leaves {pure[3] + pure[4]}, {pure[1] + pure[2]} training images"
    )


@pytest.mark.slow
def test_scenes_of_small_objects_from_folders_to_the_test(folder, capsys, start, error_line):
    """All settings of scenes, from the description of the dataset, and over it by --opts."""
    write_scenes(folder)
    (folder / "val.txt").write_text("n00.jpg\nn01.jpg\nn02.jpg\n")
    for name in ("n00", "n01", "n02"):
        mask = read_mask(f"masks/{name}.png")
        mask[mask == 2] = 0
        write_image(folder / f"masks/{name}.png", mask)
    run("--val", "val.txt", "--min_cells", "2")
    assert "100 pixels or more of a class on 2 cells or more:" in capsys.readouterr().out
    assert (config().min_cells, config().mixed_images) == (2, "background")
    assert len([*folder.glob("lists/*-473-60x60.json")]) == 2
    own = folder / "config/mine/mine.yaml"
    before = own.read_text()
    own.write_text(f"{before}  train_h: 65\n  train_w: 65\n")
    run("--val", "val.txt", "--min_cells", "1")
    assert len([*folder.glob("lists/*-65-9x9.json")]) == 2
    own.write_text(before)
    run("--val", "val.txt", "--min_cells", "2")
    kept, tested = "mixed_images=ignore", ["test_runs=1", "test_num=2", "vis_num=0"]
    own = ["base_learner=none", kept]
    start("mine", train, *own)
    start("mine", test, *own, *tested)
    result = folder / "exp/mine/HDMNet/split0_nobase_ignore/resnet18/result"
    (report,) = (json.loads(path.read_text()) for path in result.glob("test-*.json"))
    assert report["runs"][0]["class_iou"]["2"] is None
    assert report["mean"]["mIoU"] == report["runs"][0]["class_iou"]["1"]
    settings = report["settings"]
    assert [settings[key] for key in ("mixed_images", "min_cells", "absent_class")] == [
        *("ignore", 2, "skip")
    ]
    assert "No episode asks for 2: left out of mIoU." in capsys.readouterr().out

    for opts, place in (((), "split0"), ((kept,), "split0_ignore")):
        error = error_line(start, "mine", train, *opts)
        assert f"no base learner in exp/mine/PSPNet/{place}/" in error
    error = error_line(start, "mine", train, *own, "min_cells=1", "epochs=2")
    assert "was trained with min_cells 2, the settings have 1" in error
    start("mine", test, *own, *tested, "absent_class=zero")
    assert len(list(result.glob("test-*.json"))) == 2
    assert "No episode" not in capsys.readouterr().out
