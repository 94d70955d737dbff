"""The model has what it takes from mmcv and mmseg with either of the two packages, silently."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from model import mm
from tests.paths import ROOT


def imported(program):
    """What an interpreter of its own prints that runs this program with all warnings on."""
    # Torch 2.6 leaves the removal of a folder of its own to the end.
    warnings = ["-W", "default", "-W", "ignore::ResourceWarning"]
    command = [sys.executable, *warnings, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_the_import_is_silent_and_leaves_out_what_takes_long():
    program = """import sys, model.mm
assert not {"torchvision", "torch._dynamo"} & set(sys.modules)
import torchvision
assert model.mm._torchvision.models is torchvision.models
print(torchvision.__name__)"""
    assert imported(program) == (0, "torchvision\n")


@pytest.mark.slow
def test_without_mmseg_resize_is_that_of_torch():
    program = """import sys
sys.modules["mmseg"] = None
from model import mm
from torch.nn import functional
print(mm.resize is functional.interpolate)"""
    assert imported(program) == (0, "True\n")


def test_resize_gives_the_numbers_of_torch_and_no_advice(recwarn):
    maps = torch.rand(2, 3, 5, 7)
    for align_corners in (False, True):
        options = {"size": (10, 9), "mode": "bilinear", "align_corners": align_corners}
        assert torch.equal(mm.resize(maps, **options), F.interpolate(maps, **options))
    assert not recwarn.list
