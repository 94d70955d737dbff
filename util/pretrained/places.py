"""Places of weights: where the commands look for which, and where they come from."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from model.backbone import BACKBONES, find_backbone
from util.checkpoints.io import read_checkpoint
from util.checkpoints.run_files import PUBLISHED, RunFiles, find_best
from util.config import DATASETS, Config, load_config
from util.config.schema import net_name
from util.pretrained.kinds import BASE, HDMNET, IMAGENET, require_fit
from util.runtime.errors import UserError

_SETTINGS = Path(DATASETS).parent / "base"
# What the authors of BAM publish base learners for.
_PUBLISHED = [(dataset, net) for dataset in ("pascal", "coco") for net in ("resnet50", "vgg")]


def nets() -> list[str]:
    """Return the names of the backbones with settings: "resnet101", "resnet18", …, "vgg"."""
    named = {net_name(backbone) for backbone in BACKBONES}
    return sorted(path.stem for path in _SETTINGS.glob("*.yaml") if path.stem in named)


def datasets() -> list[str]:
    """Return the names of the datasets with a description."""
    return sorted(path.stem for path in Path(DATASETS).glob("*.yaml"))


def experiment(
    net: str, dataset: str, split: int, opts: list[str] | tuple[str, ...] = ()
) -> Config:
    """Return the settings of an experiment, as the shell scripts put them together.

    Raises:
        UserError: There are no settings for the backbone `net`, or the others are wrong.
    """
    path = _SETTINGS / f"{net}.yaml"
    if not path.is_file():
        raise UserError(
            f"no settings for the backbone {net}: there is no {os.path.relpath(path)}; "
            f"there is {', '.join(nets())}"
        )
    words = ["data_set", dataset, "split", str(split), *opts]
    return load_config(os.path.relpath(path), words)


def place_of(kind: str, cfg: Config) -> Path | None:
    """Return where the commands look for weights of that kind; None: they start from random ones."""
    files = RunFiles(cfg)
    if kind == BASE:
        return files.published_base
    if kind == HDMNET:
        return files.snapshot / PUBLISHED
    weight = files.imagenet_weight
    return None if weight is None or weight == "none" else Path(weight)


def how_to_get(kind: str, cfg: Config) -> str:
    """Return the command that brings weights of that kind to their place."""
    if kind == IMAGENET and find_backbone(cfg.backbone).hub:
        return f"python -m util.weights fetch {cfg.net_name}"
    fold = "" if kind == IMAGENET else f" --dataset {cfg.data_set} --split {cfg.split}"
    return f"python -m util.weights import FILE{fold}"


def require_imagenet(cfg: Config) -> str:
    """Return `RunFiles.imagenet_weight`, which stage 1 starts from.

    Raises:
        UserError: It is not set, or there is no such file.
    """
    weight = RunFiles(cfg).imagenet_weight
    if weight is None:
        raise UserError(
            "backbone_weight is not set; give ImageNet weights, or none for random ones"
        )
    if weight != "none" and not Path(weight).is_file():
        raise UserError(
            f"there are no ImageNet weights at {weight}; `{how_to_get(IMAGENET, cfg)}` brings them, "
            "backbone_weight names another file, or none for random ones"
        )
    return weight


class Place(NamedTuple):
    """Where one file of weights goes.

    Attributes:
        kind: IMAGENET, BASE or HDMNET.
        name: What it is, for people.
        path: The file.
        cfg: An experiment that uses it.
        origin: Where it comes from.
    """

    kind: str
    name: str
    path: Path
    cfg: Config
    origin: str


def known_places(opts: list[str] | tuple[str, ...] = ()) -> Iterator[Place]:
    """Yield every file that an experiment can use: published ones, and others that exist.

    Args:
        opts: Further settings of the experiments.
    """
    for net in nets():
        cfg = experiment(net, "pascal", 0, opts)
        path = place_of(IMAGENET, cfg)
        if path:
            yield Place(IMAGENET, f"ImageNet {net}", path, cfg, _origin(IMAGENET, cfg))
    for dataset in datasets():
        for net in nets():
            for split in range(experiment(net, dataset, 0, opts).fold_count):
                cfg = experiment(net, dataset, split, opts)
                yield from _places_of(cfg)


def _places_of(cfg: Config) -> Iterator[Place]:
    """Yield the files of one experiment, one-shot and five-shot."""
    files = RunFiles(cfg)
    name = f"{cfg.data_set} {files.fold} {cfg.net_name}"
    path = files.published_base
    if path.exists() or (cfg.data_set, cfg.net_name) in _PUBLISHED:
        yield Place(BASE, f"{BASE} {name}", path, cfg, _origin(BASE, cfg))
    if best := find_best(files.base_snapshot):
        yield Place(BASE, f"{BASE} {name}", best.path, cfg, "trained here")
    for shot in (1, 5):
        shots = cfg.model_copy(update={"shot": shot})
        snapshot, title = RunFiles(shots).snapshot, f"{HDMNET} {name} {shot}-shot"
        if (snapshot / PUBLISHED).exists():
            yield Place(HDMNET, title, snapshot / PUBLISHED, shots, "imported")
        if best := find_best(snapshot):
            yield Place(HDMNET, title, best.path, shots, "trained here")


def _origin(kind: str, cfg: Config) -> str:
    source = find_backbone(cfg.backbone).hub if kind == IMAGENET else "README of BAM"
    return f"{source}: {how_to_get(kind, cfg)}"


def check_place(place: Place) -> str:
    """Return "missing" or "ok".

    Raises:
        UserError: The file exists and cannot be used.
    """
    if not place.path.exists():
        return "missing"
    require_fit(place.kind, read_checkpoint(place.path), place.cfg, str(place.path))
    return "ok"
