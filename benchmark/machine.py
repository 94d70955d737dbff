"""The machine that a benchmark ran on, for the tables."""

import platform
import re
from pathlib import Path

import torch

from util.data.list_cache import available_cores


def describe_machine() -> str:
    """One line: processor or GPU, cores, versions."""
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", information.read_text(), re.MULTILINE)
        cpu = found[1] if found else cpu
    flags = "" if not _has_amx() else ", AMX"
    gpu = f"{torch.cuda.get_device_name()}; " if torch.cuda.is_available() else ""
    return (
        f"{gpu}{cpu}{flags}, {available_cores()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def _has_amx() -> bool:
    information = Path("/proc/cpuinfo")
    return information.exists() and "amx_bf16" in information.read_text()
