import shutil
from pathlib import Path

import pytest
import torchvision

from tests.util.pascal_files import ODD, TRAIN, stems, write_lines
from util.prepare_pascal import main


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


def test_a_failed_download_is_one_line(download, tmp_path, capsys):
    download["error"] = OSError("<urlopen error no route to host>")
    with pytest.raises(SystemExit) as stop:
        run_with_download(tmp_path)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the download failed (<urlopen error no route to host>): try")
    assert error.count("\n") == 1
