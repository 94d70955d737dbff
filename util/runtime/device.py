"""The device that a process computes on: a GPU that the installed torch can use, or the CPU."""

import glob
import os
import re
import shutil
import subprocess
import warnings

import torch

from util.runtime.errors import UserError

_NO_GPU = ("", "-1", "NoDevFiles")  # CUDA_VISIBLE_DEVICES of who wants the CPU; the last is Slurm's


def count_gpus() -> int:
    """Return the number of GPUs that torch can use, 0 where the CPU is to be used.

    Raises:
        UserError: torch is built for CUDA and cannot use the GPU of this machine.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The reason is given below.
        if torch.cuda.is_available():
            return torch.cuda.device_count()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in _NO_GPU
    if torch.version.cuda and not hidden and _gpu_is_present():
        raise UserError(
            f"torch {torch.__version__} cannot use the GPU of this machine ({_reason()}); install "
            "a build of torch that fits its driver, or set CUDA_VISIBLE_DEVICES=-1 to use the CPU"
        )
    return 0


def choose_device(local_rank: int) -> torch.device:
    """Return the GPU of a process, made the current one, or the CPU where there is no GPU.

    Args:
        local_rank: number of the process on this machine.

    Raises:
        UserError: there are fewer GPUs than processes, or torch cannot use the GPU.
    """
    gpus = count_gpus()
    if not gpus:
        return torch.device("cpu")
    if local_rank >= gpus:
        raise UserError(
            f"process {local_rank + 1} of a machine with {gpus} GPUs has none; start at most {gpus}"
        )
    device = torch.device("cuda", local_rank)
    capability = torch.cuda.get_device_capability(device)
    built_for = torch.cuda.get_arch_list()
    if torch.version.cuda and not has_kernels(capability, built_for):
        raise UserError(
            f"torch {torch.__version__} has no kernels for {torch.cuda.get_device_name(device)}, "
            f"compute capability {capability[0]}.{capability[1]} (it has {', '.join(built_for)}); "
            "install a build of torch that has them, or set CUDA_VISIBLE_DEVICES=-1 to use the CPU"
        )
    torch.cuda.set_device(device)
    return device


def has_kernels(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Return whether a GPU can run one of the architectures of `torch.cuda.get_arch_list`.

    Args:
        capability: the compute capability of the GPU, (major, minor).
        built_for: names such as sm_90 (runs on 9.0 and later 9.x) or compute_90 (9.0 and later).
    """
    for kind, digits in re.findall(r"(sm|compute)_(\d+)", " ".join(built_for)):
        built = divmod(int(digits), 10)
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def _gpu_is_present() -> bool:
    if glob.glob("/dev/nvidia[0-9]*"):
        return True
    tool = shutil.which("nvidia-smi")  # WSL has no such device files.
    if tool is None:
        return False
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU 0" in listed.stdout


def _reason() -> str:
    """Return why torch cannot use a GPU, in its own words."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().partition("\n")[0].rstrip(".")
    return "it finds none"
