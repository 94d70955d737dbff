import json
import platform
import shutil
import subprocess
from datetime import datetime, timedelta, timezone

import pytest
import torch

import util.runtime.machine
from util.runtime.machine import environment_line, peak_memory, run_environment


def git(folder, *words):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.invalid")
    words = ("git", *identity, *words)
    return subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git checkout of one commit, with a tag, in place of this repository."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    monkeypatch.setattr(util.runtime.machine, "ROOT", tmp_path)
    git(tmp_path, "init", "--quiet")
    (tmp_path / "tracked").write_text("a")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message=first")
    git(tmp_path, "tag", "--annotate", "--message=first", "v1")
    return tmp_path


def test_the_environment_holds_machine_versions_and_time():
    environment = run_environment()
    assert json.loads(json.dumps(environment)) == environment
    assert environment["torch"] == torch.__version__
    assert environment["cuda"] == torch.version.cuda
    assert environment["python"] == platform.python_version()
    assert environment["cpu"] and environment["cores"] >= 1
    assert 2**20 < peak_memory(torch.device("cpu")) < 2**40
    age = datetime.now(timezone.utc) - datetime.fromisoformat(environment["date"])
    assert timedelta(0) <= age < timedelta(minutes=1)


def test_the_processor_has_a_name_without_proc(monkeypatch):
    def missing(*args, **options):
        raise FileNotFoundError

    monkeypatch.setattr(util.runtime.machine.Path, "read_text", missing)
    assert run_environment()["cpu"] == (platform.processor() or platform.machine())


def test_the_name_of_the_gpu_is_told_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert run_environment()["gpu"] == "a GPU"


def test_the_commit_tells_changes_of_tracked_files(repository):
    commit = git(repository, "rev-parse", "--short", "HEAD").strip()
    (repository / "not tracked").write_text("a")
    assert run_environment()["commit"] == commit
    (repository / "tracked").write_text("b")
    assert run_environment()["commit"] == f"{commit}+changes"


def test_without_git_there_is_no_commit(repository, monkeypatch):
    inside = repository / "a copy without .git"
    inside.mkdir()
    monkeypatch.setattr(util.runtime.machine, "ROOT", inside)
    assert run_environment()["commit"] is None
    (inside / ".git").write_text("damaged")
    assert run_environment()["commit"] is None
    monkeypatch.setattr(util.runtime.machine, "ROOT", repository)
    monkeypatch.setenv("PATH", "")
    assert run_environment()["commit"] is None


def test_a_line_holds_all_of_it():
    environment = {
        **{"gpu": "A100", "cpu": "EPYC with AMX", "cores": 8, "python": "3.12.1"},
        **{"torch": "2.9.0", "cuda": "12.8", "commit": "abc1234", "date": "2026-01-02T03:04:05"},
    }
    assert environment_line(environment) == (
        "A100; EPYC with AMX, 8 cores; Python 3.12.1, torch 2.9.0, CUDA 12.8; commit abc1234; "
        "2026-01-02T03:04:05"
    )
    without = environment_line(environment | {"gpu": None, "cuda": None, "commit": None})
    assert without.startswith("no GPU; EPYC") and "CUDA none; commit unknown;" in without
    assert torch.__version__ in environment_line()
