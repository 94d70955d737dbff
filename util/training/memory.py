"""The memory that a run takes."""

import resource
import sys

import torch


def peak_memory(device: torch.device) -> int:
    """Return the most bytes held so far, on the GPU or by this process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
