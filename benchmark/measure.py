"""Seconds and bytes of what runs on a device, and the seconds of the model's parts."""

import gc
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, TypeVar
from unittest import mock

import torch

from benchmark.cases import SMALL_CASES, Case, Lab
from model import decoder, encoder, frozen, hdmnet, hierarchy, matching

Step = Callable[[], object]
T = TypeVar("T")

# The functions of each part.
PARTS: dict[str, list[tuple[object, str]]] = {
    "backbone": [(frozen.FrozenBase, "_features")],
    "base head": [(frozen.FrozenBase, name) for name in ("head", "head_at")],
    "prior": [(hdmnet, "similarity_prior")],
    "hierarchy": [(hierarchy.Hierarchy, "forward")],
    "matching": [(matching.MatchingLayer, name) for name in ("encode_support", "forward")],
    "style": [(encoder.FeatureEncoder, "_gram")],
    "decoder": [(decoder.Decoder, "forward")],
    "backward": [(torch.Tensor, "backward")],
}


def release_memory(device: torch.device) -> None:
    """Free the memory that nothing refers to."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def seconds_of(step: Step, device: torch.device) -> float:
    """Return how long a step takes, until the device has finished it."""
    _wait_for(device)
    start = time.perf_counter()
    step()
    _wait_for(device)
    return time.perf_counter() - start


def median_seconds(step: Step, device: torch.device, repeats: int) -> float:
    """Return the median of some runs after one to warm up."""
    return median([seconds_of(step, device) for _ in range(1 + repeats)][1:])


def peak_bytes(step: Step, device: torch.device) -> int:
    """Return the most memory of the GPU, or of the process, that a step adds to what was held."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")
    before = process_bytes("VmRSS")
    step()
    return process_bytes("VmHWM") - before


def cpu_peak_bytes(case: Case, way: str, folder: Path | None = None) -> int:
    """Return `peak_bytes` of a case's first run in a new process, on the CPU."""
    # From this size on, the allocator of glibc returns what is freed to the system, so that a new
    # process holds what is in use.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1000000"
    return in_new_process(_first_peak_bytes, case, way, folder)


def in_new_process(function: Callable[..., T], *arguments: Any) -> T:
    """Return what a function returns in a process that starts with no memory of this one."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _first_peak_bytes(case: Case, way: str, folder: Path | None) -> int:
    device = torch.device("cpu")
    # It loads the libraries.
    Lab(SMALL_CASES[case.training], device).step("fast")()
    return peak_bytes(Lab(case, device, folder).step(way), device)


def measure_peaks(device: torch.device) -> dict[str, float]:
    """Return FLOP/s of a large matrix product of each type, and B/s of a copy, read and written."""
    size = 8192 if device.type == "cuda" else 512
    rates = {}
    for name in ("float32", "TF32", "bf16"):
        torch.backends.cuda.matmul.allow_tf32 = name == "TF32"
        dtype = torch.bfloat16 if name == "bf16" else torch.float32
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        rates[name] = 2 * size**3 / median_seconds(lambda a=a, b=b: a @ b, device, 7)
    a = torch.randn(size, 16 * size, device=device)
    b = torch.empty_like(a)
    rates["copy"] = 2 * a.nbytes / median_seconds(lambda: b.copy_(a), device, 7)
    return rates


def process_bytes(key: str) -> int:
    """Return a size of this process in bytes, by its key in /proc: VmRSS now, VmHWM at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


@contextmanager
def timed_parts(device: torch.device) -> Iterator[dict[str, float]]:
    """Add up the seconds that each part of the model takes in this context."""
    seconds = dict.fromkeys(PARTS, 0.0)

    def timed(function: Callable, part: str) -> Callable:
        def call(*args, **kwargs):
            results: list = []
            seconds[part] += seconds_of(lambda: results.append(function(*args, **kwargs)), device)
            return results[0]

        return call

    with ExitStack() as patches:
        for part, functions in PARTS.items():
            for owner, name in functions:
                replacement = timed(getattr(owner, name), part)
                patches.enter_context(mock.patch.object(owner, name, replacement))
        yield seconds


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
