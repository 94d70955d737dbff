"""What stage 2 starts from: the base learner of stage 1, or earlier weights of HDMNet."""

import logging

from model import HDMNet, build_hdmnet
from util.checkpoints.io import is_shot_weight, load_weights, read_checkpoint
from util.checkpoints.run_files import RunFiles
from util.config import Config
from util.data.loaders import config_fold
from util.pretrained.kinds import BASE, Contents, recognise, require_fit, require_start
from util.runtime.errors import UserError


def initial_model(cfg: Config, logger: logging.Logger) -> HDMNet:
    """Return HDMNet as `pre_weight` holds it, or around the trained base learner.

    The base learner of a `pre_weight` of another dataset knows other classes: the run's own takes
    its place. So it does where `base_weight` is set.

    Raises:
        UserError: There is no base learner, or a checkpoint does not fit.
    """
    net = build_hdmnet(base_classes=len(config_fold(cfg).base), **cfg.model_arguments)
    if not cfg.pre_weight:
        _load_base_learner(net, cfg, logger)
        return net
    path = RunFiles(cfg).find_pre_weight()
    content = read_checkpoint(path)
    found = require_start(content, cfg, str(path))
    state = content["state_dict"]
    if found.shot != cfg.shot:
        logger.info(f"{path}: of another shot, the weights of the supports start untrained")
        state = {key: value for key, value in state.items() if not is_shot_weight(key)}
    if _brings_no_base_learner(found, cfg):
        _load_base_learner(net, cfg, logger)
        state = {key: value for key, value in state.items() if not key.startswith("base.")}
    own = {
        key: value
        for key, value in net.state_dict().items()
        if is_shot_weight(key) or key.startswith("base.")
    }
    load_weights(net, own | state, str(path))
    return net


def needs_stage_1(cfg: Config) -> bool:
    """Tell whether a base learner is still to be trained before stage 2, as far as files tell."""
    if cfg.base_weight or not needs_base_learner(cfg):
        return False
    found = RunFiles(cfg).find_base_learner()
    return found is None or not found.complete


def needs_base_learner(cfg: Config) -> bool:
    """Tell whether stage 2 starts from a base learner, beside `pre_weight` or without it."""
    if not cfg.pre_weight:
        return True
    try:
        path = RunFiles(cfg).find_pre_weight()
        content = read_checkpoint(path, mapped=True)
        return _brings_no_base_learner(recognise(content, str(path)), cfg)
    except UserError:
        return False  # The code that loads these weights reports the error.


def _brings_no_base_learner(found: Contents, cfg: Config) -> bool:
    return bool(cfg.base_weight) or found.base_classes != len(config_fold(cfg).base)


def _load_base_learner(net: HDMNet, cfg: Config, logger: logging.Logger) -> None:
    files = RunFiles(cfg)
    found = files.find_base_learner()
    if found is None:
        raise UserError(
            f"no base learner in {files.base_snapshot} or at {files.published_base}; "
            f"train it by `{files.command('train_base.sh')}` or set base_weight"
        )
    logger.info(
        f"base learner: {found.path}" + ("" if found.complete else " (training not complete)")
    )
    content = read_checkpoint(found.path)
    require_fit(BASE, content, cfg, str(found.path))
    load_weights(net.base, content["state_dict"], str(found.path))
