import argparse
import errno
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.processes import NO_PROCESS, wait_for_end
from util.data.lists import read_entries
from util.preparation.shared import (
    DataRoot,
    add_shared_options,
    link_or_copy,
    open_folder,
    resumable,
)
from util.runtime.errors import UserError
from util.runtime.files import temporary_path
from util.runtime.parallel import run_parallel


def refuse(*arguments):
    raise OSError(errno.EXDEV, "Invalid cross-device link")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "there" / "ein Bild é.jpg"
    path.parent.mkdir()
    path.write_bytes(b"picture")
    return path


@pytest.fixture
def target(tmp_path):
    return tmp_path / "here" / "a.jpg"


def test_a_link_outlives_the_source_and_takes_no_space(source, target, tmp_path):
    (tmp_path / "alias.jpg").symlink_to(source)
    for name in (source, tmp_path / "alias.jpg"):
        assert link_or_copy(name, target) == "linked"
        assert target.samefile(source) and not target.is_symlink()
    source.unlink()
    assert target.read_bytes() == b"picture"


def test_without_hard_links_a_symbolic_one_that_moves_with_both(source, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "here").symlink_to("deep/er")
    for _ in range(2):
        assert link_or_copy(source, tmp_path / "here" / "a.jpg") == "linked"
        assert (tmp_path / "here" / "a.jpg").is_symlink()
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("there", "deep"):
        (tmp_path / name).rename(moved / name)
    assert (moved / "deep" / "er" / "a.jpg").read_bytes() == b"picture"


def test_copies_on_demand_replace_links_and_without_links_are_made(source, target, monkeypatch):
    assert link_or_copy(source, target) == "linked"
    for copy in (True, True, False):
        assert link_or_copy(source, target, copy) == "copied"
        assert not target.samefile(source) and target.read_bytes() == b"picture"
    assert os.listdir(target.parent) == ["a.jpg"]
    target.unlink()
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "symlink", refuse)
    assert link_or_copy(source, target) == "copied"
    assert target.read_bytes() == b"picture" and not target.samefile(source)


def test_in_place_nothing_happens_and_another_file_is_never_overwritten(source, tmp_path):
    (tmp_path / "alias").symlink_to(source.parent)
    for copy in (False, True):
        assert link_or_copy(source, tmp_path / "alias" / source.name, copy) == "in place"
    assert os.listdir(source.parent) == [source.name]
    (tmp_path / "a.jpg").write_bytes(b"another")
    with pytest.raises(UserError, match=r"a\.jpg exists and differs from .*ein Bild"):
        link_or_copy(source, tmp_path / "a.jpg")
    assert (tmp_path / "a.jpg").read_bytes() == b"another"


def test_a_failed_copy_leaves_nothing(source, target, monkeypatch):
    def full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("util.preparation.shared.shutil.copy2", full)
    with pytest.raises(OSError, match="No space"):
        link_or_copy(source, target, copy=True)
    assert os.listdir(target.parent) == []


def test_lists_are_read_as_written_and_one_of_other_content_is_kept(tmp_path):
    root = DataRoot(tmp_path / "root", tmp_path / "lists")
    pairs = [("a.jpg", "m/a.png"), ("my a b.jpg", "m/my a b.png"), ("é.jpg", "m/\udcff.png")]
    path = tmp_path / "lists" / "train.txt"
    for _ in range(2):
        assert root.write_list("train", iter(pairs)) == f"{path}: 3"
    assert read_entries(str(tmp_path), str(path)) == pairs
    written = path.read_bytes()
    assert written.splitlines()[:2] == [b"a.jpg m/a.png", b"my a b.jpg\tm/my a b.png"]
    assert os.listdir(path.parent) == ["train.txt"]
    line = root.write_list("train", [("a", "b")], expected=1449)
    assert line.startswith(f"{path}: 1 (warning: 1,449 expected")
    assert line.endswith(f"; the former list is {path}.bak")
    assert path.read_text() == "a b\n"
    assert path.with_suffix(".txt.bak").read_bytes() == written


@pytest.mark.parametrize("name", ["a\tb", "a\nb", " a", "a "])
def test_names_that_no_list_can_hold(tmp_path, name):
    with pytest.raises(UserError, match="a list cannot hold"):
        DataRoot(tmp_path, tmp_path).write_list("train", [("a.jpg", name)])
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_or_set_is_named(tmp_path):
    with pytest.raises(UserError, match=r"\\udcff' is no text in UTF-8: rename it"):
        open_folder(tmp_path / os.fsdecode(b"\xff"), "--out")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    # /proc refuses even root
    for path in (tmp_path / "file", tmp_path / "file" / "sub", "/proc/here"):
        with pytest.raises(UserError, match=r"cannot write in .*give a writable folder as --out"):
            open_folder(path, "--out")


def test_what_a_kill_left_is_cleared_and_nothing_else(tmp_path):
    running = temporary_path("a.png")
    kept = {running, "b.png", "notes.tmp", f"{NO_PROCESS}.tmp"}
    for name in {*kept, running.replace(f"-{os.getpid()}.", f"-{NO_PROCESS}.")}:
        (tmp_path / name).touch()
    open_folder(tmp_path, "--out")
    assert set(os.listdir(tmp_path)) == kept


def test_next_commands_name_the_settings_that_differ(tmp_path, monkeypatch):
    # These are the places of the configuration, seen from the root of the repository.
    monkeypatch.chdir(ROOT)
    verify, train = DataRoot("../data/MSCOCO2014", "lists/coco/").next_commands("coco")
    assert verify.endswith(" --config config/coco/coco_split0_resnet50.yaml")
    assert train == "then: sh train.sh split0 coco 1"
    # A dataset that has only a description.
    (tmp_path / "mine.yaml").write_text((ROOT / "config/datasets/demo.yaml").read_text())
    monkeypatch.setattr("util.config.loading.DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    verify, train = DataRoot("data/demo", "my lists").next_commands("mine")
    lists = "train_list 'my lists/train.txt' val_list 'my lists/val.txt'"
    options = f"--config config/base/resnet50.yaml --opts data_set mine split 0 {lists}"
    assert verify == f"next: python -m util.verify {options}"
    assert train == f"then: sh train.sh split0 mine 1 {lists}"


@pytest.mark.parametrize("workers", ["0", "-1", "two"])
def test_workers_are_counted_from_one(workers, capsys):
    parser = argparse.ArgumentParser()
    add_shared_options(parser)
    assert parser.parse_args(["--out", "x", "--workers", "3"]).workers == 3
    with pytest.raises(SystemExit):
        parser.parse_args(["--out", "x", "--workers", workers])
    assert f"argument --workers: {workers}: should be" in capsys.readouterr().err


def square_and_process(number):
    return number**2, os.getpid()


@pytest.mark.parametrize("count", [0, 1, 600])
def test_results_come_in_order(count):
    results = run_parallel(square_and_process, range(count), workers=3)
    assert [square for square, _ in results] == [number**2 for number in range(count)]
    if count > 3:
        assert os.getpid() not in {process for _, process in results}


@pytest.mark.parametrize(("platform", "method"), [("linux", "fork"), ("darwin", "spawn")])
def test_macos_never_forks(platform, method, monkeypatch):
    asked, get_context = [], multiprocessing.get_context
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(
        multiprocessing, "get_context", lambda name: asked.append(name) or get_context("fork")
    )
    assert run_parallel(abs, range(-4, 0), workers=2) == [4, 3, 2, 1]
    assert asked == [method]


@pytest.mark.parametrize(("items", "workers"), [([3], 5), ([3, 4], 1)])
def test_one_worker_works_here(items, workers):
    expected = [(number**2, os.getpid()) for number in items]
    assert run_parallel(square_and_process, items, workers) == expected


def touch_or_fail(folder, number):
    if number == 40:
        raise UserError("forty is wrong")
    (folder / str(number)).touch()
    time.sleep(0.005)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_ends_the_work(tmp_path, workers):
    with pytest.raises(UserError, match="forty is wrong"):
        run_parallel(partial(touch_or_fail, tmp_path), range(10_000), workers)
    assert 0 < len(os.listdir(tmp_path)) < 200  # those that were being computed


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_an_error_not_a_wait():
    with pytest.raises(UserError, match=r"killed \(out of memory\?\).*--workers"):
        run_parallel(die, range(4), workers=2)


def say_who_and_wait(folder, number):
    (folder / str(os.getpid())).touch()
    time.sleep(0.02)


def long_work(folder):
    @resumable
    def main():
        run_parallel(partial(say_who_and_wait, folder), range(100_000), 2)

    with open(folder / "errors.txt", "w") as errors, redirect_stderr(errors):
        main()


@pytest.fixture
def at_work(tmp_path):
    """A process in the middle of `long_work`, and the process ids of its workers."""
    process = multiprocessing.get_context("fork").Process(target=long_work, args=(tmp_path,))
    process.start()
    while len(workers := [name for name in os.listdir(tmp_path) if name.isdecimal()]) < 2:
        assert process.is_alive()
        time.sleep(0.01)
    yield process, [int(worker) for worker in workers]
    process.kill()
    process.join()


@pytest.mark.slow
def test_interrupted_work_ends_in_order(at_work, tmp_path):
    process, workers = at_work
    # Ctrl-C reaches all of them; the workers leave it to the main process
    for worker in workers:
        os.kill(worker, signal.SIGINT)
    for worker in workers:
        mark = tmp_path / str(worker)
        mark.unlink()
        while not mark.exists():
            assert process.is_alive()
            time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    wait_for_end(workers)
    errors = (tmp_path / "errors.txt").read_text()
    assert errors == "interrupted; run the same command again to continue\n"


def test_an_interruption_waits_until_all_work_is_handed_over(monkeypatch):
    handed_over, submit = [], ProcessPoolExecutor.submit

    def submit_and_interrupt(pool, *arguments):
        handed_over.append(arguments)
        if len(handed_over) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return submit(pool, *arguments)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_parallel(abs, range(64), workers=2)
    assert len(handed_over) == 16
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="asks Linux for processes")
def test_workers_end_with_a_killed_main_process(at_work):
    process, workers = at_work
    process.kill()
    wait_for_end(workers)


def test_a_full_disk_is_one_line(error_line):
    @resumable
    def main():
        raise OSError(errno.ENOSPC, "No space left on device", "/data/a.png")

    assert "No space left on device: '/data/a.png'; correct this and run" in error_line(main)
