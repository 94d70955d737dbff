"""Read, check, load and write checkpoints."""

import os
import pickle
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.backbone import Backbone
from util.checkpoints.published_names import (
    StateDict,
    from_imagenet,
    from_published,
    is_published,
    to_published,
    without_module_prefix,
)
from util.runtime.errors import UserError
from util.runtime.files import write_atomically

__all__ = [
    "check_classes",
    "check_fit",
    "from_published",
    "imagenet_state",
    "load_backbone",
    "load_weights",
    "read_checkpoint",
    "save_checkpoint",
    "to_published",
]


def read_checkpoint(
    path: str | Path, base_classes: tuple[int, ...] | None = None, unsafe: bool = False
) -> dict[str, Any]:
    """Read a checkpoint of ours or a published one, on the CPU.

    Args:
        path: of the file.
        base_classes: of the fold that it has to be of, see `check_classes`; None: any.
        unsafe: read what is more than tensors and plain values too, which runs code of the file.
            For files that the user says are to be trusted, never in training or testing.

    Returns:
        What our `save_checkpoint` was given; of a foreign file, at least "state_dict", always with our
        names.

    Raises:
        UserError: the file is missing, unreadable, holds no weights or (unless `unsafe`) more than
            tensors and plain values, or is of another fold.
    """
    if not os.path.isfile(path):
        raise UserError(f"checkpoint {path}: there is no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=not unsafe)
    except Exception as error:
        raise _unreadable(path, error) from error
    if isinstance(content, dict) and "state_dict" not in content:
        content = {"state_dict": content}
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"checkpoint {path}: holds no state_dict of tensors")
    state = without_module_prefix(state)
    try:
        content = content | {"state_dict": from_published(state) if is_published(state) else state}
    except UserError as error:
        raise UserError(f"{error} (in {path})") from None
    if base_classes is not None:
        check_classes(content, base_classes, str(path))
    return content


def _unreadable(path: str | Path, error: Exception) -> UserError:
    # What torch says is several lines of advice to programmers, with the reason somewhere in it.
    text = re.sub(r"\x1b\[\d*m", "", str(error)).rpartition("WeightsUnpickler error:")[2].strip()
    reason = text.splitlines()[0] if text else type(error).__name__
    foreign = re.search(r"GLOBAL (\S+)", text)
    # Where the archive is whole it is its content that was refused.
    if foreign or (isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path)):
        command = f"python -m util.weights import --unsafe {shlex.quote(str(path))}"
        return UserError(
            f"checkpoint {path}: holds more than tensors ({foreign[1] if foreign else reason}), and "
            "to read that runs code of the file; if you trust where it comes from, "
            f"`{command}` makes a file of its tensors alone"
        )
    return UserError(f"checkpoint {path}: not readable as weights ({reason})")


def imagenet_state(backbone: nn.Module, content: dict[str, Any], source: str) -> StateDict:
    """The entries of an ImageNet file for `backbone`, under its names.

    Args:
        backbone: a `Backbone`.
        content: of `read_checkpoint`: torchvision's VGG16-BN, or a deep-stem ResNet.
        source: the file, for the message.

    Raises:
        UserError: the file has the stem of torchvision's ResNets.
    """
    stem = content["state_dict"].get("conv1.weight")
    if stem is not None and stem.shape[-1] == 7:
        raise UserError(
            f"checkpoint {source} has the stem of torchvision's ResNets, one 7×7 convolution; HDMNet's "
            "has three 3×3 ones: see initmodel/README.md"
        )
    # Files older than PyTorch 0.4.1 lack these counters, which nothing here reads.
    state = {k: v for k, v in backbone.state_dict().items() if k.endswith("num_batches_tracked")}
    return state | from_imagenet(content["state_dict"])


def load_backbone(backbone: Backbone, path: str | Path) -> None:
    """Load ImageNet weights: torchvision's VGG16-BN, or a deep-stem ResNet.

    Raises:
        UserError: the file is missing or of another network.
    """
    load_weights(backbone, imagenet_state(backbone, read_checkpoint(path), str(path)), str(path))


def check_fit(net: nn.Module, state: StateDict, source: str) -> None:
    """Require that `state` has the entries of `net` and their shapes; `net` may be on "meta".

    Raises:
        UserError: entries are missing, left over or of another shape; the message names `source`, the
            first of them and how many there are.
    """
    own = net.state_dict()
    problems = [f"{key} is missing" for key in own if key not in state]
    problems += [f"{key} is unexpected" for key in state if key not in own]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, the model has {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        raise UserError(
            f"checkpoint {source} does not fit the configured model: {problems[0]}"
            f" ({len(problems)} of {len(own)} entries differ); check layers/vgg, split and shot"
        )


def load_weights(net: nn.Module, state: StateDict, source: str) -> None:
    """Load every entry of `state` into `net`, or none; raises as `check_fit` does."""
    check_fit(net, state, source)
    net.load_state_dict(state)


def is_shot_weight(key: str) -> bool:
    """Whether an entry of HDMNet weighs the supports: those are made for one number of supports."""
    return key.startswith("ensemble.shot_weights.")


def check_classes(content: dict[str, Any], base_classes: tuple[int, ...], source: str) -> None:
    """Refuse a checkpoint of ours that was trained on other base classes, which shapes cannot tell.

    Raises:
        UserError: naming `source`.
    """
    trained = content.get("base_classes")
    if trained is not None and tuple(trained) != tuple(base_classes):
        raise UserError(
            f"checkpoint {source} was trained on base classes {list(trained)}, this fold has "
            f"{list(base_classes)}; check split, folds and data_set"
        )


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors and plain values) under a temporary name, then rename it to `path`.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    try:
        write_atomically(path, lambda file: torch.save(content, file))
    except (OSError, RuntimeError) as error:
        # torch hides the reason behind an error of its own, which it meets while closing the file.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise UserError(
            f"checkpoint {path} cannot be written ({reason}); what was saved before is untouched: "
            "free some space and give the same command again"
        ) from error
