"""One measurement in a process of its own: `python -m benchmark.worker KIND ARGUMENTS`, both JSON.

The last line printed is the result, as JSON.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from benchmark.cases import QUICK, Case, Lab, difference
from benchmark.matching_case import matching_step
from benchmark.parts import timed_parts, wait_for
from util.runtime.files import ROOT

# Threads wait without spinning, as in the scripts. For memory: from this size on the allocator of
# glibc gives back what is freed, so that what a process holds is what is in use.
_THREADS = {"OMP_WAIT_POLICY": "passive"}
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1000000"}


def measure(kind: str, **arguments):
    """The result of a measurement, done in a new process.

    Raises:
        RuntimeError: that process failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmark.worker", kind, json.dumps(arguments)],
        cwd=ROOT,
        env=os.environ | _THREADS | (_ALLOCATOR if kind.endswith("memory") else {}),
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"measuring {kind} of {arguments} failed with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_times(case: list, ways: list[str], repeats: int, device: str) -> dict:
    """Seconds of each way, the median of runs that take turns, and differences to the first way."""
    device = torch.device(device)
    lab = Lab(Case(*case), device, "bf16" in ways)
    expected, *others = [lab.test(way) for way in ways]
    differences = [difference(out, expected) for out in others]
    del expected, others
    steps = {way: lab.step(way) for way in ways}
    seconds = {way: [] for way in ways}
    for repeat in range(repeats + 1):
        for way, step in steps.items():
            taken = seconds_of(step, device)
            if repeat > 0:  # the first one is to warm up
                seconds[way].append(taken)
    return {
        "seconds": {way: median(values) for way, values in seconds.items()},
        "differences": dict(zip(ways[1:], differences, strict=True)),
    }


def measure_parts(case: list, way: str, device: str) -> dict[str, float]:
    """Seconds of each part and of the whole in one run, after one to warm up."""
    device = torch.device(device)
    step = Lab(Case(*case), device, way == "bf16").step(way)
    step()
    with timed_parts(device) as seconds:
        whole = seconds_of(step, device)
    return seconds | {"whole": whole}


def measure_memory(case: list, way: str, device: str) -> float:
    """Bytes at most held by one run, above the weights and the batch."""
    device = torch.device(device)
    _load_libraries(device)
    step = Lab(Case(*case), device, way == "bf16").step(way)
    with Peak(device) as peak:
        step()
    return peak.bytes


def measure_matching_memory(size: int, shot: int, share: float, way: str, device: str) -> list:
    """Number of support positions inside the masks, and the bytes at most held by `matching_step`."""
    device = torch.device(device)
    _load_libraries(device)
    step, positions = matching_step(size, shot, share, way, device)
    with Peak(device) as peak:
        step()
    return [positions, peak.bytes]


def _load_libraries(device: torch.device) -> None:
    for quick in QUICK:
        Lab(quick, device, False).step("fast")()


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """How long a step takes, until the device has done it."""
    wait_for(device)
    start = time.perf_counter()
    step()
    wait_for(device)
    return time.perf_counter() - start


class Peak:
    """The most memory held inside, in bytes above what was held before: of the GPU, or of the process."""

    def __init__(self, device: torch.device):
        self.device = device
        self.bytes = 0

    def __enter__(self) -> "Peak":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            Path("/proc/self/clear_refs").write_text("5")
            self._before = _status("VmRSS")
        return self

    def __exit__(self, *_) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
        else:
            self.bytes = _status("VmHWM") - self._before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


MEASUREMENTS = {
    "times": measure_times,
    "parts": measure_parts,
    "memory": measure_memory,
    "matching_memory": measure_matching_memory,
}

if __name__ == "__main__":
    kind, arguments = sys.argv[1:]
    print(json.dumps(MEASUREMENTS[kind](**json.loads(arguments))))
