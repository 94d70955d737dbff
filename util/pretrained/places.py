"""Places of weights: where the commands look for which, and where they come from."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from model.backbone import BACKBONES, find_backbone
from util.checkpoints.run_files import PUBLIC, PUBLISHED, RunFiles, find_best
from util.config import Config
from util.config.loading import BASES, DATASETS, load_config
from util.pretrained.kinds import BASE, HDMNET, IMAGENET
from util.runtime.errors import UserError

_HUB_FILE = "model.safetensors"
# What the authors of BAM publish base learners for.
_PUBLISHED = [(dataset, net) for dataset in ("pascal", "coco") for net in ("resnet50", "vgg")]


def datasets() -> list[str]:
    """Return the names of the datasets with a description."""
    return sorted(path.stem for path in Path(DATASETS).glob("*.yaml"))


def experiment(
    net: str, dataset: str, split: int, opts: list[str] | tuple[str, ...] = ()
) -> Config:
    """Return the settings of an experiment, as the shell scripts put them together.

    Raises:
        UserError: There is no backbone of this name, or other settings are wrong.
    """
    words = ["backbone", net, "data_set", dataset, "split", str(split), *opts]
    return load_config(os.path.join(BASES, "resnet50.yaml"), words)


def place_of(kind: str, cfg: Config) -> Path | None:
    """Return where the commands look for weights of that kind; None: they start from random ones."""
    files = RunFiles(cfg)
    if kind == BASE:
        return files.published_base
    if kind == HDMNET:
        return files.snapshot / PUBLISHED
    weight = files.imagenet_weight
    return None if weight in (None, "none", PUBLIC) else Path(str(weight))


def how_to_get(kind: str, cfg: Config) -> str:
    """Return the command that brings weights of that kind to their place."""
    if kind == IMAGENET and find_backbone(cfg.backbone).hub:
        return f"python -m util.weights fetch {cfg.net}"
    fold = "" if kind == IMAGENET else f" --dataset {cfg.data_set} --split {cfg.split}"
    return f"python -m util.weights import FILE{fold}"


def require_imagenet(cfg: Config) -> str:
    """Return the file that the backbone starts from, downloaded where timm has it; "none": random.

    Raises:
        UserError: It is not set, there is no such file, or it could not be downloaded.
    """
    weight = RunFiles(cfg).imagenet_weight
    if weight == PUBLIC:
        return download(cfg.backbone)
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


def download(backbone: str) -> str:
    """Return the path of a backbone's public weights in the cache, downloaded where needed.

    Raises:
        UserError: They are not in the cache and could not be downloaded.
    """
    # Imported here: it takes a while, and few commands need it.
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils.logging import set_verbosity_error

    entry = find_backbone(backbone)
    by_hand = (
        "`python -m util.weights import FILE`" if entry.file else "the setting backbone_weight"
    )
    set_verbosity_error()  # Without a network it warns of every attempt.
    try:
        return hf_hub_download(str(entry.hub), _HUB_FILE)
    except OSError as error:
        raise UserError(
            f"the weights of {backbone} are not in the cache {constants.HF_HUB_CACHE} and could not "
            f"be downloaded ({str(error).partition(chr(10))[0]}); try again with a network, or "
            f"download {_HUB_FILE} from {constants.ENDPOINT}/{entry.hub} and give the file to {by_hand}"
        ) from error


def is_cached(backbone: str) -> bool:
    """Tell whether a backbone's public weights were downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(str(find_backbone(backbone).hub), _HUB_FILE), str)


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
    for net in BACKBONES:
        cfg = experiment(net, "pascal", 0, opts)
        path = place_of(IMAGENET, cfg)
        if path:
            origin = f"{find_backbone(net).hub}: {how_to_get(IMAGENET, cfg)}"
            yield Place(IMAGENET, f"ImageNet {cfg.net}", path, cfg, origin)
    for dataset in datasets():
        for net in BACKBONES:
            cfg = experiment(net, dataset, 0, opts)
            for split in range(cfg.fold_count):
                yield from _places_of(cfg.model_copy(update={"split": split}))


def _places_of(cfg: Config) -> Iterator[Place]:
    """Yield the files of one experiment, one-shot and five-shot."""
    files = RunFiles(cfg)
    name = f"{cfg.data_set} {files.fold} {cfg.net_name}"
    path = files.published_base
    if path.exists() or (cfg.data_set, cfg.net_name) in _PUBLISHED:
        yield Place(BASE, f"{BASE} {name}", path, cfg, f"README of BAM: {how_to_get(BASE, cfg)}")
    if best := find_best(files.base_snapshot):
        yield Place(BASE, f"{BASE} {name}", best.path, cfg, "trained here")
    for shot in (1, 5):
        shots = cfg.model_copy(update={"shot": shot})
        snapshot, title = RunFiles(shots).snapshot, f"{HDMNET} {name} {shot}-shot"
        if (snapshot / PUBLISHED).exists():
            yield Place(HDMNET, title, snapshot / PUBLISHED, shots, "imported")
        if best := find_best(snapshot):
            yield Place(HDMNET, title, best.path, shots, "trained here")
