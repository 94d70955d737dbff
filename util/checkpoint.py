"""Checkpoints: our files, and conversion from and to the names of the published code."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.backbone import Backbone
from util.errors import UserError
from util.files import write_atomically

StateDict = dict[str, Tensor]

# Published name ↔ ours, each a prefix; {i}, {j} stand for numbers, the first that fits applies.
_PYRAMID = [
    ("ppm.features.{i}.1.", "pyramid.pools.{i}.1."),
    ("ppm.features.{i}.2.", "pyramid.pools.{i}.2."),
    ("cls.0.", "head.0."),
    ("cls.1.", "head.1."),
]
_PSPNET = [("layer{i}.", "backbone.stages.{i}."), *_PYRAMID, ("cls.4.", "classifier.2.")]
_TRANSFORMER = "transformer.mix_transformer."
_FFN = [
    ("ffn.layers.0.", "ffn.expand."),
    ("ffn.layers.1.", "ffn.depthwise."),
    ("ffn.layers.4.", "ffn.project."),
]
_ATTENTION = [
    ("attn.attn.linear_q.", "attention.query."),
    ("attn.attn.linear_k.", "attention.key."),
    ("attn.attn.linear_v.", "attention.value."),
    ("attn.attn.linear_o.", "attention.project."),
]
_LAYER = [
    ("norm1.", "norm1."),
    ("norm2.", "norm2."),
    *_ATTENTION,
    ("attn.sr.", "attention.reduce."),
    ("attn.norm.", "attention.norm."),
    *_FFN,
]


def _beneath(published: str, ours: str, rules: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(published + theirs, ours + own) for theirs, own in rules]


_STAGE = _TRANSFORMER + "down_sample_layers.{i}."
_HDMNET = [
    *_beneath("", "base.", [("layer{i}.", "backbone.stages.{i}."), *_PYRAMID]),
    ("base_learnear.2.", "base.classifier.2."),
    ("down_query.", "reduce_query."),
    ("down_supp.", "reduce_support."),
    ("query_merge.", "merge_query."),
    ("supp_merge.", "merge_support."),
    (_STAGE + "0.", "hierarchy.stages.{i}.embed."),
    *_beneath(_STAGE + "1.", "hierarchy.stages.{i}.layers.0.", _LAYER),
    *_beneath(_STAGE + "2.", "hierarchy.stages.{i}.layers.1.", _LAYER),
    (_STAGE + "3.", "hierarchy.stages.{i}.norm."),
    *_beneath(_TRANSFORMER + "match_layers.{i}.0.", "matching.{i}.", _LAYER),
    (_TRANSFORMER + "match_layers.{i}.1.", "matching.{i}.fuse."),
    (_TRANSFORMER + "parse_layers.{i}.", "decoder.parse.{i}."),
    (_TRANSFORMER + "cls.", "decoder.classifier."),
    ("gram_merge.", "ensemble.adjustment_merge."),
    ("cls_merge.", "ensemble.background_merge."),
    ("kshot_rw.", "ensemble.shot_weights."),
]


def _rename(state: StateDict, rules: list[tuple[str, str]]) -> StateDict:
    compiled = [
        (re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(old))), new)
        for old, new in rules
    ]
    renamed = {}
    for key, value in state.items():
        for pattern, new in compiled:
            match = pattern.match(key)
            if match:
                renamed[new.format(**match.groupdict()) + key[match.end() :]] = value
                break
        else:
            raise UserError(f"checkpoint entry {key!r} belongs to no known HDMNet or PSPNet weight")
    return renamed


def without_module_prefix(state: StateDict) -> StateDict:
    """Entries saved from a DistributedDataParallel wrapper, under their plain names."""
    return {key.removeprefix("module."): value for key, value in state.items()}


def is_published(state: StateDict) -> bool:
    """Whether the entries carry the names of the published code."""
    return any(key.removeprefix("module.").startswith("layer0.") for key in state)


def from_published(state: StateDict) -> StateDict:
    """Rename the entries of a published HDMNet or base-learner (PSPNet) checkpoint to ours.

    A "module." prefix is dropped, as are the base learner's "encoder." entries, which are the same
    tensors as its "layer" ones under second names.

    Raises:
        UserError: an entry is of neither model.
    """
    state = without_module_prefix(state)
    if any(key.startswith("transformer.") for key in state):
        return _rename(state, _HDMNET)
    state = {key: value for key, value in state.items() if not key.startswith("encoder.")}
    return _rename(state, _PSPNET)


def to_published(state: StateDict) -> StateDict:
    """The inverse of `from_published`: entries of our HDMNet or PSPNet under the published names."""
    if any(key.startswith("hierarchy.") for key in state):
        return _rename(state, [(ours, theirs) for theirs, ours in _HDMNET])
    published = _rename(state, [(ours, theirs) for theirs, ours in _PSPNET])
    encoder = {
        re.sub(r"^layer(\d)", r"encoder.\1", key): value
        for key, value in published.items()
        if key.startswith("layer")
    }
    return published | encoder


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of ours or a published one, on the CPU.

    Returns:
        What our `save_checkpoint` was given; of a foreign file, at least "state_dict", always with our
        names.

    Raises:
        UserError: the file is missing, unreadable or holds no weights.
    """
    if not os.path.isfile(path):
        raise UserError(f"checkpoint {path}: there is no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"checkpoint {path}: not readable as weights ({reason})") from error
    if isinstance(content, dict) and "state_dict" not in content:
        content = {"state_dict": content}
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"checkpoint {path}: holds no state_dict of tensors")
    state = without_module_prefix(state)
    return content | {"state_dict": from_published(state) if is_published(state) else state}


def load_backbone(backbone: Backbone, path: str | Path) -> None:
    """Load ImageNet weights: torchvision's VGG16-BN, or a deep-stem ResNet.

    The latter's files name the stem conv1, bn1, ... conv3, bn3. The ImageNet classifier is dropped.

    Raises:
        UserError: the file is missing or of another network.
    """
    # Files older than PyTorch 0.4.1 lack these counters, which nothing here reads.
    state = {k: v for k, v in backbone.state_dict().items() if k.endswith("num_batches_tracked")}
    for key, value in read_checkpoint(path)["state_dict"].items():
        if not key.startswith(("fc.", "classifier.")):
            state[_backbone_name(key)] = value
    load_weights(backbone, state, str(path))


def _backbone_name(key: str) -> str:
    if match := re.match(r"(conv|bn)([123])\.", key):
        index = 3 * (int(match[2]) - 1) + (match[1] == "bn")
        return f"stages.0.{index}.{key[match.end() :]}"
    if match := re.match(r"features\.(\d+)\.", key):
        start = max(start for start in _VGG_STAGES if start <= int(match[1]))
        stage = _VGG_STAGES.index(start)
        return f"stages.{stage}.{int(match[1]) - start}.{key[match.end() :]}"
    return re.sub(r"^layer(\d)\.", r"stages.\1.", key)


def load_weights(net: nn.Module, state: StateDict, source: str) -> None:
    """Load every entry of `state` into `net`, or none.

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
    net.load_state_dict(state)


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
    """Write `content` (tensors and plain values) under a temporary name, then rename it to `path`."""
    write_atomically(path, lambda file: torch.save(content, file))


# Where the stages of model.backbone begin in torchvision's numbering of VGG16-BN's layers.
_VGG_STAGES = (0, 7, 14, 24, 34)
