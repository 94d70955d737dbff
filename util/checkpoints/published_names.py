"""The names of the published code: its HDMNet, base-learner and ImageNet entries, and ours."""

import re

from torch import Tensor

from util.runtime.errors import UserError

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
_LAYER = [
    ("norm1.", "norm1."),
    ("norm2.", "norm2."),
    ("attn.attn.linear_q.", "attention.query."),
    ("attn.attn.linear_k.", "attention.key."),
    ("attn.attn.linear_v.", "attention.value."),
    ("attn.attn.linear_o.", "attention.project."),
    ("attn.sr.", "attention.reduce."),
    ("attn.norm.", "attention.norm."),
    ("ffn.layers.0.", "ffn.expand."),
    ("ffn.layers.1.", "ffn.depthwise."),
    ("ffn.layers.4.", "ffn.project."),
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


def without_wrappers(state: StateDict) -> StateDict:
    """Return entries saved from DistributedDataParallel or torch.compile under their plain names."""
    return {re.sub(r"^((module|_orig_mod)\.)+", "", key): value for key, value in state.items()}


def is_published(state: StateDict) -> bool:
    """Tell whether the entries, without wrappers, carry the names of the published code."""
    return any(key.startswith("layer0.") for key in state)


def from_published(state: StateDict) -> StateDict:
    """Rename the entries of a published HDMNet or base-learner (PSPNet) checkpoint to ours.

    The base learner's "encoder." entries are dropped: they are the same tensors as its "layer" ones
    under second names.

    Raises:
        UserError: An entry is of neither model.
    """
    if any(key.startswith("transformer.") for key in state):
        return _rename(state, _HDMNET)
    state = {key: value for key, value in state.items() if not key.startswith("encoder.")}
    return _rename(state, _PSPNET)


def to_published(state: StateDict) -> StateDict:
    """Rename the entries of our HDMNet or PSPNet to those of the published code."""
    if any(key.startswith("hierarchy.") for key in state):
        return _rename(state, [(ours, theirs) for theirs, ours in _HDMNET])
    published = _rename(state, [(ours, theirs) for theirs, ours in _PSPNET])
    encoder = {
        re.sub(r"^layer(\d)", r"encoder.\1", key): value
        for key, value in published.items()
        if key.startswith("layer")
    }
    return published | encoder


def from_timm(state: StateDict) -> StateDict:
    """Return timm's weights of a ResNet with a deep stem or of VGG16-BN under the published names.

    Other entries stay as they are.
    """
    if "conv1.0.weight" in state:
        stem = r"^(conv1\.[0-6]|bn1)\."
        return {
            re.sub(stem, lambda match: _TIMM_STEM[match[1]] + ".", key): value
            for key, value in state.items()
        }
    if "features.0.weight" in state:
        return {k: v for k, v in state.items() if not k.startswith(("pre_logits.", "head."))}
    return state


_TIMM_STEM = {
    **{"conv1.0": "conv1", "conv1.1": "bn1", "conv1.3": "conv2", "conv1.4": "bn2"},
    **{"conv1.6": "conv3", "bn1": "bn3"},
}


def from_imagenet(state: StateDict) -> StateDict:
    """Rename the entries of an ImageNet file to those of `model.backbone.Backbone`.

    The file is torchvision's VGG16-BN or a deep-stem ResNet, whose stem is named conv1, bn1, ...
    conv3, bn3. The ImageNet classifier is dropped; other entries stay as they are.
    """
    return {
        _backbone_name(key): value
        for key, value in state.items()
        if not key.startswith(("fc.", "classifier."))
    }


def _backbone_name(key: str) -> str:
    if match := re.match(r"(conv|bn)([123])\.", key):
        index = 3 * (int(match[2]) - 1) + (match[1] == "bn")
        return f"stages.0.{index}.{key[match.end() :]}"
    if match := re.match(r"features\.(\d+)\.", key):
        start = max(start for start in _VGG_STAGES if start <= int(match[1]))
        stage = _VGG_STAGES.index(start)
        return f"stages.{stage}.{int(match[1]) - start}.{key[match.end() :]}"
    return re.sub(r"^layer(\d)\.", r"stages.\1.", key)


# Where the stages of model.backbone begin in torchvision's numbering of VGG16-BN's layers.
_VGG_STAGES = (0, 7, 14, 24, 34)
