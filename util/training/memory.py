"""How much memory a run takes."""

import resource
import sys

import torch


def peak_memory(device: torch.device) -> int:
    """Bytes at most held so far: of the GPU, or of this process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
