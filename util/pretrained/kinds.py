"""Kinds of weights: what a file holds, told by its entries, and whether it fits a network."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from model import build_hdmnet, build_pspnet
from model.backbone import BACKBONES, build_backbone
from util.checkpoints.io import check_classes, check_fit, imagenet_state
from util.checkpoints.published_names import from_imagenet
from util.config import Config
from util.data.loaders import config_fold
from util.runtime.errors import UserError

IMAGENET, BASE, HDMNET = "ImageNet weights", "base learner", "HDMNet"


class Contents(NamedTuple):
    """What a file holds.

    kind: IMAGENET, BASE or HDMNET; net: name of the backbone in paths ("vgg", "resnet50", …);
    base_classes: their number, None of ImageNet weights; shot, kshot_trans_dim: of HDMNet, as far as
    the entries tell.
    """

    kind: str
    net: str
    base_classes: int | None = None
    shot: int = 1
    kshot_trans_dim: int | None = None


def recognise(content: dict[str, Any], source: str) -> Contents:
    """What `read_checkpoint` read from the file `source`, by names and shapes of the entries.

    The network is the one whose entries are most alike; whether they all fit, `require_fit` tells.

    Raises:
        UserError: the entries are of nothing that is used here.
    """
    state = content["state_dict"]
    if "ensemble.adjustment_merge.weight" in state:
        kind, prefix = HDMNET, "base."
    elif "classifier.2.bias" in state:
        kind, prefix = BASE, ""
    elif "conv1.weight" in state or "features.0.weight" in state:
        kind, prefix, state = IMAGENET, "", from_imagenet(state)
    else:
        raise UserError(
            f"{source} holds neither ImageNet weights of a deep-stem ResNet or VGG16-BN nor a base "
            f"learner nor HDMNet (its first entry is {next(iter(state), None)})"
        )
    net = _net_name(state, prefix + ("stages." if kind == IMAGENET else "backbone.stages."))
    if kind == IMAGENET:
        return Contents(kind, net)
    if f"{prefix}classifier.2.bias" not in state:
        raise UserError(f"{source} holds {kind} without its {prefix}classifier.2.bias")
    base_classes = len(state[f"{prefix}classifier.2.bias"]) - 1
    if kind == BASE:
        return Contents(kind, net, base_classes)
    hidden = state.get("ensemble.shot_weights.0.weight")
    linear = state.get("ensemble.shot_weights.weight")
    if hidden is not None:
        return Contents(kind, net, base_classes, hidden.shape[1], hidden.shape[0])
    if linear is not None:
        return Contents(kind, net, base_classes, linear.shape[1], 0)
    return Contents(kind, net, base_classes, content.get("shot", 1))


def _net_name(state: dict[str, Any], prefix: str) -> str:
    counters = "num_batches_tracked"
    found = {
        key.removeprefix(prefix)
        for key in state
        if key.startswith(prefix) and not key.endswith(counters)
    }

    def differing(name: str) -> int:
        own = {
            key.removeprefix("stages.")
            for key in meta_model(lambda: build_backbone(name)).state_dict()
            if not key.endswith(counters)
        }
        return len(own ^ found)

    nearest = min(BACKBONES, key=differing)
    return "vgg" if nearest == "vgg16" else nearest


def meta_model(build: Callable[[], nn.Module]) -> nn.Module:
    """The network that `build()` makes, without memory for its weights."""
    with torch.device("meta"):
        return build()


def model_of(kind: str, cfg: Config) -> nn.Module:
    """The network of an experiment whose weights are of that kind, without memory for them."""
    if kind == IMAGENET:
        return meta_model(lambda: build_backbone(cfg.backbone))
    count = len(config_fold(cfg).base)
    if kind == BASE:
        return meta_model(lambda: build_pspnet(cfg.backbone, count))
    return meta_model(lambda: build_hdmnet(base_classes=count, **cfg.model_arguments))


def require_fit(kind: str, content: dict[str, Any], cfg: Config, source: str) -> None:
    """Require that what `read_checkpoint` read from `source` loads into the experiment's network.

    Raises:
        UserError: it is of another network, fold or number of classes.
    """
    net, state = model_of(kind, cfg), content["state_dict"]
    if kind == IMAGENET:
        state = imagenet_state(net, content, source)
    else:
        check_classes(content, config_fold(cfg).base, source)
    check_fit(net, state, source)
