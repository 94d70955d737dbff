"""Preparation of other benchmarks, and the commands on miniatures in the form of their archives."""

import json
import sys
from functools import partial

import cv2
import numpy as np
import pytest
import torch

import test
from model import build_hdmnet
from tests.util.prepare_files import contents, noise, write_image
from util.checks.data import data_rows
from util.checks.rows import ERROR
from util.config import load_config
from util.data.dataset import read_pair
from util.data.hsnet import draw_hsnet_runs
from util.data.lists import read_entries
from util.data.loaders import (
    build_episodes,
    build_train_loader,
    build_validation_episodes,
    config_fold,
    mask_form,
)
from util.evaluation.protocol_report import published_miou
from util.prepare_benchmark import BENCHMARKS, RAREST, main

SIZE = (48, 60)
FSS = {"trn": ["thor's_hammer", "abe", "burj_al"], "val": ["zebra", "ant"], "test": ["bee", "cat"]}
# As red, green and blue, in the order of the classes.
AGRICULTURE, URBAN, *OTHERS = [
    (255, 255, 0),
    (0, 255, 255),
    (255, 0, 255),
    (0, 255, 0),
    (0, 0, 255),
]
SUIM = [(r, g, b) for r, g, b in np.ndindex(2, 2, 2) if (r, g, b) != (0, 0, 0)]


def disk(number, size=SIZE):
    """White on black, at another place for each number."""
    place = (10 + 3 * number % 30, 12 + 5 * number % 20)
    return cv2.circle(np.zeros(size, np.uint8), place, 9, 255, -1)


def write_fss(root):
    for part, names in FSS.items():
        (root / f"{part}.txt").write_text("\n".join([*names, ""]))
        for name in names:
            for number in range(1, 11):
                seed = 10 * len(name) + number
                write_image(root / f"fewshot_data/{name}/{number}.jpg", noise(SIZE, seed))
                mask = disk(seed)
                if number == 3:
                    mask = np.dstack([mask, mask, mask, np.full_like(mask, 255)])
                write_image(root / f"fewshot_data/{name}/{number}.png", mask)


def write_isic(root):
    rows = ["ID,Class"]
    for number in range(9):
        stem = f"ISIC_{number:07}"
        write_image(root / f"ISIC2018_Task1-2_Training_Input/{stem}.jpg", noise(SIZE, number))
        mask = root / f"ISIC2018_Task1_Training_GroundTruth/{stem}_segmentation.png"
        write_image(mask, disk(number))
        rows.append(f"{stem},{('nevus', 'melanoma', 'seborrheic keratosis')[number % 3]}")
    (root / "class_id.csv").write_text("\r\n".join(rows))


def write_chest(root):
    for number in range(6):
        stem = f"CHNCXR_{number:04}_0"
        write_image(root / f"Lung Segmentation/CXR_png/{stem}.png", disk(number + 3))
        # The published masks have another size than some of the pictures.
        write_image(root / f"Lung Segmentation/masks/{stem}_mask.png", disk(number, (30, 40)))
    for kind in ("CXR_png", "masks"):  # Montgomery: PATNet's loader passes it over.
        write_image(root / f"Lung Segmentation/{kind}/MCUCXR_0001_0.png", disk(1))


def write_deepglobe(root):
    for number, stem in enumerate(("119", "2334")):
        mask = np.zeros((2 * 408, 3 * 408, 3), np.uint8)
        for tile in range(6):
            y, x = tile // 3 * 408, tile % 3 * 408
            mask[y : y + 408, x : x + 408] = (AGRICULTURE, URBAN)[number]
            share = {4: 0.04, 5: 0}.get(tile, 0.3)
            mask[y : y + round(408 * share), x : x + 408] = OTHERS[tile % 3]
        mask[mask > 0] -= 3  # values near to the pure colours
        write_image(root / f"train/{stem}_sat.jpg", noise(mask.shape[:2], number))
        write_image(root / f"train/{stem}_mask.png", mask)


def write_suim(root):
    for number in range(8):
        folder = root / ("TEST" if number > 5 else "train_val")
        mask = np.zeros((*SIZE, 3), np.uint8)
        for row, colour in enumerate(SUIM[number % 2 :]):
            mask[6 * row : 6 * row + 6, : 20 + number] = np.multiply(colour, 250)
        write_image(folder / f"images/d_r_{number}_.jpg", noise(SIZE, number))
        write_image(folder / f"masks/d_r_{number}_.bmp", mask)


def run(name, *options):
    main([name, "--root", "archives", "--out", "root", "--workers", "1", *options])


def prepare(folder, name, capsys):
    """The printed lines, the settings and the entries of the lists."""
    (folder / "archives").mkdir()
    globals()[f"write_{name}"](folder / "archives")
    run(name)
    cfg = load_config(f"config/{name}/{name}_split0_resnet50.yaml")
    entries = [read_entries("root", f"lists/{name}/{part}.txt") for part in ("train", "val")]
    return capsys.readouterr().out, cfg, *entries


def problems(name):
    opts = ["batch_size", "1", "base_batch_size", "1"]
    cfg = load_config(f"config/{name}/{name}_split0_resnet50.yaml", opts)
    return [row for row in data_rows(cfg, True, 1, "") if row.status == ERROR]


@pytest.fixture
def fails(error_line):
    """A function that runs the tool with an error, and returns the line of this error."""
    return partial(error_line, run)


def test_fss_has_classes_of_its_own_for_training_validation_and_test(folder, capsys):
    printed, cfg, train, val = prepare(folder, "fss", capsys)
    assert "classes of train: 3 (warning: 520 expected" in printed
    assert "images of FSS-1000: 70 (warning: 10,000 expected" in printed
    assert cfg.class_names == ["abe", "burj_al", "thor's_hammer", "ant", "zebra", "bee", "cat"]
    assert cfg.folds == {"train": [1, 2, 3], "val": [4, 5], "test": [6, 7]}
    assert (cfg.masks, cfg.protocol, cfg.test_num) == ("folders", "hsnet", 2400)
    assert [image for image, _ in train[:3]] == [f"images/abe/{n}.jpg" for n in (1, 10, 2)]
    assert (len(train), len(val)) == (30, 40)
    assert not problems("fss")
    opts = ["backbone", "resnet18", "train_h", "33", "train_w", "33", "workers", "0"]
    cfg = load_config("config/fss/fss_split0_resnet50.yaml", [*opts, "val_size", "33"])
    episodes = {part: build_episodes(cfg, part, testing=True) for part in ("train", "test")}
    episodes["val"] = build_validation_episodes(cfg)
    for part, classes in (("train", (1, 2, 3)), ("val", (4, 5)), ("test", (6, 7))):
        assert episodes[part].classes == classes
        assert {c for present in episodes[part].lists.present for c in present} == {*classes}
    batch = next(iter(build_train_loader(cfg)))
    assert {*batch["class_id"].tolist()} <= {1, 2, 3}
    assert {*batch["query_mask"].unique().tolist()} <= {0, 1, 255}
    # The queries are in the order of text, and a support is the drawn number of its class.
    (drawn,) = draw_hsnet_runs(episodes["test"].lists, 1, 40, 1)
    np.random.seed(0)
    for draw, number in zip(drawn.draws, [1, 10, *range(2, 10)] * 4, strict=True):
        support = number
        while support == number:
            support = np.random.choice(range(1, 11), 1, replace=False)[0]
        paths = [episodes["test"].lists.entries[i][0] for i in (draw.index, *draw.supports)]
        assert [path.split("/")[-1] for path in paths] == [f"{number}.jpg", f"{support}.jpg"]
    capsys.readouterr()
    before = contents(folder / "root")
    run("fss")
    assert "masks: 70, 0 of them written now" in capsys.readouterr().out
    assert contents(folder / "root") == before


def test_isic_has_the_classes_of_its_table_or_of_folders(folder, fails, capsys):
    printed, cfg, train, val = prepare(folder, "isic", capsys)
    assert "melanoma: 3 (warning: 519 expected; is the dataset complete?)" in printed
    assert train == val and len(val) == 9 and not problems("isic")
    _, mask = read_pair("root", read_entries("root", cfg.val_list, mask_form(cfg))[4])
    assert (mask == 2 * (disk(4) > 0)).all()
    (folder / "archives/class_id.csv").unlink()
    error = fails("isic")
    assert "ISIC_0000000.jpg is not known: docs/data.md says" in error
    for path in sorted((folder / "archives").rglob("ISIC*.jpg")):
        (path.parent / "3").mkdir(exist_ok=True)
        path.rename(path.parent / "3" / path.name)
    run("isic", "--out", "other")
    listed = read_entries("other", cfg.val_list)
    assert {mask.split("/")[1] for _, mask in listed} == {"seborrheic_keratosis"}


def test_chest_takes_the_images_of_the_published_loader_and_resizes_masks(folder, capsys):
    printed, cfg, _, val = prepare(folder, "chest", capsys)
    assert "images without a mask, left out: 1" in printed and len(val) == 6
    _, mask = read_pair("root", read_entries("root", cfg.val_list, mask_form(cfg))[0])
    assert mask.shape == SIZE and not problems("chest")


def test_deepglobe_is_cut_into_the_tiles_of_the_published_rule(folder, capsys):
    printed, cfg, _, val = prepare(folder, "deepglobe", capsys)
    # The fifth tile has a colour that is too rare, the sixth a single one.
    tiles = [
        f"images/{stem}_sat_{ij}.jpg" for stem in (119, 2334) for ij in ("00", "01", "02", "10")
    ]
    assert sorted({image for image, _ in val}) == tiles
    by_class = {name: sum(f"/{name}/" in mask for _, mask in val) for name in cfg.class_names}
    assert by_class == {
        **{"agriculture": 4, "urban": 4, "rangeland": 4},
        **{"forest": 2, "water": 2, "barren": 0},
    }
    entry = read_entries("root", cfg.val_list, mask_form(cfg))[0]
    _, mask = read_pair("root", entry)
    assert mask.shape == (408, 408) and {*np.unique(mask)} == {1, 3}
    assert RAREST < (mask == 3).mean() < 0.31
    assert "agriculture: 4 (warning: 6,891 expected" in printed


def test_suim_is_read_from_colours_or_from_folders_of_classes(folder, capsys):
    _, cfg, _, val = prepare(folder, "suim", capsys)
    assert len(val) == 4 * 7 + 4 * 6
    assert [mask.split("/")[1] for image, mask in val if "d_r_0" in image] == cfg.class_names
    masks = {mask: read_pair("root", (image, mask))[1] for image, mask in val}
    (folder / "archives").rename(folder / "coloured")
    for mask, pixels in masks.items():
        write_image(folder / "archives" / mask, pixels)
        stem = mask.split("/")[-1].removesuffix(".png")
        write_image(folder / f"archives/images/{stem}.jpg", noise(SIZE, 0))
    run("suim", "--out", "other")
    assert read_entries("other", cfg.val_list) == val
    assert (read_pair("other", val[5])[1] == masks[val[5][1]]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["isic", "suim", "fss"])
def test_a_model_of_pascal_is_tested_on_another_domain(folder, capsys, monkeypatch, name):
    prepare(folder, name, capsys)
    torch.manual_seed(0)
    net = build_hdmnet("resnet18", base_classes=20)
    content = {"epoch": 1, "state_dict": net.state_dict(), "data_set": "pascal"}
    torch.save(content | {"backbone": "resnet18"}, folder / "train_epoch_1.pth")
    config = f"config/{name}/{name}_split0_resnet50.yaml"
    opts = ["backbone", "resnet18", "val_size", "33", "test_num", "7", "workers", "0"]
    opts += ["weight", str(folder / "train_epoch_1.pth"), "vis_num", "0"]
    opts += ["base_learner", "pspnet"]
    monkeypatch.setattr(sys, "argv", ["test.py", "--config", config, "--opts", *opts])
    test.main()
    (path,) = folder.rglob("test-*.json")
    report = json.loads(path.read_text())
    assert report["published_mIoU_percent"] is None
    assert report["settings"]["protocol"] == "hsnet" and len(report["runs"]) == 1
    assert "The weights were trained on pascal" in " ".join(report["notes"])
    text = path.with_suffix(".md").read_text()
    assert "published" not in text and "mIoU_b" not in text
    cfg = load_config(config, opts)
    assert cfg.hsnet_class == ("listed" if name == "fss" else "cyclic")
    assert [*map(int, report["runs"][0]["class_iou"])] == [*config_fold(cfg).novel]
    assert published_miou(cfg) is None


def test_what_the_archives_lack_is_named(folder, fails):
    (folder / "archives").mkdir()
    assert "holds no images and masks of Chest X-ray: docs/data.md" in fails("chest")
    error = fails("fss")
    assert "archives/trn.txt (and 2 more) does not exist: take this list of classes from" in error
    error = fails("chest", "--out", "archives/new")
    assert "--out archives/new lies in --root archives: separate them" in error
    write_suim(folder / "archives")
    write_image(folder / "archives/more/images/d_r_1_.jpg", noise(SIZE, 0))
    assert "d_r_1_.jpg have one name and one class: remove one" in fails("suim")
    assert [*BENCHMARKS] == ["fss", "isic", "chest", "deepglobe", "suim"]
