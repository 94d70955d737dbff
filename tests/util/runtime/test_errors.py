import errno
import json
import os
import re
import sys

import pytest
import torch
from torch.distributed import DistBackendError

from util.runtime.errors import EXIT_CODE, UserError, exits_on_user_error
from util.training.progress import Scalars


def fails(error):
    def action():
        raise error

    return action


def test_a_user_error_is_one_line(error_line):
    assert (
        error_line(exits_on_user_error(fails(UserError("no such file")))) == "error: no such file\n"
    )


@pytest.mark.parametrize(
    "action",
    [
        lambda: torch.empty(2**60),
        fails(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")),
        fails(RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")),
        fails(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`")),
        fails(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")),
        fails(RuntimeError("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED")),
        fails(DistBackendError("NCCL error: unhandled cuda error\nCuda failure 2 'out of memory'")),
        fails(MemoryError()),
    ],
)
def test_memory_that_does_not_suffice_names_the_settings_that_help(action, error_line, monkeypatch):
    settings = {
        "train.py": ("grad_accum", "batch_size", "checkpoint_activations True", "amp bf16"),
        "train_base.py": ("grad_accum", "amp bf16"),
        "test.py": ("ori_resize False", "batch_size_val"),
        "verify.py": ("out of memory",),
    }
    every = {setting for names in settings.values() for setting in names}
    for script, names in settings.items():
        monkeypatch.setattr(sys, "argv", [f"/a folder/{script}"])
        text = error_line(exits_on_user_error(action))
        assert {name for name in every if re.search(rf"\b{name}\b", text)} == {
            *names,
            "out of memory",
        }


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a.jpg"),
        RuntimeError("unable to open shared memory object: Too many open files (24)"),
        RuntimeError("received 0 items of ancdata"),
    ],
)
def test_too_many_open_files_are_one_line(error, error_line):
    text = error_line(exits_on_user_error(fails(error)))
    assert "too many open files" in text and "ulimit -n" in text and "lower workers" in text


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("no such file"), EXIT_CODE, "no such file"),
        (SystemExit(75), 75, ""),
        (KeyboardInterrupt(), None, ""),
    ],
)
def test_a_process_of_torchrun_tells_the_launcher_how_it_ends(
    error, code, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        exits_on_user_error(fails(error))()
    reply = json.loads((tmp_path / "error.json").read_text())
    assert (reply["exitcode"], reply["message"], capsys.readouterr().err) == (code, message, "")
    exits_on_user_error(lambda: None)()
    assert json.loads((tmp_path / "error.json").read_text())["exitcode"] == 0


def test_a_full_disk_is_one_line(tmp_path, error_line):
    (tmp_path / "scalars.jsonl").symlink_to("/dev/full")
    text = error_line(exits_on_user_error(lambda: Scalars(tmp_path).add("train", {"loss": 1.0}, 1)))
    assert text == "error: No space left on device; make room, what was saved before is untouched\n"


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), FileNotFoundError("no a.png")])
def test_any_other_error_keeps_its_trace(error):
    with pytest.raises(type(error), match=str(error)):
        exits_on_user_error(fails(error))()
