"""How much memory a run takes, and what to say where it does not suffice."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from util.errors import UserError


def peak_memory(device: torch.device) -> int:
    """Bytes at most held so far: of the GPU, or of this process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def explains_out_of_memory() -> Iterator[None]:
    """Turn an allocation that failed into a UserError naming the settings that help."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        failed = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError))
        if not failed and "can't allocate memory" not in text and "not enough memory" not in text:
            raise
        raise UserError(
            f"out of memory ({text.partition(chr(10))[0].strip()}); the global batch stays with a "
            "lower batch_size and a higher grad_accum; checkpoint_activations True and amp bf16 "
            "take less memory too"
        ) from None
