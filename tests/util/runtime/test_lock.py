import errno
import fcntl
import os
import re
import subprocess
import sys

import pytest

from tests.paths import ROOT
from util.runtime.errors import UserError
from util.runtime.lock import exclusive
from util.runtime.log import get_logger

HOLDER = """
import os, sys
from pathlib import Path
from util.runtime.lock import exclusive
with exclusive(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        os.execvp("sleep", ["sleep", "60"])
    print(child, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock, and has a child which outlives it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "run" / ".lock"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(process.stdout.readline())
    yield process
    os.kill(child, 9)
    process.kill()
    process.communicate()


def test_the_holder_is_named_and_its_death_frees_the_lock(tmp_path, holder):
    path = tmp_path / "run" / ".lock"
    named = rf"run is in use by process {holder.pid} on \S+ since \d+-.*; wait for it"
    with pytest.raises(UserError, match=named), exclusive(path):
        pass
    with exclusive(path, is_main=False):
        pass
    holder.kill()
    holder.wait()
    with exclusive(path):
        assert re.match(rf"process {os.getpid()} on ", path.read_text())
        assert path.read_text().count("\n") == 1


def test_a_file_system_without_locks_is_no_error(tmp_path, monkeypatch):
    def without(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", without)
    with exclusive(tmp_path / ".lock"):
        pass


@pytest.mark.parametrize(
    "use",
    [
        lambda folder: exclusive(folder / ".lock").__enter__(),
        lambda folder: get_logger(folder, is_main=True),
    ],
)
def test_a_folder_that_cannot_be_written_is_named(use, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write in .*file.*; set exp_dir"):
        use(tmp_path / "file" / "run")
