import os

import pytest

from tests.processes import NO_PROCESS
from util.runtime.files import temporary_path, write_atomically


def test_replaces_whole_contents_and_makes_folders(tmp_path, monkeypatch):
    path = tmp_path / "a b" / "file.txt"
    write_atomically(path, "long first text é")
    assert path.read_text(encoding="utf-8") == "long first text é"
    write_atomically(str(path), b"\x00short")
    assert path.read_bytes() == b"\x00short"
    assert os.listdir(path.parent) == ["file.txt"]
    monkeypatch.chdir(tmp_path)
    write_atomically("a bare name.txt", "here")
    assert (tmp_path / "a bare name.txt").read_text() == "here"


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_atomically(path, "old")

    def fail(*arguments):
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_what_a_kill_left_of_a_file_goes_when_it_is_written_again(tmp_path):
    def name_of(process, name="a.png"):
        return temporary_path(name).replace(f"-{os.getpid()}.", f"-{process}.")

    running, left = name_of(os.getppid()), name_of(NO_PROCESS)
    of_other_file = name_of(NO_PROCESS, "b.png")
    # On another machine, this may be a process that is writing now.
    elsewhere = f"a.png.0-{NO_PROCESS}.tmp"
    kept = {running, of_other_file, elsewhere, "a.png.tmp"}
    for name in {*kept, left}:
        (tmp_path / name).touch()
    write_atomically(tmp_path / "a.png", b"")
    assert set(os.listdir(tmp_path)) == {*kept, "a.png"}
