"""What cannot run here says so in one line, before anything else is loaded."""

import os
import subprocess
import sys

import pytest

from tests.paths import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train.py", "train_base.py", "test.py", "-m util.verify"])
def test_a_missing_system_library_of_opencv_is_one_line(tmp_path, command):
    (tmp_path / "cv2.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory')"
    )
    done = subprocess.run(
        [sys.executable, *command.split(), "--help"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    for words in ("error: ", "libGL.so.1", "opencv-python-headless", "libgl1", "libglib2.0-0"):
        assert words in done.stderr


def test_windows_is_told_what_is_supported():
    code = "import sys; sys.platform = 'win32'; import util.launch"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    message = "error: this program runs on Linux and macOS; on Windows use WSL\n"
    assert (done.returncode, done.stderr) == (2, message)
