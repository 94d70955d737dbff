"""The files that come with the repository: line ends of a clone, sources, version."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.paths import ROOT

PAPER = "https://arxiv.org/abs/2303.14652"
SOURCES = {
    "README.md": (
        PAPER,
        "https://github.com/Pbihao/HDMNet",
        "https://github.com/chunbolang/BAM",
        "https://github.com/dvlab-research/PFENet",
    ),
    "initmodel/README.md": (
        "https://github.com/Pbihao/HDMNet",
        "https://github.com/chunbolang/BAM",
        "https://github.com/dvlab-research/PFENet",
    ),
    "lists/README.md": (
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        "http://home.bharathh.info/pubs/codes/SBD/download.html",
        "https://cocodataset.org/",
    ),
}


def git(*words, cwd=ROOT):
    return subprocess.run(["git", *words], cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """Folder of a clone as git makes it where it is set up for Windows."""
    if not (shutil.which("git") and (ROOT / ".git").exists() and git("rev-parse").returncode == 0):
        pytest.skip("this folder is no git checkout")
    folder = tmp_path_factory.mktemp("clone")
    done = git("clone", "--quiet", "--config", "core.autocrlf=true", str(ROOT), str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def test_a_clone_with_autocrlf_keeps_the_line_ends(clone):
    files = git("ls-files", "--eol", cwd=clone).stdout.splitlines()
    assert len(files) > 200
    assert [line for line in files if "w/crlf" in line or "w/mixed" in line] == []
    scripts = [*clone.rglob("*.sh"), clone / ".ci/run"]
    assert {"demo.sh", "shell.sh", "run"} <= {path.name for path in scripts}
    assert [path for path in scripts if b"\r" in path.read_bytes()] == []


def test_git_ignores_an_environment_that_is_a_link(clone, tmp_path):
    (clone / ".venv").symlink_to(tmp_path, target_is_directory=True)
    assert git("status", "--porcelain", cwd=clone).stdout == ""


@pytest.mark.parametrize("page", SOURCES)
def test_pages_link_what_they_build_on(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert [link for link in SOURCES[page] if f"]({link}" not in text] == []


def test_version_and_paper_are_the_same_everywhere():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"$', project, re.MULTILINE)[1]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    assert citation["preferred-citation"]["url"] == PAPER
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changes, re.MULTILINE)[1] == version


@pytest.mark.parametrize(
    "module", ["segmenter", "predict", "train_base", "train", "test", "benchmark.model", "util.app"]
)
def test_threads_are_told_how_to_wait_before_torch_is_loaded(module):
    """Threads of OpenMP that spin while they wait slow down a shared machine several times."""
    code = f"""
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ["OMP_WAIT_POLICY"])
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Finder())
import {module}
"""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("PASSIVE\n", 0), done.stderr
