import itertools
import json
import os
import shutil

import cv2
import numpy as np
import pytest

from tests.util.prepare_files import contents
from util.data.folds import LIST_PARTS
from util.demo.background import TEXTURES
from util.demo.scene import PATTERNS
from util.demo.shapes import SAMPLES, SILHOUETTES, coverage, silhouette
from util.demo_data import CLASS_NAMES, draw_picture, main, scene_classes, usual_hues, write_demo
from util.runtime.errors import UserError

TRAIN, VAL = 30, 20


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo data") / "set"
    assert write_demo(folder, TRAIN, VAL) is True
    return folder


def entries(folder, part):
    return [line.split(" ") for line in (folder / f"{part}.txt").read_text().splitlines()]


@pytest.mark.slow
def test_layout(demo):
    names = {"train.txt", "val.txt", "classes.txt", "demo.json"}
    for part, count in zip(LIST_PARTS, (TRAIN, VAL), strict=True):
        pairs = entries(demo, part)
        assert len(pairs) == count
        for image_name, mask_name in pairs:
            assert image_name.startswith(f"JPEGImages/{part}_")
            assert mask_name.startswith(f"SegmentationClassAug/{part}_")
            names |= {image_name, mask_name}
    assert set(contents(demo)) == names
    assert (demo / "classes.txt").read_text().splitlines() == list(CLASS_NAMES)
    stamp = json.loads((demo / "demo.json").read_text())
    del stamp["version"]
    assert stamp == {"train": TRAIN, "val": VAL, "seed": 0, "size": 240}


def test_pictures_and_masks(demo):
    portraits = set()
    for number, part in enumerate(LIST_PARTS):
        seen = set()
        for index, (image_name, mask_name) in enumerate(entries(demo, part)):
            image = cv2.imread(str(demo / image_name))
            mask = cv2.imread(str(demo / mask_name), cv2.IMREAD_UNCHANGED)
            assert mask.dtype == np.uint8 and mask.ndim == 2
            assert image.shape == (*mask.shape, 3)
            assert min(mask.shape) >= 170 and max(mask.shape) <= 240
            portraits.add(mask.shape[0] > mask.shape[1])
            values, counts = np.unique(mask, return_counts=True)
            sizes = dict(zip(values.tolist(), counts.tolist(), strict=True))
            assert sizes.pop(0) > 0.2 * mask.size
            assert 0 < sizes.pop(255) < 0.15 * mask.size
            assert 1 <= len(sizes) <= 3
            assert all(2048 < size < 0.36 * mask.size for size in sizes.values())
            planned = scene_classes(0, number, index)
            assert planned[0] in sizes and set(sizes) <= set(planned)
            seen |= set(sizes)
        assert seen == set(range(1, 21))
    assert portraits == {True, False}


def test_outlines_are_thin_and_closed(demo):
    for _, mask_name in entries(demo, "train")[:6]:
        mask = cv2.imread(str(demo / mask_name), cv2.IMREAD_UNCHANGED)
        ignored = (mask == 255).astype(np.uint8)
        assert not cv2.erode(ignored, np.ones((6, 6), np.uint8), borderValue=0).any()
        for down, right in ((0, 1), (1, 0)):
            here = mask[: mask.shape[0] - down, : mask.shape[1] - right]
            there = mask[down:, right:]
            touching = (here != there) & (here != 255) & (there != 255)
            assert not touching.any()  # no class touches another or the background


def test_a_shorter_set_is_the_start_of_a_longer_one(demo, tmp_path):
    write_demo(tmp_path / "short", 4, 2)
    long = contents(demo)
    for name, data in contents(tmp_path / "short").items():
        if "/" in name:
            assert long[name] == data


def test_seeds_and_parts_share_no_picture():
    (image, mask), *others = (draw_picture(*which, 3, 160) for which in ((0, 1), (1, 1), (0, 0)))
    for other_image, other_mask in others:
        assert image.shape != other_image.shape or (image != other_image).any()
        assert mask.shape != other_mask.shape or (mask != other_mask).any()


def test_complete_set_is_left_alone_and_a_broken_one_completed(demo, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "set"
    shutil.copytree(demo, folder)
    (folder / "SegmentationClassAug" / "train_0007.png").unlink()
    (folder / "val.txt").unlink()
    (folder / "notes.txt").write_text("mine")
    assert write_demo(folder, TRAIN, VAL) is True
    assert contents(folder) == {**contents(demo), "notes.txt": b"mine"}
    monkeypatch.setattr("util.demo_data.draw_picture", None)
    assert write_demo(folder, TRAIN, VAL) is False
    main(["--out", str(folder), "--train", str(TRAIN), "--val", str(VAL)])
    assert "complete" in capsys.readouterr().out


def test_interrupted_run_leaves_no_list_and_goes_on(tmp_path, monkeypatch):
    def stop_at_third(seed, part, index, size):
        if (part, index) == (0, 2):
            raise KeyboardInterrupt
        return draw_picture(seed, part, index, size)

    folder = tmp_path / "set"
    monkeypatch.setattr("util.demo_data.draw_picture", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        write_demo(folder, 3, 1)
    assert not (folder / "train.txt").exists()
    monkeypatch.undo()
    write_demo(folder, 3, 1)
    write_demo(tmp_path / "straight", 3, 1)
    assert contents(folder) == contents(tmp_path / "straight")


@pytest.mark.parametrize("change", [{"seed": 1}, {"train": 31}, {"val": 21}, {"size": 200}])
def test_other_arguments_are_refused(demo, change):
    before = contents(demo)
    with pytest.raises(UserError, match="other arguments"):
        write_demo(demo, **{"train": TRAIN, "val": VAL, **change})
    assert contents(demo) == before


def test_foreign_folder_is_refused_and_untouched(tmp_path, error_line):
    (tmp_path / "thesis.txt").write_text("mine")
    assert "not empty" in error_line(main, ["--out", str(tmp_path)])
    assert contents(tmp_path) == {"thesis.txt": b"mine"}
    with pytest.raises(UserError, match="is a file"):
        write_demo(tmp_path / "thesis.txt", 2, 1)
    (tmp_path / "empty").mkdir()
    assert write_demo(tmp_path / "empty", 1, 1) is True
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "demo.json").write_text("{")
    with pytest.raises(UserError, match="other arguments"):
        write_demo(tmp_path / "torn", 1, 1)


@pytest.mark.parametrize("name, value", [("train", 0), ("val", -1), ("seed", -1), ("size", 100)])
def test_values_out_of_range_are_refused_before_anything_is_written(tmp_path, name, value):
    with pytest.raises(UserError, match=f"--{name} {value}"):
        write_demo(tmp_path / "set", **{name: value})
    assert not os.listdir(tmp_path)


def test_classes_are_told_apart():
    classes = [name.split("_") for name in CLASS_NAMES]
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 20
    for start in range(0, 20, 5):
        patterns, shapes = zip(*classes[start : start + 5], strict=True)
        assert len(set(patterns)) == len(set(shapes)) == 5
    assert {pattern for pattern, _ in classes} == set(PATTERNS)
    assert {shape for _, shape in classes} == set(SILHOUETTES)


def test_plan_is_balanced_and_leaves_every_fold_enough():
    plans = [scene_classes(0, 0, index) for index in range(1000)]
    assert all(len(set(plan)) == len(plan) for plan in plans)
    counts = np.bincount(list(itertools.chain(*plans)), minlength=21)[1:]
    assert counts.min() > 0.75 * counts.mean() and counts.max() < 1.25 * counts.mean()
    shares = np.bincount([len(plan) for plan in plans]) / len(plans)
    assert 0.4 < shares[1] < 0.55 and 0.06 < shares[3] < 0.16
    for start in range(1, 21, 5):
        held_out = set(range(start, start + 5))
        assert sum(held_out.isdisjoint(plan) for plan in plans) >= 600


def test_no_two_classes_share_both_hues():
    hues = {class_id: usual_hues(class_id) for class_id in range(1, 21)}
    assert len(set(hues.values())) == 20
    for start in range(1, 21, 5):
        held_out = range(start, start + 5)
        assert len({hues[c][0] for c in held_out}) == 5
        turns = {c: (second - first) % 360 for c, (first, second) in hues.items()}
        trained = {turn for c, turn in turns.items() if c not in held_out}
        assert trained.isdisjoint(turns[c] for c in held_out)


def test_a_class_comes_in_its_usual_hues_and_sometimes_in_others():
    near = []
    for index in range(0, 800, 20):
        order = [scene_classes(0, 0, k)[0] for k in range(index, index + 20)]
        image, mask = draw_picture(0, 0, index + order.index(12), 160)
        pixels = cv2.cvtColor(image[mask == 12][None].astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
        distances = [np.abs((pixels[0, :, 0] - hue + 180) % 360 - 180) for hue in usual_hues(12)]
        near.append(np.mean(np.minimum(*distances) < 30))
    usual = np.mean(np.array(near) > 0.7)
    assert 0.6 < usual < 1


@pytest.mark.parametrize("name", SILHOUETTES)
def test_silhouettes_have_unit_area_around_their_centre(name):
    samples = coverage(silhouette(name), np.eye(2) * 60, (100, 100), 200, 200).astype(np.int64)
    assert samples.sum() == pytest.approx(60 * 60 * SAMPLES**2, rel=0.01)
    assert not samples[[0, -1]].any() and not samples[:, [0, -1]].any()
    y, x = np.mgrid[0:200, 0:200] + 0.5
    assert (samples * x).sum() / samples.sum() == pytest.approx(100, abs=0.3)
    assert (samples * y).sum() / samples.sum() == pytest.approx(100, abs=0.3)


@pytest.mark.parametrize("texture", TEXTURES)
def test_textures_fill_any_size_with_moderate_values(texture):
    for seed, (height, width) in enumerate(((184, 240), (240, 201), (137, 160))):
        field = texture(np.random.RandomState(seed), height, width, 1.0)
        assert field.shape == (height, width) and np.isfinite(field).all()
        assert -0.5 < field.min() < field.max() < 1.5
