"""Read, check, load and write checkpoints."""

import os
import pickle
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from model.backbone import Backbone
from util.checkpoints.published_names import (
    StateDict,
    from_imagenet,
    from_published,
    from_timm,
    is_published,
    without_wrappers,
)
from util.runtime.errors import UserError, is_full_disk
from util.runtime.files import write_atomically

# The names under which files keep their weights; other files are the weights themselves.
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "net")
# Entries that tell why a checkpoint does not fit, with the reason; the first that differs applies.
_CAUSES = {
    r"(base\.)?(backbone\.)?stages\.": "another backbone: check backbone, layers and vgg",
    r"(base\.)?classifier\.": "another number of base classes: check data_set, folds and base_learner",
    r"ensemble\.shot_weights\.": "another shot or kshot_trans_dim: check these two settings",
    "": "another network, or the file is incomplete",
}


def read_checkpoint(
    path: str | Path, *, unsafe: bool = False, mapped: bool = False
) -> dict[str, Any]:
    """Read a checkpoint of ours, of the published code or a safetensors file, on the CPU.

    Args:
        path: The file.
        unsafe: Read what is more than tensors and plain values too, which runs code of the file.
            For files that the user trusts, never in training or testing.
        mapped: Leave the tensors in the file until they are used, where names and shapes suffice.

    Returns:
        What our `save_checkpoint` was given; of a foreign file at least "state_dict". Its entries
        always have our names, or those of the published code for ImageNet weights.

    Raises:
        UserError: The file is missing or unreadable, or it holds no weights or (unless `unsafe`)
            more than tensors and plain values.
    """
    if not os.path.isfile(path):
        raise UserError(f"checkpoint {path}: there is no such file")
    content = _read(path, unsafe, mapped)
    state = _state_in(content)
    if state is None:
        raise UserError(f"checkpoint {path}: holds no state_dict of tensors")
    details = {} if state is content else content
    state = from_timm(without_wrappers(state))
    try:
        return details | {"state_dict": from_published(state) if is_published(state) else state}
    except UserError as error:
        raise UserError(f"{error} (in {path})") from None


def _read(path: str | Path, unsafe: bool, mapped: bool) -> Any:
    """Return the content of a file of torch or safetensors."""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
        # Both formats are binary from the first bytes on.
        if not any(byte < 9 or 13 < byte < 32 for byte in start):
            raise _not_binary(path, start)
        # Safetensors: eight bytes hold the length of a JSON header, which follows.
        if start[7:9] == b"\0{":
            return safetensors.torch.load_file(path)
        mapped = mapped and zipfile.is_zipfile(path)  # Older files of torch cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=not unsafe, mmap=mapped)
    except UserError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def _not_binary(path: str | Path, start: bytes) -> UserError:
    if not start:
        return UserError(f"checkpoint {path}: is empty; copy or download it again")
    line = start.decode(errors="replace").strip().partition("\n")[0]
    return UserError(
        f"checkpoint {path}: holds no weights but a text that begins {line[:40]!r}; if a download "
        "gave this web page, follow its link to the file itself"
    )


def _state_in(content: Any) -> StateDict | None:
    """Return the weights in the content of a file; None where there are none."""
    if not isinstance(content, dict):
        return None
    inner = (content[key] for key in _STATE_KEYS if isinstance(content.get(key), dict))
    state = next(inner, content)
    named = all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    return state if named else None


def _unreadable(path: str | Path, error: Exception) -> UserError:
    # What torch says is several lines of advice to programmers, with the reason somewhere in it.
    text = re.sub(r"\x1b\[\d*m", "", str(error)).rpartition("WeightsUnpickler error:")[2].strip()
    reason = text.splitlines()[0].partition(". ")[0] if text else type(error).__name__
    foreign = re.search(r"GLOBAL (\S+)", text)
    # Where the archive is whole it is its content that was refused.
    if foreign or (isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path)):
        command = f"python -m util.weights import --unsafe {shlex.quote(str(path))}"
        return UserError(
            f"checkpoint {path}: holds more than tensors ({foreign[1] if foreign else reason}), and "
            "to read that runs code of the file; if you trust where it comes from, "
            f"`{command}` makes a file of its tensors alone"
        )
    return UserError(
        f"checkpoint {path}: not readable as weights ({reason}); copy or download it again"
    )


def imagenet_state(backbone: nn.Module, content: dict[str, Any], source: str) -> StateDict:
    """Return the entries of an ImageNet file for `backbone`, under its names.

    Args:
        backbone: A `Backbone`.
        content: What `read_checkpoint` returned for torchvision's VGG16-BN or a deep-stem ResNet.
        source: The file, for the message.

    Raises:
        UserError: The file has the stem of torchvision's ResNets.
    """
    stem = content["state_dict"].get("conv1.weight")
    if stem is not None and stem.shape[-1] == 7:
        raise UserError(
            f"checkpoint {source} has the stem of torchvision's ResNets, one 7×7 convolution; HDMNet's "
            "has three 3×3 ones; `python -m util.weights fetch resnet50` downloads such weights"
        )
    # Files older than PyTorch 0.4.1 lack these counters, which nothing here reads.
    state = {k: v for k, v in backbone.state_dict().items() if k.endswith("num_batches_tracked")}
    return state | from_imagenet(content["state_dict"])


def load_backbone(backbone: Backbone, path: str | Path) -> None:
    """Load ImageNet weights: torchvision's VGG16-BN, a deep-stem ResNet, or a model of timm.

    Raises:
        UserError: The file is missing or of another network.
    """
    timm_net: Any = backbone
    if hasattr(backbone, "load_file"):
        try:
            timm_net.load_file(path)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{path} does not hold weights of timm's {timm_net.model}: {reason}"
            ) from error
        return
    load_weights(backbone, imagenet_state(backbone, read_checkpoint(path), str(path)), str(path))


def check_fit(net: nn.Module, state: StateDict, source: str) -> None:
    """Require that `state` has the entries of `net` and their shapes; `net` may be on "meta".

    Raises:
        UserError: Entries are missing, left over or of another shape; the message names `source`,
            one of them, how many there are, and the likely cause.
    """
    own = net.state_dict()
    problems = {key: f"{key} is missing" for key in own if key not in state}
    problems |= {key: f"{key} is unexpected" for key in state if key not in own}
    problems |= {
        key: f"{key} has shape {tuple(state[key].shape)}, the model has {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    }
    for entries, cause in _CAUSES.items():
        differing = [problem for key, problem in problems.items() if re.match(entries, key)]
        if differing:
            raise UserError(
                f"checkpoint {source} does not fit the configured model: {differing[0]} "
                f"({len(problems)} of {len(own)} entries differ); it is of {cause}"
            )


def load_weights(net: nn.Module, state: StateDict, source: str) -> None:
    """Load every entry of `state` into `net`, or none; raises as `check_fit` does."""
    check_fit(net, state, source)
    net.load_state_dict(state)


def is_shot_weight(key: str) -> bool:
    """Tell whether an entry of HDMNet weighs the supports: those fit one number of supports."""
    return key.startswith("ensemble.shot_weights.")


def check_classes(content: dict[str, Any], base_classes: tuple[int, ...], source: str) -> None:
    """Refuse a checkpoint of ours that was trained on other base classes, which shapes cannot tell.

    Raises:
        UserError: The classes are others; the message names `source`.
    """
    trained = tuple(content.get("base_classes", base_classes))
    if trained != tuple(base_classes):
        raise UserError(
            f"checkpoint {source} was trained on base classes {list(trained)}, this fold has "
            f"{list(base_classes)}; check split, folds and data_set"
        )


def check_backbone(content: dict[str, Any], backbone: str, source: str) -> None:
    """Refuse a checkpoint of ours that names another backbone.

    Raises:
        UserError: It does; the message names `source` and both.
    """
    there = content.get("backbone", backbone)
    if there != backbone:
        raise UserError(
            f"checkpoint {source} is of the backbone {there}, the settings have {backbone}; set "
            f"backbone {there}"
        )


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors and plain values) under a temporary name, then rename it to `path`.

    Raises:
        UserError: The disk is full, or the folder cannot be written.
    """
    try:
        write_atomically(path, lambda file: torch.save(content, file))
    except (OSError, RuntimeError) as error:
        # torch hides the reason behind an error of its own, which it meets while closing the file.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(cause, "strerror", None) or cause
        remedy = "free some space or name another place"
        if isinstance(cause, OSError) and not is_full_disk(cause):
            remedy = f"its folder {Path(path).parent} cannot be written, name another place"
        raise UserError(
            f"checkpoint {path} cannot be written ({reason}); what was saved before is untouched: "
            f"{remedy}, and give the same command again"
        ) from error
