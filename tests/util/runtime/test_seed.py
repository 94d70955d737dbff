import os

import pytest
import torch

from util.runtime.seed import choose_kernels


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    monkeypatch.undo()
    choose_kernels(False, tf32=True)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def fused_attention():
    cuda = torch.backends.cuda
    return {cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()}


@pytest.mark.parametrize("cuda", [False, True])
def test_the_switch_sets_what_torch_reads(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    choose_kernels(True, tf32=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert fused_attention() == {not cuda}
    choose_kernels(False, tf32=False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    assert not (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    assert fused_attention() == {True}


def test_a_workspace_of_the_user_stays(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    choose_kernels(True, tf32=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
