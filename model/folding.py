"""Batch norms in eval mode folded into the convolutions before them."""

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


@torch.no_grad()
def folded(module: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format) -> nn.Module:
    """Return a copy for inference, whose convolutions include the batch norms after them.

    See docs/fast_path.md, "Frozen batch norms".

    Args:
        module: a module in eval mode whose batch norms each follow, in the order of definition, the
            convolution that they normalise. It is not changed.
        dtype: type of the copy's weights.
        memory_format: memory format of the copy's weights.

    Returns:
        The copy. Subclasses of convolution and batch norm may do more than these, such as apply an
        activation, and are copied as they are.
    """
    instead: dict[int, nn.Module] = {}
    # A backbone of timm may define its norms in another order than it calls them.
    parents = module.modules() if getattr(module, "foldable", True) else ()
    for parent in parents:
        for conv, norm in pairwise(parent.children()):
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
                # Each is brought to its type at once, since weights are large.
                fused = fuse_conv_bn_eval(conv, norm)
                instead[id(conv)] = fused.to(dtype).to(memory_format=memory_format)
                instead[id(norm)] = nn.Identity()
    # deepcopy takes what `instead` holds and does not copy what it replaces.
    copied = copy.deepcopy(module, instead)
    return copied.to(dtype).to(memory_format=memory_format).requires_grad_(False)


def weight_versions(module: nn.Module) -> tuple[tuple[int, object], ...]:
    """Return what changes whenever a weight or a running statistic is replaced, moved or written to.

    Tensors made under `torch.inference_mode()` count no versions. With one of these, the result
    differs from every other result.
    """
    tensors = [*module.parameters(), *module.buffers()]
    return tuple(
        (tensor.data_ptr(), object() if tensor.is_inference() else tensor._version)
        for tensor in tensors
    )
