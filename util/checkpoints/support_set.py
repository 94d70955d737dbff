"""Encoded supports, and their files: safetensors, which hold tensors and names only."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from model.features import SupportFeatures
from model.matching import SupportTokens
from util.runtime.files import write_atomically

# Raised where tensors or names are others.
_FOREIGN = (ValueError, TypeError, KeyError, RuntimeError)


@dataclass(frozen=True, eq=False)
class SupportSet:
    """The features of supports, which serve any number of queries.

    Attributes:
        features: by class, the features of its K supports as one episode.
        masks: by class, the mask of each support, bool (H, W): the one that was given, or what a box,
            points or a scribble became.
        size: S of the images S×S that were encoded; queries are segmented at the same.
        weights: identifies the weights that encoded them.
    """

    features: dict[str, SupportFeatures]
    masks: dict[str, list[np.ndarray]]
    size: int
    weights: str

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, whose labels in `segmenter.Result.label_map` are 1, 2, …"""
        return tuple(self.features)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all to a safetensors file.

        Raises:
            ValueError: the file cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        for label, (name, features) in enumerate(self.features.items()):
            parts = {f"{label}": features, **_numbered(f"{label}.stage", features.stages)}
            for prefix, part in parts.items():
                for key, value in part._asdict().items():
                    if isinstance(value, Tensor):
                        tensors[f"{prefix}.{key}"] = value.contiguous()
            tensors |= _numbered(f"{label}.mask", map(torch.from_numpy, self.masks[name]))
        about = {
            "classes": json.dumps(self.classes),
            "size": str(self.size),
            "weights": self.weights,
        }
        try:
            write_atomically(path, safetensors.torch.save(tensors, about))
        except OSError as error:
            raise ValueError(f"{os.fspath(path)} cannot be written: {error.strerror}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SupportSet":
        """Read a file of `save`.

        Raises:
            ValueError: the file is missing, or it is another one.
        """
        try:
            with safetensors.safe_open(path, "pt") as file:
                about = file.metadata()
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            features, masks = {}, {}
            for label, name in enumerate(json.loads(about["classes"])):
                own = _within(tensors, f"{label}.")
                features[name] = _features(own)
                count = sum(key.startswith("mask") for key in own)
                masks[name] = [own[f"mask{number}"].numpy() for number in range(count)]
            return cls(features, masks, int(about["size"]), about["weights"])
        except (*_FOREIGN, OSError, safetensors.SafetensorError) as error:
            raise ValueError(
                f"{os.fspath(path)} is no file of SupportSet.save ({error})"
            ) from error


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
