"""Computations that mixed precision excludes."""

import torch
from torch import Tensor


def full_precision(device: torch.device) -> torch.autocast:
    """Return a context without mixed precision: products of features can overflow float16."""
    return torch.autocast(device.type, enabled=False)


def widened(tensor: Tensor) -> Tensor:
    """Return the tensor, in float32 if it has a type of 16 bits."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
