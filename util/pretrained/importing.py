"""Putting a published file of weights where the commands look for it, downloaded or given."""

import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from model.backbone import find_backbone
from util.checkpoints.io import read_checkpoint, save_checkpoint
from util.checkpoints.run_files import RunFiles
from util.config import Config
from util.data.loaders import config_fold
from util.pretrained.kinds import HDMNET, IMAGENET, Contents, recognise, require_fit
from util.pretrained.places import datasets, download, experiment, place_of
from util.runtime.errors import UserError
from util.runtime.files import write_atomically
from util.runtime.machine import require_writable


def import_file(
    file: str, dataset: str | None, split: int | None, opts: list[str], unsafe: bool
) -> str:
    """Copy a file of weights to its place.

    Args:
        file: ImageNet weights, a base learner or HDMNet, with the published names or ours.
        dataset: Its dataset, where neither its entries nor its path tell.
        split: Its fold, where they do not tell.
        opts: Further settings of the experiment.
        unsafe: Read it even if that runs code of the file; its place then gets the tensors alone.

    Returns:
        A line that says what was done.

    Raises:
        UserError: It is not recognised, does not fit, or its place holds other weights.
    """
    content, plain = _read(file, unsafe)
    plain &= not file.endswith(".safetensors")
    contents = recognise(content, file)
    cfg = _experiment_of(contents, content, file, dataset, split, opts)
    require_fit(contents.kind, content, cfg, file)
    path = place_of(contents.kind, cfg)
    if path is None:
        raise UserError(
            f"{file} holds {contents.kind} of {contents.net}, whose settings start from random ones; "
            f"name it by backbone_weight {file}"
        )
    done = _put(file, content, plain, path, contents.kind)
    if contents.kind == IMAGENET:
        return f"{path}: {contents.kind}, {contents.net}: {done} (sha256 {_digest(file, cfg)})"
    of = f", fold {cfg.split} of {cfg.data_set}"
    if contents.kind == HDMNET:
        hidden = contents.kshot_trans_dim
        setting = [] if hidden is None else ["kshot_trans_dim", str(hidden)]
        of += f", {cfg.shot}-shot"
        command = shlex.join([*RunFiles(cfg).command("test.sh").split(), *setting, *opts])
        done += f"; test it by `{command} weight {path.name}`"
    return f"{path}: {contents.kind}, {contents.net}{of}: {done}"


def fetch(name: str) -> str:
    """Download the ImageNet weights of a backbone from a public hub, and put them in their place.

    Returns:
        A line that says what was done.

    Raises:
        UserError: There are none for it, or they could not be downloaded.
    """
    cfg = experiment(name, datasets()[0], 0)
    entry = find_backbone(cfg.backbone)
    if entry.hub is None:
        raise UserError(
            f"{name}: no public weights of this architecture exist; it starts from random"
        )
    source = f"from {entry.hub} on huggingface.co, licence {entry.licence}"
    if entry.file is None:
        return f"{download(cfg.backbone)}: weights of {name} {source}"
    path = Path("initmodel", entry.file)
    if path.exists():
        require_fit(IMAGENET, read_checkpoint(path), cfg, str(path))
        return f"{path}: exists already"
    require_writable(path.parent, "it gets the weights")
    return f"{import_file(download(cfg.backbone), None, None, [], unsafe=False)}; {source}"


def _digest(file: str, cfg: Config) -> str:
    """Return the first digits of a file's SHA-256, and whether its authors serve this file."""
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:8]
    return f"{digest}, as published" if digest == find_backbone(cfg.backbone).sha256 else digest


def _read(file: str, unsafe: bool) -> tuple[dict[str, Any], bool]:
    """Return what a file holds, and whether it holds nothing but tensors and plain values."""
    try:
        return read_checkpoint(file), True
    except UserError:
        if not unsafe:
            raise
        return read_checkpoint(file, unsafe=True), False


def _put(file: str, content: dict[str, Any], plain: bool, path: Path, kind: str) -> str:
    in_place = path.exists() and os.path.samefile(file, path)
    if in_place and plain:
        return "in its place already"
    if path.exists() and not in_place:
        if not _same_weights(content["state_dict"], read_checkpoint(path)["state_dict"]):
            raise UserError(f"{path} exists and holds other weights; move it away first")
        return "exists already"
    if plain:
        with open(file, "rb") as source:
            write_atomically(path, lambda target: shutil.copyfileobj(source, target))
        return "copied"
    tensors = {key: value.detach() for key, value in content["state_dict"].items()}
    # The published code reads ImageNet weights that are the whole content of a file.
    save_checkpoint(path, tensors if kind == IMAGENET else {"state_dict": tensors})
    return "its tensors written"


def _same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _experiment_of(
    contents: Contents,
    content: dict[str, Any],
    file: str,
    dataset: str | None,
    split: int | None,
    opts: list[str],
) -> Config:
    """Return the settings of the experiment that a file is for."""
    if contents.kind == IMAGENET:
        return experiment(contents.net, datasets()[0], 0, opts)
    settings = list(opts)
    if contents.kind == HDMNET:
        settings += ["shot", str(contents.shot)]
        if contents.base_classes == 0:
            settings += ["base_learner", "none"]
        if contents.kshot_trans_dim is not None:
            settings += ["kshot_trans_dim", str(contents.kshot_trans_dim)]
    # (dataset, fold) → settings of that experiment.
    settings_of = partial(experiment, contents.net, opts=settings)
    if dataset is None:
        dataset = _dataset_of(contents, file, settings_of)
    if split is None:
        split = _split_of(content, file, settings_of(dataset, 0))
    return settings_of(dataset, split)


def _dataset_of(contents: Contents, file: str, settings_of: Callable[[str, int], Config]) -> str:
    """Return the only dataset with so many base classes, else the one that the path names."""
    fitting = [
        name
        for name in datasets()
        if len(config_fold(settings_of(name, 0)).base) == contents.base_classes
    ]
    if len(fitting) == 1:
        return fitting[0]
    named = _last_in_path(f"({'|'.join(datasets())})", file)
    if named is None:
        raise UserError(
            f"{file}: {contents.kind} of {contents.base_classes} base classes; add --dataset, one of "
            f"{', '.join(fitting or datasets())}"
        )
    return named


def _split_of(content: dict[str, Any], file: str, cfg: Config) -> int:
    """Return the fold whose base classes the file names, else the one that its path names."""
    trained = tuple(content.get("base_classes", ()))
    for split in range(cfg.fold_count):
        if config_fold(cfg.model_copy(update={"split": split})).base == trained:
            return split
    named = _last_in_path(r"split_?(\d+)", file)
    if named is None:
        raise UserError(f"{file}: neither the file nor its path tells the fold; add --split N")
    return int(named)


def _last_in_path(pattern: str, file: str) -> str | None:
    words = re.findall(rf"(?<![a-z0-9]){pattern}(?![a-z0-9])", os.path.abspath(file).lower())
    return words[-1] if words else None
