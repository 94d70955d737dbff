"""Trained models for other pictures than those of a dataset: loading, sharing, identifying them."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from huggingface_hub import snapshot_download

from model import HDMNet, build_hdmnet
from util.checkpoints.io import load_weights, read_checkpoint
from util.checkpoints.run_files import find_checkpoint
from util.config import load_config
from util.pretrained.kinds import HDMNET, recognise
from util.runtime.errors import UserError

WEIGHTS, CONFIG = "model.safetensors", "config.json"
# Settings that shapes of weights do not tell; without them, those of the published code hold.
_SETTINGS = ("low_fea", "kshot_order")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(?<!\.pth)(?<!\.pt)(?<!\.safetensors)")
_COCO_CLASSES, _COCO_SIZE, _SIZE = 60, 633, 473


class Trained(NamedTuple):
    """A model with trained weights.

    Attributes:
        net: built for the number of supports of the training.
        size: S of the images S×S in training.
        backbone: its name.
    """

    net: HDMNet
    size: int
    backbone: str


def load_trained(weights: str | os.PathLike[str], **hub: Any) -> Trained:
    """Load a model from a file, a folder or a repository of the Hugging Face Hub.

    Args:
        weights: a checkpoint of this or of the published code, the folder of a run, the folder of
            `save_trained`, or OWNER/NAME on the hub.
        **hub: arguments of `huggingface_hub.snapshot_download`.

    Raises:
        UserError: there is none, or it is not of HDMNet.
    """
    path = Path(weights)
    if not path.exists():
        path = _download(os.fspath(weights), hub)
    if (path / CONFIG).is_file():
        settings, path = json.loads((path / CONFIG).read_text("utf-8")), path / WEIGHTS
    else:
        path = find_checkpoint(os.fspath(path), "weights")
        settings = _settings_of_run(path)
    content = settings | read_checkpoint(path)
    found = recognise(content, str(path))
    if found.kind != HDMNET:
        raise UserError(f"checkpoint {path}: {found.kind}, where a trained HDMNet is needed")
    backbone = content.get("backbone") or {"vgg": "vgg16"}.get(found.net, found.net)
    options = {key: content[key] for key in _SETTINGS if key in content}
    shot = {"shot": found.shot, "kshot_trans_dim": found.kshot_trans_dim}
    net = build_hdmnet(backbone, found.base_classes, **shot, **options)
    load_weights(net, content["state_dict"], str(path))
    size = _COCO_SIZE if found.base_classes == _COCO_CLASSES else _SIZE
    return Trained(net, content.get("size", size), backbone)


def save_trained(trained: Trained, folder: Path) -> None:
    """Write the weights and the settings of a model to a folder."""
    net = trained.net
    settings = {
        "backbone": trained.backbone,
        "size": trained.size,
        "shot": net.ensemble.shot,
        "low_fea": net.low_fea,
        "kshot_order": net.ensemble.kshot_order,
    }
    state = {key: value.cpu().contiguous() for key, value in net.state_dict().items()}
    safetensors.torch.save_file(state, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def fingerprint(net: HDMNet) -> str:
    """Return hexadecimal digits that identify the weights of a model."""
    digest = hashlib.sha256()
    for key, value in net.state_dict().items():
        digest.update(key.encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _download(name: str, hub: dict[str, Any]) -> Path:
    """Return the folder of a repository of the hub, which is downloaded unless it was before."""
    if not _REPOSITORY.fullmatch(name):
        raise UserError(f"weights {name}: there is no such file or folder")
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS], **hub))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(
            f"weights {name}: there is no such file or folder, and the Hugging Face Hub gave none "
            f"({reason})"
        ) from error


def _settings_of_run(path: Path) -> dict[str, Any]:
    """Return the settings in the configuration of a checkpoint's run, which older checkpoints lack."""
    config = path.parent.parent / "config.yaml"
    if path.parent.name != "snapshot" or not config.is_file():
        return {}
    cfg = load_config(config)
    return {"size": cfg.val_size, **{key: getattr(cfg, key) for key in _SETTINGS}}
