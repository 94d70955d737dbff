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
def error_line(capsys):
    """A function that runs a command which has to end with one line, and returns this line."""

    def error_line(command, *arguments, code=2, **options):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            command(*arguments, **options)
        assert caught.value.code == code
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith(("error: ", "interrupted")), error
        return error

    return error_line


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
