"""What a run computes with and needs: cores, memory, versions, a compiler, folders that it can write."""

import datetime
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from util.runtime.errors import UserError
from util.runtime.files import ROOT

if TYPE_CHECKING:
    import torch


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory(device: "torch.device") -> int:
    """Return the most bytes held so far, on the GPU or by this process where there is none."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_environment() -> dict[str, str | int | None]:
    """Return what a run computes with, as plain values.

    Returns:
        `gpu` (None without CUDA), `cpu`, `cores` that this process may use, `python`, `torch`, `cuda`
        (the version that torch was built for, None without), `commit` of this repository, followed by
        "+changes" where tracked files differ from it (None outside a git checkout), and `date` (ISO).
    """
    # Imported here because it takes seconds, and most commands ask for the cores only.
    import torch

    return {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "commit": _commit(),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def environment_line(environment: dict[str, str | int | None] | None = None) -> str:
    """Return the values of `run_environment` (by default those of now) in one line."""
    e = environment or run_environment()
    return (
        f"{e['gpu'] or 'no GPU'}; {e['cpu']}, {e['cores']} cores; Python {e['python']}, "
        f"torch {e['torch']}, CUDA {e['cuda'] or 'none'}; "
        f"commit {e['commit'] or 'unknown'}; {e['date']}"
    )


def require_writable(path: str | os.PathLike[str], advice: str) -> None:
    """Make a folder if it is missing; raise a UserError ending with `advice` unless it is writable."""
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"cannot write in {path}: {error.strerror}; {advice}") from error


def require_compiler() -> None:
    """Require what torch.compile calls for the code around its kernels.

    Raises:
        UserError: this machine has no C++ compiler.
    """
    if not any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++"))):
        raise UserError("compile True needs a C++ compiler (g++ or clang++), which is not found")


def _cpu_name() -> str:
    """Return the processor's model, with AMX where it has it, since bf16 gains most there."""
    try:
        information = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        information = ""
    found = re.search(r"^model name\s*:\s*(.+)$", information, re.MULTILINE)
    name = found[1] if found else platform.processor() or platform.machine()
    return name + (" with AMX" if "amx_bf16" in information else "")


def _commit() -> str | None:
    """Return the commit of this repository, or None where git or its folder is missing."""
    # Without this check, git would describe a repository that this folder happens to lie in.
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "--no-optional-locks", "describe", "--always"]
    command += ["--exclude=*", "--dirty=+changes"]  # the commit even where a tag names it
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
