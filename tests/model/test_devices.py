"""The model on a GPU, without one: fake tensors of CUDA have shapes, types and devices, no values."""

from unittest.mock import Mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import build_hdmnet, hdmnet_loss
from model.masked import MaskGrids

CUDA = torch.device("cuda", 0)
SIZE = 80


def converted(module, *types, **formats):
    """Do what Module.to does to floating-point weights; it cannot swap those of fake modules."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_floating_point():
                    new = tensor.detach().to(*types, **(formats if tensor.dim() == 4 else {}))
                    is_weight = tensors is part._parameters
                    tensors[name] = torch.nn.Parameter(new) if is_weight else new
    return module


@pytest.fixture
def fake_cuda(monkeypatch):
    """A mode in which tensors on CUDA can be made without a GPU."""
    # Fake tensors have no values to read, and there is no stream to wait for.
    monkeypatch.setattr(MaskGrids, "_longest_counts", lambda grids: [4] * len(grids._masks))
    monkeypatch.setattr(torch.cuda, "Event", Mock())
    monkeypatch.setattr(torch.cuda, "current_stream", Mock())
    # Else autocast is switched off where there is no GPU.
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "to", converted)
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda self, memo: self, raising=False)
    with FakeTensorMode() as mode:
        yield mode


def build(backbone, shot, **options):
    with torch.device(CUDA):
        return build_hdmnet(backbone, 15, shot=shot, **options)


def episode(shot):
    with torch.device(CUDA):
        images = torch.randn(2, 3, SIZE, SIZE), torch.randn(2, shot, 3, SIZE, SIZE)
        masks = torch.randint(0, 2, (2, shot, SIZE, SIZE))
        return *images, masks, torch.randint(0, 15, (2,))


def check(value, types):
    """Check that every tensor lies on CUDA and has one of some types."""
    if isinstance(value, torch.Tensor):
        assert value.device == CUDA
        assert value.dtype in types
    else:
        for part in value:
            check(part, types)


HALF, BRAIN = torch.float16, torch.bfloat16
CASES = [
    ("resnet18", 1, None, None, True),
    ("resnet18", 5, BRAIN, None, True),
    ("resnet18", 1, HALF, None, False),
    ("resnet18", 5, None, BRAIN, False),
    ("resnet50", 1, BRAIN, HALF, True),
    ("vgg16", 1, None, None, True),
]


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "shot", "backbone_dtype", "amp", "fix_bn"), CASES)
def test_nothing_leaves_the_device_or_its_precision(
    fake_cuda, backbone, shot, backbone_dtype, amp, fix_bn
):
    net = build(backbone, shot, backbone_dtype=backbone_dtype, fix_bn=fix_bn).train()
    query, support, masks, class_index = episode(shot)
    with torch.autocast("cuda", amp, enabled=amp is not None):
        assert torch.is_autocast_enabled("cuda") == (amp is not None)
        out = net(query, support, masks, class_index)
        losses = hdmnet_loss(out, masks[:, 0], masks[:, 0])
        encoded = net.encode_query(query), net.encode_support(support, masks)
        known = net.segment(*encoded, (SIZE, SIZE))
    for value in (out, losses, known):
        check(value, (torch.float32,))
    check(encoded, (torch.float32, torch.int64, backbone_dtype, amp))


class HostMemory(TorchDispatchMode):
    """Notes the operations that read or write memory of the host, for which one side waits."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        leaves = tree_leaves((arguments, options, out))
        places = {leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)}
        if "cpu" in places:
            self.operations.append((str(function), bool((options or {}).get("non_blocking"))))
        return out


@pytest.mark.slow
@pytest.mark.parametrize("amp", [None, BRAIN])
def test_a_training_step_reads_nothing_from_the_device_but_the_lengths_of_masks(fake_cuda, amp):
    """Fake tensors have no values, so that reading one with `item` or `nonzero` is an error."""
    net = build("resnet50", 5).train()
    query, support, masks, class_index = episode(5)
    with torch.autocast("cuda", amp, enabled=amp is not None):
        net(query, support, masks, class_index)  # makes what is kept
        with HostMemory() as memory:
            out = net(query, support, masks, class_index)
            hdmnet_loss(out, masks[:, 0], masks[:, 0])
    assert memory.operations == [("aten._to_copy.default", True)]
