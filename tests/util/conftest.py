"""Fixtures that several test files of util/ share."""

import shutil

import pytest

import util.preparation.custom_config
import util.preparation.shared
from tests.paths import ROOT
from tests.util.pascal_files import write_voc_and_sbd


@pytest.fixture(scope="session")
def voc_and_sbd(tmp_path_factory):
    """Folder of the stand-ins of VOC and SBD. Read only."""
    folder = tmp_path_factory.mktemp("my data é")
    write_voc_and_sbd(folder)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder the tool runs in, with the shipped configuration, as if it were the repository."""
    for name in ("config/base", "config/datasets"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(util.preparation.custom_config, "ROOT", tmp_path)
    monkeypatch.setattr("util.config.loading.DATASETS", str(tmp_path / "config/datasets"))
    monkeypatch.setattr(util.preparation.shared, "ROOT", tmp_path)
    return tmp_path
