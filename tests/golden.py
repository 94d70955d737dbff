"""The golden model files: numbers computed with the published model (see tests/data/README.md)."""

import json

import numpy as np
import torch

from model import build_hdmnet
from tests.deterministic import episode, tensor_for
from tests.paths import DATA
from util.checkpoints.io import from_published

FILES = sorted(path.stem for path in DATA.glob("golden_*shot.npz"))
SHAPES = json.loads((DATA / "state_dict_shapes.json").read_text())


def published_state(variant, seed=0, meta_bias=None):
    """State dict of one variant with the published names and the deterministic weights."""
    state = {
        key: torch.from_numpy(np.asarray(tensor_for(key, shape, seed)))
        for key, shape in SHAPES[variant].items()
    }
    if meta_bias is not None:
        state["transformer.mix_transformer.cls.4.bias"] = torch.tensor(meta_bias)
    return state


def variant_of(config):
    """Name of the golden variant in state_dict_shapes.json."""
    backbone = "vgg16" if config["vgg"] else f"resnet{config['layers']}"
    suffix = "_dim0" if config["kshot_trans_dim"] == 0 else ""
    return f"hdmnet_{config['dataset']}_{backbone}_{config['shot']}shot{suffix}"


def golden_model(config):
    """The model with the weights that the golden numbers were computed with."""
    net = build_hdmnet(
        backbone="vgg16" if config["vgg"] else f"resnet{config['layers']}",
        base_classes=config["base_classes"],
        shot=config["shot"],
        kshot_trans_dim=config["kshot_trans_dim"],
        low_fea=config["low_fea"],
    )
    state = published_state(variant_of(config), config["seed"], config["meta_bias"])
    net.load_state_dict(from_published(state))
    return net.eval()


def golden_episode(config):
    """The batch of episodes of a golden file, as tensors."""
    batch = episode(
        config["size"],
        config["shot"],
        config["batch"],
        config["base_classes"],
        config["seed"],
        config["empty"],
    )
    return {key: torch.from_numpy(value) for key, value in batch.items()}
