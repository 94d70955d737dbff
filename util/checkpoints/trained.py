"""Trained models for other pictures than those of a dataset: loading, sharing, identifying them."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from huggingface_hub import hf_hub_download

from model import HDMNet, build_hdmnet
from model.backbone import build_backbone, find_backbone
from util.checkpoints.io import load_backbone, load_weights, read_checkpoint
from util.checkpoints.published_names import StateDict
from util.checkpoints.run_files import find_checkpoint
from util.config import load_config
from util.config.schema import backbone_of
from util.pretrained.kinds import HDMNET, require_kind
from util.pretrained.places import download
from util.runtime.errors import UserError

WEIGHTS, CONFIG = "model.safetensors", "config.json"
# Settings that shapes of weights do not tell; without them, those of the published code hold.
_SETTINGS = ("low_fea", "kshot_order", "prior")
# Weights of backbones under other licences are saved by reference.
_SHARED_LICENCES = (None, "apache-2.0", "mit", "bsd-3-clause")
_BACKBONE, _DIGEST = "base.backbone.", "public_backbone"
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
        **hub: arguments of `huggingface_hub.hf_hub_download`.

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
    found = require_kind(HDMNET, content, str(path))
    backbone = content.get("backbone") or backbone_of(found.net)
    options = {key: content[key] for key in _SETTINGS if key in content}
    shot = {"shot": found.shot, "kshot_trans_dim": found.kshot_trans_dim}
    net = build_hdmnet(backbone, found.base_classes, **shot, **options)
    state = content["state_dict"]
    if _DIGEST in content:
        public = _public_backbone(backbone)
        if _digest(public) != content[_DIGEST]:
            raise UserError(
                f"weights {weights}: they were trained with other weights of the backbone {backbone} "
                "than those that are public now"
            )
        state |= {_BACKBONE + key: value for key, value in public.items()}
    load_weights(net, state, str(path))
    size = _COCO_SIZE if found.base_classes == _COCO_CLASSES else _SIZE
    return Trained(net, content.get("size", size), backbone)


def save_trained(trained: Trained, folder: Path) -> None:
    """Write the weights and the settings of a model to a folder.

    Where the licence of the backbone's public weights restricts who may pass them on, the folder names
    them instead, and `load_trained` downloads them.

    Raises:
        UserError: such a backbone is not at hand to compare, or it has learned.
    """
    net = trained.net
    settings = {
        "backbone": trained.backbone,
        "size": trained.size,
        "shot": net.ensemble.shot,
        "low_fea": net.low_fea,
        "kshot_order": net.ensemble.kshot_order,
        "prior": net.prior,
    }
    state = {key: value.cpu().contiguous() for key, value in net.state_dict().items()}
    licence = find_backbone(trained.backbone).licence
    if licence not in _SHARED_LICENCES:
        settings[_DIGEST] = _digest(_public_backbone(trained.backbone))
        own = {k.removeprefix(_BACKBONE): v for k, v in state.items() if k.startswith(_BACKBONE)}
        if _digest(own) != settings[_DIGEST]:
            raise UserError(
                f"the backbone {trained.backbone} has learned, so its weights cannot be named by "
                f"reference, and their licence, {licence}, restricts who may pass them on"
            )
        state = {key: value for key, value in state.items() if not key.startswith(_BACKBONE)}
    safetensors.torch.save_file(state, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def fingerprint(net: HDMNet) -> str:
    """Return hexadecimal digits that identify the weights of a model."""
    return _digest(net.state_dict())


def _digest(state: StateDict) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _public_backbone(name: str) -> StateDict:
    """Return the public weights of a backbone, which are downloaded unless they were before."""
    backbone = build_backbone(name)
    load_backbone(backbone, download(name))
    return backbone.state_dict()


def _download(name: str, hub: dict[str, Any]) -> Path:
    """Return the folder of a repository of the hub, which is downloaded unless it was before."""
    if not _REPOSITORY.fullmatch(name) or Path(name).parent.is_dir():
        raise UserError(f"weights {name}: there is no such file or folder")
    try:
        hf_hub_download(name, CONFIG, **hub)
        return Path(hf_hub_download(name, WEIGHTS, **hub)).parent
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
