"""Files of encoded supports: safetensors, which hold tensors and names only."""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from model.features import SupportFeatures
from model.matching import SupportTokens
from util.runtime.errors import UserError
from util.runtime.files import write_atomically


class SupportContents(NamedTuple):
    """The content of a file of supports; see `segmenter.SupportSet` for its parts."""

    features: dict[str, SupportFeatures]
    masks: dict[str, list[np.ndarray]]
    size: int
    weights: str


def save_supports(path: str | os.PathLike[str], content: SupportContents) -> None:
    """Write supports to a file."""
    tensors: dict[str, Tensor] = {}
    for label, (name, features) in enumerate(content.features.items()):
        parts = {f"{label}": features, **_numbered(f"{label}.stage", features.stages)}
        for prefix, part in parts.items():
            for key, value in part._asdict().items():
                if isinstance(value, Tensor):
                    tensors[f"{prefix}.{key}"] = value.contiguous()
        masks = map(torch.from_numpy, content.masks[name])
        tensors |= _numbered(f"{label}.mask", list(masks))
    about = {
        "classes": json.dumps(list(content.features)),
        "size": str(content.size),
        "weights": content.weights,
    }
    write_atomically(path, safetensors.torch.save(tensors, about))


def load_supports(path: str | os.PathLike[str]) -> SupportContents:
    """Read a file of `save_supports`.

    Raises:
        UserError: the file is missing, or it is another one.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        features, masks = {}, {}
        for label, name in enumerate(json.loads(about["classes"])):
            own = _within(tensors, f"{label}.")
            features[name] = _features(own)
            masks[name] = [mask.numpy() for mask in _listed(own, "mask")]
        return SupportContents(features, masks, int(about["size"]), about["weights"])
    except (OSError, safetensors.SafetensorError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(f"{os.fspath(path)} is no file of SupportSet.save ({error})") from error


def _features(tensors: Mapping[str, Tensor]) -> SupportFeatures:
    fields = {key: tensors[key] for key in SupportFeatures._fields if key != "stages"}
    stages: list[SupportTokens] = []
    while tokens := _within(tensors, f"stage{len(stages)}."):
        stages.append(SupportTokens(**tokens))
    # Files of version 0.4.0 hold those of the finest grid alone.
    fields["count"] = torch.stack([tokens.count for tokens in stages], dim=-1)
    return SupportFeatures(**fields, stages=tuple(stages))


def _numbered(prefix: str, values: Iterable[Any]) -> dict[str, Any]:
    return {f"{prefix}{number}": value for number, value in enumerate(values)}


def _within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, under names without it."""
    return {key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)}


def _listed(tensors: Mapping[str, Tensor], prefix: str) -> list[Tensor]:
    count = sum(key.startswith(prefix) for key in tensors)
    return [tensors[f"{prefix}{number}"] for number in range(count)]
