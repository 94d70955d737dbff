"""predict.py: every format, reruns, interruptions, bad pictures, and errors of one line."""

import csv
import json
import multiprocessing
import os
import re
import resource
import signal
import time

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

import predict
from segmenter import FewShotSegmenter, Support
from tests.paths import ROOT
from tests.processes import start_python
from tests.small_model import SIZE, small_episodes, small_net
from util.predict import formats
from util.preparation.coco import read_instances
from util.preparation.segmentations import AnnotatedImage
from util.runtime.errors import UserError

ALL = ["coco", "coco_polygons", "labelme", "yolo", "overlay", "probability"]


@pytest.fixture(scope="module")
def place(tiny_voc, tmp_path_factory):
    """A folder with weights, two marked pictures, and pictures of many kinds to segment."""
    folder = tmp_path_factory.mktemp("own pictures")
    net = small_net(small_episodes(tiny_voc, folder))
    torch.save({"state_dict": net.state_dict(), "size": SIZE}, folder / "best.pth")
    pictures = sorted((tiny_voc / "JPEGImages").glob("val_*.png"))
    for name, source in zip("ab", pictures, strict=False):
        (folder / f"{name}.png").write_bytes(source.read_bytes())
        labels = np.asarray(Image.open(tiny_voc / "SegmentationClassAug" / source.name))
        mask = (labels > 0) & (labels < 255)
        Image.fromarray(255 * mask.astype(np.uint8)).save(folder / f"{name}_mask.png")
    photos = folder / "photos"
    (photos / "more").mkdir(parents=True)
    for number, source in enumerate(pictures[2:5]):
        (photos / "more" / f"{number} ü.png").write_bytes(source.read_bytes())
    with Image.open(pictures[5]) as image:
        exif = Image.Exif()
        exif[0x0112] = 8
        image.save(photos / "turned.jpg", exif=exif, quality=95)
        image.convert("L").save(photos / "grey.bmp")
        image.quantize(16).save(photos / "palette.png")
    (photos / "notes.txt").write_text("no picture")
    (photos / "__MACOSX").mkdir()
    (photos / "__MACOSX" / "turned.jpg").write_bytes(b"no picture either")
    return folder


@pytest.fixture
def run(place, tmp_path, monkeypatch, run_command):
    """Runs predict.py in the folder of the pictures; returns its exit code, output and errors."""
    monkeypatch.chdir(place)

    def run(*words, query=("photos",), supports=("--support", "a.png", "a_mask.png")):
        words = ["--weights", "best.pth", *supports, "--query", *query, *words]
        words += ["--out", str(tmp_path / "labels"), "--device", "cpu"]
        return run_command(predict.main, words)

    return run


def masks_in(folder):
    return {
        path.relative_to(folder / "masks").with_suffix("").as_posix(): np.asarray(Image.open(path))
        for path in sorted((folder / "masks").rglob("*.png"))
    }


@pytest.mark.slow
def test_every_format_holds_the_masks(run, place, tmp_path):
    two = ("--support", "first=a.png", "a_mask.png", "--support", "second=b.png", "10,10,90,80")
    code, out, err = run("--format", *ALL, "--review", supports=two)
    labels = tmp_path / "labels"
    assert code == 0 and "6 of 6 pictures have labels, 6 of them new" in out and not err
    masks = masks_in(labels)
    assert set(masks) == {"more/0 ü", "more/1 ü", "more/2 ü", "turned", "grey", "palette"}
    assert {1, 2} <= set(np.concatenate([mask.ravel() for mask in masks.values()]))
    assert (labels / "classes.txt").read_text().split() == ["first", "second"]
    assert {path.name for path in (labels / "supports").iterdir()} == {
        "first-1.jpg",
        "second-1.jpg",
    }

    # What Python's users get is what is written.
    seg = FewShotSegmenter.from_pretrained("best.pth", device="cpu")
    first, second = Support("a.png", mask="a_mask.png"), Support("b.png", box=(10, 10, 90, 80))
    supports = seg.fit({"first": first, "second": second})
    result = seg.segment("photos/turned.jpg", supports)
    assert np.array_equal(result.label_map, masks["turned"])
    grey = np.asarray(Image.open(labels / "probability" / "second" / "turned.png"))
    assert np.abs(grey / 255 - result.probabilities["second"]).max() < 0.003

    for file, least in (("coco", 1), ("coco_polygons", 0.95)):
        instances = read_instances(labels / f"{file}.json")
        assert instances.categories == ["first", "second"]
        for image in instances.images:
            mask = masks[image.mask_name.removesuffix(".png")]
            assert (image.height, image.width) == mask.shape
            same = (image.draw("") == mask).mean()
            assert same == 1 if least == 1 else same > least
    content = json.loads((labels / "coco.json").read_text())
    assert {image["file_name"] for image in content["images"]} >= {"turned.jpg", "more/0 ü.png"}
    for annotation in content["annotations"]:
        _, _, width, height = annotation["bbox"]
        assert 0 < annotation["area"] <= width * height and annotation["iscrowd"] == 0

    for name, mask in masks.items():
        by_labelme = json.loads((labels / "labelme" / f"{name}.json").read_text())
        picture = labels / "labelme" / os.path.dirname(name) / by_labelme["imagePath"]
        assert os.path.isfile(picture)
        assert (by_labelme["imageHeight"], by_labelme["imageWidth"]) == mask.shape
        drawn = np.zeros_like(mask)
        for shape in by_labelme["shapes"]:
            label = ["first", "second"].index(shape["label"]) + 1
            cv2.fillPoly(drawn, [np.array(shape["points"], np.int32)], label)
        assert (drawn == mask).mean() > 0.8
        size = mask.shape[::-1]
        assert Image.open(labels / "overlay" / f"{name}.jpg").size == size
        lines = (labels / "yolo" / f"{name}.txt").read_text().splitlines()
        assert len(lines) == len(by_labelme["shapes"])
        for line, shape in zip(lines, by_labelme["shapes"], strict=True):
            label, *numbers = line.split()
            points = np.array(numbers, float).reshape(-1, 2) * size - 0.5
            assert ["first", "second"][int(label)] == shape["label"]
            assert np.abs(points - shape["points"]).max() < 0.01
    assert yaml.safe_load((labels / "yolo" / "data.yaml").read_text())["names"][1] == "second"

    rows = list(csv.DictReader((labels / "review.csv").open()))
    values = [float(row["uncertainty"]) for row in rows]
    assert len(rows) == 6 and values == sorted(values, reverse=True)
    assert all(os.path.isfile(row["picture"]) and os.path.isfile(row["labels"]) for row in rows)
    assert np.asarray(Image.open(labels / "review.png")).std() > 10


def test_parts_are_exact_run_lengths_and_outlines():
    mask = np.zeros((40, 50), np.uint8)
    cv2.circle(mask, (20, 20), 12, 1, cv2.FILLED)
    mask[15:25, 15:25], mask[0, 0], mask[30:, 40:], mask[5, 40:50] = 0, 2, 2, 2
    file = formats.CocoFile(["ring", "rest"], polygons=False)
    file.add("x.jpg", mask)
    segmentations = [
        (one["id"], one["category_id"], one["segmentation"]) for one in file.content["annotations"]
    ]
    assert len(segmentations) == 4
    image = AnnotatedImage("x.jpg", 40, 50, json.dumps(segmentations).encode())
    assert np.array_equal(image.draw("x.jpg"), mask)
    parts = list(formats.parts_of(mask))
    # A part of one pixel has no outline through the centres of its pixels.
    assert [len(formats.outlines_of(part)) for part in parts] == [1, 0, 1, 1]
    assert list(formats.parts_of(np.zeros((4, 4), np.uint8))) == []


@pytest.mark.parametrize("size", [4, 10, 40, 150])
def test_outlines_keep_the_area_where_they_are_filled(size):
    mask = np.zeros((2 * size, 3 * size), np.uint8)
    cv2.ellipse(mask, (size, size), (size, size // 2), 30, 0, 360, 1, cv2.FILLED)
    (part,) = formats.parts_of(mask)
    (edges,) = formats.outlines_of(part, on_edges=True)
    by_coco = coco_mask.decode(coco_mask.frPyObjects([edges.ravel().tolist()], *mask.shape))[..., 0]
    (centres,) = formats.outlines_of(part)
    by_opencv = cv2.fillPoly(np.zeros_like(mask), [centres], 1)
    for drawn in (by_coco, by_opencv):
        assert (drawn & mask).sum() / (drawn | mask).sum() > 0.94
        assert abs(drawn.sum() / mask.sum() - 1) < 0.05


@pytest.mark.slow
def test_a_rerun_keeps_what_is_done(run, place, tmp_path):
    labels = tmp_path / "labels"
    run("--format", "overlay")
    before = {path: path.stat().st_mtime_ns for path in labels.rglob("*.*") if path.is_file()}
    # A person corrects a mask, and loses another.
    corrected, lost = labels / "masks" / "grey.png", labels / "masks" / "palette.png"
    mask = np.array(Image.open(corrected)) * 0
    mask[:5] = 1
    Image.fromarray(mask).save(corrected)
    lost.unlink()
    code, out, _ = run("--format", "overlay", "coco", "--review")
    assert code == 0 and "6 of 6 pictures have labels, 1 of them new" in out
    assert np.array_equal(np.asarray(Image.open(corrected)), mask) and lost.exists()
    content = json.loads((labels / "coco.json").read_text())
    grey = next(image["id"] for image in content["images"] if image["file_name"] == "grey.bmp")
    (annotation,) = (a for a in content["annotations"] if a["image_id"] == grey)
    assert annotation["area"] == mask.sum()
    # No review of what a person has made.
    assert len((labels / "review.csv").read_text().splitlines()) == 1 + 5
    made = {path for path, when in before.items() if path.stat().st_mtime_ns != when}
    names = {path.relative_to(labels).as_posix() for path in made}
    kept_up = {".lock", "classes.txt", "predict.json", "supports/object-1.jpg"}
    assert names - kept_up == {
        "masks/grey.png",
        "masks/palette.png",
        "overlay/grey.jpg",
        "overlay/palette.jpg",
    }
    for words, changed in ((("--threshold", "0.6"), "threshold"), (("--size", "41"), "size")):
        code, _, err = run(*words)
        assert code == 2 and f"it holds results for another {changed}; give another folder" in err
    code, _, err = run(supports=("--support", "b.png", "b_mask.png"))
    assert code == 2 and "results for another supports" in err


def test_bad_pictures_are_reported_at_the_end(run, place, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "text.jpg").write_text("hello")
    (bad / "empty.png").touch()
    (bad / "phone.HEIC").touch()
    data = (place / "photos" / "turned.jpg").read_bytes()
    (bad / "cut.jpg").write_bytes(data[: len(data) // 2])
    (bad / "whole.jpg").write_bytes(data)
    code, out, err = run("--format", "coco", query=(str(bad),))
    assert code == 1 and "1 of 4 pictures have labels" in out
    lines = err.strip().splitlines()
    assert "3 cannot be used:" in lines
    assert f"--query {bad}: files of .heic are passed over" in lines
    for name in ("cut.jpg", "empty.png", "text.jpg"):
        assert sum(line.startswith(f"image {bad / name} is damaged") for line in lines) == 1
    assert len(json.loads((tmp_path / "labels" / "coco.json").read_text())["images"]) == 1


@pytest.mark.slow
def test_a_killed_run_continues(run, place, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    source = (place / "photos" / "turned.jpg").read_bytes()
    for number in range(60):
        (photos / f"{number:02}.jpg").write_bytes(source)
    words = ["--weights", "best.pth", "--support", "a.png", "a_mask.png", "--device", "cpu"]
    words += ["--query", str(photos), "--out", str(tmp_path / "labels"), "--format", "overlay"]
    masks = tmp_path / "labels" / "masks"
    words, environment = [ROOT / "predict.py", *words], {"OMP_NUM_THREADS": "1"}
    process = start_python(words, tmp_path / "log", None, environment, folder=place)
    while process.exitcode is None and len(list(masks.glob("*.png"))) < 3:
        time.sleep(0.005)
    process.kill()
    process.join()
    done = len(list(masks.glob("*.png")))
    assert 3 <= done < 60

    label = predict.Labelling.label

    def interrupted(self, query):
        label(self, query)
        if self.segmented == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(predict.Labelling, "label", interrupted)
    code, _, err = run("--format", "overlay", query=(str(photos),))
    assert code == 130 and "run the same command again to continue" in err
    monkeypatch.setattr(predict.Labelling, "label", label)
    code, out, _ = run("--format", "overlay", query=(str(photos),))
    assert code == 0 and f"60 of 60 pictures have labels, {60 - done - 2} of them new" in out
    found = masks_in(tmp_path / "labels")
    assert len(found) == len(list((tmp_path / "labels" / "overlay").glob("*.jpg"))) == 60
    assert all(np.array_equal(mask, found["00"]) for mask in found.values())


def test_supports_come_from_a_folder_of_classes(run, place, tmp_path):
    for name, of in (("bolt", "a"), ("nut", "b")):
        folder = tmp_path / "supports" / name
        folder.mkdir(parents=True)
        for suffix in ("", "_mask"):
            (folder / f"1{suffix}.png").write_bytes((place / f"{of}{suffix}.png").read_bytes())
    with Image.open(place / "a.png") as image:
        image.save(tmp_path / "supports" / "bolt" / "2.jpg")
    mask = tmp_path / "supports" / "bolt" / "2_mask.tif"
    with Image.open(place / "a_mask.png") as image:
        image.save(mask)
    (tmp_path / "supports" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "supports" / ".ipynb_checkpoints" / "3.jpg").write_bytes(b"no picture")
    folder = ("--supports", str(tmp_path / "supports"))
    code, out, _ = run(query=("photos/*.jpg", "photos/grey.bmp"), supports=folder)
    assert code == 0 and "2 of 2 pictures" in out
    assert (tmp_path / "labels" / "classes.txt").read_text() == "bolt\nnut\n"
    shown = {path.name for path in (tmp_path / "labels" / "supports").iterdir()}
    assert shown == {"bolt-1.jpg", "bolt-2.jpg", "nut-1.jpg"}
    mask.unlink()
    code, _, err = run(supports=folder)
    assert code == 2 and "bolt/2.jpg has no mask 2_mask.png or 2.png" in err


def test_a_mask_of_the_whole_picture_is_said(run, tmp_path):
    mask = str(tmp_path / "white.png")
    with Image.open("a.png") as image:
        Image.new("L", image.size, 255).save(mask)
    code, _, err = run(query=("photos/turned.jpg",), supports=("--support", "a.png", mask))
    assert code == 0 and err == "a.png: the mask covers the whole picture\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"supports": ()}, "there is no support: give --support"),
        ({"supports": ("--support", "a.png", "1,2,3")}, "an annotation is a mask file, a box"),
        ({"supports": ("--support", "a.png", "1,2,3,4+5,6")}, "an annotation is a mask file"),
        ({"supports": ("--support", "a.png", "5,5,900,50")}, r"\(a.png\): the box 5,5,900,50 is"),
        ({"supports": ("--support", "a.png", "none.png")}, "none.png cannot be read as a mask"),
        (
            {"supports": ("--support", "a_mask.png", "a.png")},
            "a_mask.png a.png: the first is a mask and the second is none; the picture comes first",
        ),
        ({"supports": ("--support", "x.png", "5,5")}, r"\[0\] \(x.png\): there is no file x.png"),
        ({"supports": ("--supports", "none")}, "--supports none: there is no such folder"),
        ({"supports": ("--supports", "photos/more")}, "it holds no CLASS/IMAGE with a mask"),
        ({"query": ("none",)}, "--query none: there is no such file, folder or pattern"),
        ({"query": ("p*/none*",)}, "there is no such file, folder or pattern"),
        ({"query": ("a.png", "photos/../photos/more", "same/a.png")}, "rename one"),
        ({"query": ("empty",)}, r"--query empty: this folder holds no images \(.bmp"),
        ({"supports": ("--support", "a/b=a.png", "5,5")}, "a/b cannot name a class"),
        ({"supports": ("--support", "..=a.png", "5,5")}, r"\.\. cannot name a class"),
    ],
)
def test_a_wrong_word_ends_with_one_line(run, place, words, message):
    (place / "empty").mkdir(exist_ok=True)
    (place / "same").mkdir(exist_ok=True)
    (place / "same" / "a.png").write_bytes((place / "b.png").read_bytes())
    code, out, err = run(**words)
    assert code == 2 and not out
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line


@pytest.mark.slow
def test_wrong_weights_and_folders_end_with_one_line(run, place, tmp_path):
    (tmp_path / "labels").write_text("a file")
    code, _, err = run()
    assert code == 2 and "give a writable folder as --out" in err and err.count("\n") == 1
    (tmp_path / "labels").unlink()
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.png").write_bytes((place / "a.png").read_bytes())
    code, _, err = run(query=(str(tmp_path / "labels"),))
    assert code == 2 and "labels: it holds the pictures; give another folder" in err
    code, _, err = run("--weights", "none.pth")
    assert code == 2 and "weights none.pth: there is no such file or folder" in err
    code, _, err = run("--threshold", "1.5")
    assert code == 2 and err.count("\n") == 1
    code, _, err = run("--size", "34")
    assert code == 2 and "size 34: resnet18 takes 8·n + 1 and at least 33; the nearest is 33" in err


@pytest.mark.slow
def test_results_and_masks_are_no_queries(run, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a_mask.png", "best.pth"):
        (tmp_path / name).write_bytes((place / name).read_bytes())
    for _ in range(2):
        code, out, _ = run("--format", "overlay", query=(".",))
        assert code == 0 and "1 of 1 pictures" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((80, 120), 255, np.uint8), "holds the value 255, but the classes are 1 to 1"),
        (np.full((80, 120), 256, np.uint16), "grey.png holds the value 256, but the classes are"),
        (np.ones((7, 9), np.uint8), r"grey.png is 9×7 pixels and its picture \d+×\d+; correct it"),
    ],
)
def test_a_wrong_correction_is_reported_at_the_end(run, tmp_path, mask, message):
    run()
    Image.fromarray(mask).save(tmp_path / "labels" / "masks" / "grey.png")
    code, out, err = run("--format", "coco", "labelme", "overlay", "--review")
    assert code == 1 and "5 of 6 pictures have labels, 0 of them new" in out
    assert re.search(message, err)


def test_of_jobs_with_other_settings_at_the_same_time_one_gets_the_folder(tmp_path, monkeypatch):
    def write_slowly(*arguments, write=predict.write_atomically):
        time.sleep(0.2)
        write(*arguments)

    monkeypatch.setattr(predict, "write_atomically", write_slowly)
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(3)

    def claim(number):
        barrier.wait()
        with pytest.raises(UserError, match="results for another threshold"):
            predict._claim(tmp_path, {"threshold": number})
            os._exit(0)
        os._exit(1)

    jobs = [fork.Process(target=claim, args=(number,)) for number in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert sorted(job.exitcode for job in jobs) == [0, 1, 1]


def test_a_jpeg_that_a_full_disk_would_cut_off_keeps_the_one_before(tmp_path):
    path, image = tmp_path / "a.jpg", Image.new("RGB", (64, 64))
    formats.write_jpeg(path, image)
    before = path.read_bytes()

    def write_on_a_full_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with pytest.raises(OSError, match="too large"):
            formats.write_jpeg(path, image)
            os._exit(1)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=write_on_a_full_disk)
    process.start()
    process.join()
    assert process.exitcode == 0 and path.read_bytes() == before
