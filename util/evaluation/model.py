"""The model that a test runs, also where its weights were trained with another number of supports."""

import logging
from pathlib import Path

from torch import nn

from model import build_hdmnet
from util.checkpoints.io import check_classes, is_shot_weight, load_weights, read_checkpoint
from util.config import Config
from util.pretrained.kinds import recognise


def load_tested(
    cfg: Config, base_classes: tuple[int, ...], path: Path, logger: logging.Logger
) -> tuple[nn.Module, int]:
    """The model of a checkpoint of ours or of the published code, and the shot of its training.

    At another shot than that, what matching gathers, a sum over the supports, is brought to the scale
    of training (unless `scale_to_trained_shot` is off), and the supports weigh alike: the weights
    that `kshot_rw` learned are as many as the supports of training.

    Raises:
        UserError: the checkpoint is not readable or does not fit.
    """
    content = read_checkpoint(path)
    check_classes(content, base_classes, str(path))
    state, shot = content["state_dict"], recognise(content, str(path)).shot
    arguments = cfg.model_arguments
    if shot != cfg.shot:
        logger.info(shot_note(shot, cfg.shot, cfg.scale_to_trained_shot))
        state = {key: value for key, value in state.items() if not is_shot_weight(key)}
        arguments["kshot_trans_dim"] = None
        if cfg.scale_to_trained_shot:
            arguments["trained_shot"] = shot
    net = build_hdmnet(base_classes=len(base_classes), **arguments)
    load_weights(net, state, str(path))
    return net, shot


def shot_note(trained_shot: int, shot: int, scaled: bool) -> str:
    """What is done where weights are tested at another number of supports than they were trained."""
    matching = f"multiplied by {trained_shot}/{shot}" if scaled else "left as it is"
    return (
        f"The weights were trained with {trained_shot}-shot: what matching gathers is {matching}, "
        "and all supports weigh alike."
    )
