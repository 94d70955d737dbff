"""Batch norms in eval mode folded into the convolutions before them."""

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


@torch.no_grad()
def folded(module: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format) -> nn.Module:
    """A copy for inference, without batch norms.

    Args:
        module: one in eval mode whose batch norms each follow, in the order of definition, the
            convolution that they normalise. It is left as it is.
        dtype, memory_format: of the copy's weights.
    """
    options = {"dtype": dtype, "memory_format": memory_format}
    instead: dict[int, nn.Module] = {}
    for parent in module.modules():
        for conv, norm in pairwise(parent.children()):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                instead[id(conv)] = fuse_conv_bn_eval(conv, norm).to(**options)
                instead[id(norm)] = nn.Identity()
    # What is replaced is not copied: weights are large.
    return copy.deepcopy(module, instead).to(**options).requires_grad_(False)


def fingerprint(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes whenever a weight or a running statistic is replaced, moved or written to."""
    tensors = [*module.parameters(), *module.buffers()]
    return tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
