"""The states of this process's random streams as plain values that a checkpoint can hold."""

import random
from typing import Any

import numpy as np
import torch


def get_streams() -> dict[str, Any]:
    """Return the states of the global streams of python, numpy and torch (CPU and current GPU)."""
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    streams = {
        # Bytes, because a worker sends them with every batch and a tensor would cost a file handle.
        "python": (version, np.array(internal, np.uint32).tobytes(), gauss),
        "numpy": (np.asarray(keys, np.uint32).tobytes(), int(position), int(has_gauss), cached),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
    if torch.cuda.is_initialized():
        streams["cuda"] = torch.cuda.get_rng_state().numpy().tobytes()
    return streams


def set_streams(streams: dict[str, Any]) -> None:
    """Set the global streams to the states that `get_streams` returned."""
    version, internal, gauss = streams["python"]
    random.setstate((version, tuple(np.frombuffer(internal, np.uint32).tolist()), gauss))
    keys, *rest = streams["numpy"]
    np.random.set_state(("MT19937", np.frombuffer(keys, np.uint32), *rest))
    torch.set_rng_state(_tensor(streams["torch"]))
    if "cuda" in streams and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(_tensor(streams["cuda"]))


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
