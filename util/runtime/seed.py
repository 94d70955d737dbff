"""Seeding of the global random streams, keeping them untouched, and repeatable kernels."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def choose_kernels(deterministic: bool, tf32: bool) -> None:
    """Choose kernels that give the same bits every time, or the fastest ones.

    Call it before the first product on CUDA, since cuBLAS reads its setting only once.

    Args:
        deterministic: whether the same bits are wanted.
        tf32: whether GPUs may compute products of float32 from ten bits of precision.

    Two operations have no such kernel on CUDA, and torch warns of them. The value of the cross
    entropy of a map may differ in its last bits (not its gradient: that takes only the number of
    pixels, which is exact). The gradient of adaptive average pooling differs: only stage 1 trains
    through it.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.deterministic = deterministic
    if deterministic != torch.are_deterministic_algorithms_enabled():
        # It loads torch's compiler, which takes more than a second.
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # Where torch only warns, the fused attention kernels of CUDA keep a backward pass that varies.
    fused = not (deterministic and torch.cuda.is_available())
    torch.backends.cuda.enable_flash_sdp(fused)
    torch.backends.cuda.enable_mem_efficient_sdp(fused)
    torch.backends.cuda.enable_cudnn_sdp(fused)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def untouched_random_streams() -> Iterator[None]:
    """Restore the global CPU streams at the end, whatever is drawn or seeded while entered."""
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(cpu)
