"""What stage 2 starts from: the base learner of stage 1, or earlier weights of HDMNet."""

import logging

from model import HDMNet, build_hdmnet
from model.backbone import Backbone, find_backbone
from util.checkpoints.io import is_shot_weight, load_backbone, load_weights, read_checkpoint
from util.checkpoints.run_files import BaseLearner, RunFiles, own_checkpoints
from util.config import Config
from util.data.loaders import config_fold, learner_classes
from util.pretrained.kinds import BASE, Contents, recognise, require_fit, require_start
from util.pretrained.places import require_imagenet
from util.runtime.errors import UserError


def initial_model(cfg: Config, logger: logging.Logger) -> HDMNet:
    """Return HDMNet as `pre_weight` holds it, or around the trained base learner.

    The base learner of a `pre_weight` of another dataset knows other classes: the run's own takes
    its place. So it does where `base_weight` is set.

    Raises:
        UserError: There is no base learner, or a checkpoint does not fit.
    """
    net = build_hdmnet(base_classes=learner_classes(cfg), **cfg.model_arguments)
    if not cfg.pre_weight:
        if cfg.base_learner == "none":
            start_backbone(net.base.backbone, cfg, logger)
        else:
            _load_base_learner(net, cfg, logger)
        return net
    path = RunFiles(cfg).find_pre_weight()
    content = read_checkpoint(path)
    found = require_start(content, cfg, str(path))
    state = content["state_dict"]
    if found.shot != cfg.shot:
        logger.info(f"{path}: of another shot, the weights of the supports start untrained")
        state = {key: value for key, value in state.items() if not is_shot_weight(key)}
    if cfg.base_learner == "none":
        dropped = ("base.pyramid.", "base.head.", "base.classifier.")
        state = {key: value for key, value in state.items() if not key.startswith(dropped)}
    elif _brings_no_base_learner(found, cfg):
        _load_base_learner(net, cfg, logger)
        state = {key: value for key, value in state.items() if not key.startswith("base.")}
    own = {
        key: value
        for key, value in net.state_dict().items()
        if is_shot_weight(key) or key.startswith("base.")
    }
    load_weights(net, own | state, str(path))
    return net


def require_start_files(cfg: Config) -> None:
    """Require the files that stage 2 starts from, where no checkpoint is continued from.

    Raises:
        UserError: They are missing; the message says how to get them.
    """
    if cfg.pre_weight:
        RunFiles(cfg).find_pre_weight()
    elif cfg.base_learner == "none":
        require_imagenet(cfg)
    else:
        _require_base_learner(cfg)


def start_backbone(backbone: Backbone, cfg: Config, logger: logging.Logger) -> None:
    """Load the public weights that a backbone starts from, and log them, unless it starts from random.

    Raises:
        UserError: They are missing or of another network.
    """
    path = require_imagenet(cfg)
    if path != "none":
        load_backbone(backbone, path)
        licence = find_backbone(cfg.backbone).licence
        own = f" (public weights: licence {licence})" if licence else ""
        logger.info(f"backbone: {cfg.backbone} from {path}{own}")


def needs_stage_1(cfg: Config) -> bool:
    """Tell whether a base learner is still to be trained before stage 2, as far as files tell."""
    if cfg.base_weight or _continues(cfg) or not needs_base_learner(cfg):
        return False
    found = RunFiles(cfg).find_base_learner()
    return found is None or not found.complete


def _continues(cfg: Config) -> bool:
    """Tell whether stage 2 continues from a checkpoint, which holds its base learner."""
    if cfg.resume != "auto":
        return cfg.resume != "none"
    return bool(own_checkpoints(RunFiles(cfg).snapshot))


def needs_base_learner(cfg: Config) -> bool:
    """Tell whether stage 2 starts from a base learner, beside `pre_weight` or without it."""
    if not cfg.pre_weight or cfg.base_learner == "none":
        return cfg.base_learner != "none"
    try:
        path = RunFiles(cfg).find_pre_weight()
        content = read_checkpoint(path, mapped=True)
        return _brings_no_base_learner(recognise(content, str(path)), cfg)
    except UserError:
        return False  # The code that loads these weights reports the error.


def _brings_no_base_learner(found: Contents, cfg: Config) -> bool:
    return bool(cfg.base_weight) or found.base_classes != len(config_fold(cfg).base)


def _require_base_learner(cfg: Config) -> BaseLearner:
    files = RunFiles(cfg)
    found = files.find_base_learner()
    if found is None:
        raise UserError(
            f"no base learner in {files.base_snapshot} or at {files.published_base}; "
            f"train it by `{files.command('train_base.sh')}` or set base_weight"
        )
    return found


def _load_base_learner(net: HDMNet, cfg: Config, logger: logging.Logger) -> None:
    found = _require_base_learner(cfg)
    logger.info(
        f"base learner: {found.path}" + ("" if found.complete else " (training not complete)")
    )
    content = read_checkpoint(found.path)
    require_fit(BASE, content, cfg, str(found.path))
    load_weights(net.base, content["state_dict"], str(found.path))
