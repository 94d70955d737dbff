"""Kinds of weights: what a file holds, told by its entries, and whether it fits a network."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from model import HDMNet, PSPNet, build_hdmnet, build_pspnet
from model.backbone import OWN_BACKBONES, build_backbone
from util.checkpoints.io import (
    check_backbone,
    check_classes,
    check_fit,
    imagenet_state,
    load_backbone,
)
from util.checkpoints.published_names import from_imagenet
from util.config import Config
from util.config.schema import net_name, net_of
from util.data.loaders import config_fold, learner_classes
from util.runtime.errors import UserError

Model = TypeVar("Model", bound=nn.Module)

_COUNTER = "num_batches_tracked"  # an entry that old files lack
IMAGENET, BASE, HDMNET = "ImageNet weights", "base learner", "HDMNet"


class Contents(NamedTuple):
    """What a file holds.

    Attributes:
        kind: IMAGENET, BASE or HDMNET.
        net: The value of NET that chooses the backbone ("vgg", "resnet50", "timm:x", …).
        base_classes: Their number; 0 for ImageNet weights, and for HDMNet without a base learner.
        shot: Number of supports in the training of HDMNet, as far as the file tells.
        kshot_trans_dim: Width of what weighs the supports; None where the file has no such part.
    """

    kind: str
    net: str
    base_classes: int = 0
    shot: int = 1
    kshot_trans_dim: int | None = None


def recognise(content: dict[str, Any], source: str) -> Contents:
    """Tell what `read_checkpoint` read from the file `source`, by names and shapes of its entries.

    The network is the one that the file names, or else the one whose entries are most alike;
    `require_fit` tells whether all of them fit.

    Raises:
        UserError: The entries are of nothing that is used here.
    """
    state = content["state_dict"]
    if "ensemble.adjustment_merge.weight" in state:
        kind, prefix = HDMNET, "base."
    elif "classifier.2.bias" in state:
        kind, prefix = BASE, ""
    elif "conv1.weight" in state or "features.0.weight" in state:
        return Contents(IMAGENET, _net_name(from_imagenet(state), "stages."))
    else:
        raise UserError(
            f"{source} holds neither ImageNet weights of a deep-stem ResNet or VGG16-BN nor a base "
            f"learner nor HDMNet (its first entry is {next(iter(state), None)})"
        )
    named = content.get("backbone")
    net = net_of(named) if named else _net_name(state, prefix + "backbone.stages.")
    bias = state.get(f"{prefix}classifier.2.bias")
    if bias is None and f"{prefix}head.0.weight" in state:
        raise UserError(f"{source} holds {kind} without its {prefix}classifier.2.bias")
    base_classes = 0 if bias is None else len(bias) - 1
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
    """Return the backbone whose entries are most alike those of `state` that begin with `prefix`."""
    found = {
        key.removeprefix(prefix)
        for key in state
        if key.startswith(prefix) and not key.endswith(_COUNTER)
    }
    nearest = min(OWN_BACKBONES, key=lambda name: len(_backbone_entries(name) ^ found))
    return net_name(nearest)


@cache
def _backbone_entries(name: str) -> frozenset[str]:
    state = meta_model(lambda: build_backbone(name)).state_dict()
    return frozenset(key.removeprefix("stages.") for key in state if not key.endswith(_COUNTER))


def meta_model(build: Callable[[], Model]) -> Model:
    """Return the network that `build()` makes, without memory for its weights."""
    with torch.device("meta"):
        return build()


def meta_hdmnet(cfg: Config, base_classes: int | None = None) -> HDMNet:
    """Return an experiment's HDMNet without memory for its weights.

    Args:
        cfg: The settings.
        base_classes: Their number; None: that of the experiment.
    """
    count = learner_classes(cfg) if base_classes is None else base_classes
    return meta_model(lambda: build_hdmnet(base_classes=count, **cfg.model_arguments))


def meta_base_learner(cfg: Config) -> PSPNet:
    """Return an experiment's base learner without memory for its weights."""
    return meta_model(lambda: build_pspnet(cfg.backbone, len(config_fold(cfg).base)))


def require_fit(kind: str, content: dict[str, Any], cfg: Config, source: str) -> None:
    """Require that what `read_checkpoint` read from `source` loads into the experiment's network.

    Raises:
        UserError: The weights are of another kind, network, fold or number of classes.
    """
    if kind == IMAGENET and cfg.backbone not in OWN_BACKBONES:
        # timm knows several names for the entries of its models.
        load_backbone(build_backbone(cfg.backbone), source)
        return
    require_kind(kind, content, source)
    check_backbone(content, cfg.backbone, source)
    if kind == IMAGENET:
        backbone = meta_model(lambda: build_backbone(cfg.backbone))
        check_fit(backbone, imagenet_state(backbone, content, source), source)
        return
    check_classes(content, config_fold(cfg).base, source)
    net = meta_base_learner(cfg) if kind == BASE else meta_hdmnet(cfg)
    check_fit(net, content["state_dict"], source)


def require_start(content: dict[str, Any], cfg: Config, source: str) -> Contents:
    """Require that an experiment can test these weights of HDMNet or train on from them.

    They may be of another shot and of another dataset, with another number of base classes.

    Raises:
        UserError: The weights are of another kind, network or fold.
    """
    found, base_classes = require_kind(HDMNET, content, source), config_fold(cfg).base
    check_backbone(content, cfg.backbone, source)
    # As many classes, but others, are those of another fold: it has seen those held out here.
    if found.base_classes == len(base_classes):
        check_classes(content, base_classes, source)
    if found.shot != cfg.shot:
        trained = {"shot": found.shot, "kshot_trans_dim": found.kshot_trans_dim}
        cfg = cfg.model_copy(update=trained)
    check_fit(meta_hdmnet(cfg, found.base_classes), content["state_dict"], source)
    return found


def require_kind(kind: str, content: dict[str, Any], source: str) -> Contents:
    """Return what `recognise` tells of a file.

    Raises:
        UserError: The weights are of another kind.
    """
    found = recognise(content, source)
    if found.kind != kind:
        raise UserError(
            f"checkpoint {source} holds weights of another kind, {found.kind}; needed here: {kind}"
        )
    return found
