"""Files of weights for tests: entries of the right shapes that take one number each on the disk."""

import re

import timm
import torch

from model.backbone import build_backbone
from tests.golden import SHAPES


def light(shapes):
    """Entries of these shapes (name → shape), each a view of one number, its own."""
    return {
        key: torch.tensor(float(number)).expand(tuple(shape))
        for number, (key, shape) in enumerate(shapes.items())
    }


def light_state(build):
    """The entries of the network that `build()` makes."""
    with torch.device("meta"):
        net = build()
    return light({key: value.shape for key, value in net.state_dict().items()})


def published(variant, prefix=""):
    """The entries of a published checkpoint, see tests/data/README.md."""
    return {prefix + key: value for key, value in light(SHAPES[variant]).items()}


def imagenet(backbone):
    """The entries of an ImageNet file of a deep-stem ResNet, as it is named."""
    state = {"fc.weight": torch.zeros(()).expand(1000, 512), "fc.bias": torch.zeros(1000)}
    for key, value in light_state(lambda: build_backbone(backbone)).items():
        if match := re.match(r"stages\.0\.(\d)\.(.*)", key):
            kind = "bn" if int(match[1]) % 3 else "conv"
            key = f"{kind}{int(match[1]) // 3 + 1}.{match[2]}"
        state[re.sub(r"^stages\.(\d)", r"layer\1", key)] = value
    return state


def timm_state(name):
    """The entries of a model of timm, each a view of one number."""
    with torch.device("meta"):
        model = timm.create_model(name)
    return {
        key: value.clone()
        for key, value in light({k: v.shape for k, v in model.state_dict().items()}).items()
    }
