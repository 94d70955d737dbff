import subprocess

import pytest
import torch

from util.runtime import device
from util.runtime.device import choose_device, count_gpus, has_kernels
from util.runtime.errors import UserError


@pytest.fixture
def machine(monkeypatch):
    """A function that makes torch see GPUs, or none, on a machine that has one."""

    def pretend(gpus=0, files=("/dev/nvidia0",), cuda="12.4", capability=(9, 0)):
        def init():
            raise RuntimeError("The NVIDIA driver on your system is too old (found 11040).\nUpdate")

        cases = {
            "is_available": lambda: gpus > 0,
            "device_count": lambda: gpus,
            "init": init,
            "get_device_capability": lambda _: capability,
            "get_device_name": lambda _: "Old GPU",
            "get_arch_list": lambda: ["sm_75", "sm_86", "compute_86"],
            "set_device": lambda _: None,
        }
        for name, function in cases.items():
            monkeypatch.setattr(torch.cuda, name, function)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(device.glob, "glob", lambda _: list(files))
        monkeypatch.setattr(device.shutil, "which", lambda _: None)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return pretend


def test_a_gpu_that_torch_does_not_see_is_never_quietly_the_cpu(machine, monkeypatch):
    machine()
    reason = (
        r"cannot use the GPU of this machine \(The NVIDIA driver .* too old \(found 11040\)\); "
    )
    with pytest.raises(UserError, match=reason):
        choose_device(0)
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert choose_device(0).type == "cpu"


def test_without_a_gpu_or_with_a_torch_for_the_cpu_the_cpu_is_used(machine):
    machine(files=())
    assert count_gpus() == 0
    machine(cuda=None)
    assert choose_device(0).type == "cpu"


@pytest.mark.parametrize(("code", "present"), [(0, True), (9, False)])
def test_where_there_are_no_device_files_nvidia_smi_is_asked(machine, monkeypatch, code, present):
    machine(files=())
    monkeypatch.setattr(device.shutil, "which", lambda _: "nvidia-smi")
    listed = subprocess.CompletedProcess([], code, "GPU 0: Some GPU\n")
    monkeypatch.setattr(device.subprocess, "run", lambda *_, **__: listed)
    if present:
        with pytest.raises(UserError, match="cannot use the GPU"):
            count_gpus()
    else:
        assert count_gpus() == 0


def test_more_processes_than_gpus_or_a_gpu_without_kernels_are_named(machine):
    machine(gpus=2)
    assert choose_device(1) == torch.device("cuda", 1)
    with pytest.raises(UserError, match="a machine with 2 GPUs has none; start at most 2"):
        choose_device(2)
    machine(gpus=1, capability=(6, 1))
    named = r"no kernels for Old GPU, compute capability 6\.1 \(it has sm_75, sm_86, compute_86\)"
    with pytest.raises(UserError, match=named):
        choose_device(0)


@pytest.mark.parametrize(
    ("capability", "built_for", "expected"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 9), ["sm_75", "sm_86"], True),  # a later one of the same generation
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_86"], False),
        ((9, 0), ["sm_80", "compute_80"], True),  # compiled when it is loaded
        ((7, 0), ["sm_75", "compute_75"], False),
        ((10, 3), ["sm_90a", "sm_100"], True),
        ((12, 0), ["sm_100", "sm_120"], True),
    ],
)
def test_a_gpu_runs_its_own_generation_and_what_is_compiled_late(capability, built_for, expected):
    assert has_kernels(capability, built_for) is expected
