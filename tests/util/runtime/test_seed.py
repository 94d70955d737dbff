import os

import pytest
import torch
from torch import nn

from util.runtime.seed import choose_kernels, seed_everything


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    monkeypatch.undo()
    choose_kernels(False, tf32=True)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def fused_attention():
    cuda = torch.backends.cuda
    return {
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    }


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


def trained():
    seed_everything(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 2, 1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    for _ in range(5):
        images = torch.rand(2, 3, 16, 16)
        out = nn.functional.interpolate(net(images), size=31, mode="bilinear", align_corners=True)
        optimizer.zero_grad()
        nn.functional.cross_entropy(out, torch.randint(2, (2, 31, 31))).backward()
        optimizer.step()
    return net.state_dict()


def test_two_trainings_with_it_have_the_same_bits():
    choose_kernels(True, tf32=True)
    one, other = trained(), trained()
    assert all(one[key].equal(other[key]) for key in one)
