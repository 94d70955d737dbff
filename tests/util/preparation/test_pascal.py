import shutil
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image
from scipy.io import savemat

from tests.util.pascal_files import ODD, TRAIN, stems, write_lines, write_palette_png
from util.preparation.pascal import sbd_mask, voc_colour, voc_mask
from util.prepare_pascal import main
from util.runtime.errors import UserError


def png(tmp_path, image):
    image.save(tmp_path / "a.png")
    return tmp_path / "a.png", (tmp_path / "a.png").read_bytes()


def test_voc_colours():
    assert [voc_colour(class_id) for class_id in (0, 1, 2, 3, 8, 20, 255)] == [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (64, 0, 0),
        (0, 64, 128),
        (224, 224, 192),
    ]
    assert len({voc_colour(class_id) for class_id in range(256)}) == 256


@pytest.mark.parametrize("values", [[0], [*range(21), 255]])
def test_every_class_is_read_by_index_and_by_colour(tmp_path, values):
    mask = np.resize(np.array(values, np.uint8), (5, 7))
    for mode in ("P", "RGB"):
        write_palette_png(tmp_path / "a.png", mask, mode)
        found = voc_mask("a.png", (tmp_path / "a.png").read_bytes())
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, mask)
    np.testing.assert_array_equal(voc_mask(*png(tmp_path, Image.fromarray(mask))), mask)


def test_a_colour_or_kind_that_voc_does_not_have_is_named(tmp_path):
    image = Image.new("RGB", (4, 3), voc_colour(5))
    image.putpixel((1, 1), (128, 0, 1))
    with pytest.raises(UserError, match=r"a\.png holds the colour \(128, 0, 1\), which the VOC"):
        voc_mask(*png(tmp_path, image))
    with pytest.raises(UserError, match=r"a\.png holds the value \d+; classes are 1\.\.20"):
        voc_mask(*png(tmp_path, image.convert("LA")))


@pytest.mark.parametrize("mask", [np.zeros((4, 5)), np.zeros((2, 3, 4), np.uint8), "text"])
def test_a_field_that_is_no_mask_is_named(tmp_path, mask):
    path = tmp_path / "a.mat"
    savemat(path, {"GTcls": {"Segmentation": mask}})
    with pytest.raises(UserError, match=r"a\.mat: GTcls\.Segmentation is no array"):
        sbd_mask(path, path.read_bytes())


@pytest.fixture
def download(voc_and_sbd, monkeypatch):
    """torchvision's downloads, replaced: they bring the stand-ins. A dict of what they do."""
    state = {"calls": [], "noval": None, "error": None}

    def voc(root, year, image_set, download):
        assert (year, download) == ("2012", True)
        state["calls"].append("voc")
        if state["error"]:
            raise state["error"]
        shutil.copytree(voc_and_sbd / "VOCdevkit", Path(root, "VOCdevkit"), dirs_exist_ok=True)

    def sbd(root, image_set, mode, download):
        assert download
        state["calls"].append("sbd")
        shutil.copytree(voc_and_sbd / "benchmark_RELEASE" / "dataset", root)

    def url(url, root, filename, md5):
        assert url.endswith("train_noval.txt") and md5
        state["calls"].append("noval")
        write_lines(Path(root, filename), state["noval"] or ["an error page"])
        if not state["noval"]:
            raise RuntimeError("File not found or corrupted.")

    sbd.voc_split_filename = "train_noval.txt"
    sbd.voc_train_url = torchvision.datasets.SBDataset.voc_train_url
    sbd.voc_split_md5 = torchvision.datasets.SBDataset.voc_split_md5
    monkeypatch.setattr(torchvision.datasets, "VOCSegmentation", voc)
    monkeypatch.setattr(torchvision.datasets, "SBDataset", sbd)
    monkeypatch.setattr(torchvision.datasets.utils, "download_url", url)
    return state


def run_with_download(tmp_path):
    folders = {"--voc": "voc", "--sbd": "sbd", "--out": "out", "--lists": "out/lists"}
    words = [word for option, name in folders.items() for word in (option, str(tmp_path / name))]
    main([*words, "--download", "--workers", "1"])


def test_download_without_train_noval(download, tmp_path, capsys):
    run_with_download(tmp_path)
    assert "train_noval.txt cannot be downloaded (File not found" in capsys.readouterr().out
    assert not list((tmp_path / "sbd").rglob("train_noval.txt"))
    assert stems(tmp_path / "out", "train") == TRAIN
    run_with_download(tmp_path)
    # what SBD's class moved into place it would refuse to move again
    assert download["calls"] == ["voc", "sbd", "noval", "voc", "noval"]


def test_download_with_train_noval(download, tmp_path):
    download["noval"] = ["2008_2", "2008_9"]
    run_with_download(tmp_path)
    assert stems(tmp_path / "out", "train") == ["2008_2", "2008_9", "2007_1", "2007_2", ODD]
    run_with_download(tmp_path)
    assert download["calls"] == ["voc", "sbd", "noval", "voc"]


def test_a_failed_download_is_one_line(download, tmp_path, error_line):
    download["error"] = OSError("<urlopen error no route to host>")
    error = error_line(run_with_download, tmp_path)
    assert error.startswith("error: the download failed (<urlopen error no route to host>): try")
