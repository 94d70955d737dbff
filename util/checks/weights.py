"""The checks of `util.verify` on weights: those that training starts from, and the one to test."""

from collections.abc import Callable, Iterator
from pathlib import Path

from model.backbone import find_backbone
from util.checkpoints.io import read_checkpoint
from util.checkpoints.run_files import PUBLIC, RunFiles
from util.checks.rows import ERROR, OK, WARNING, Row
from util.config import Config
from util.pretrained.kinds import BASE, HDMNET, IMAGENET, require_fit, require_start
from util.pretrained.places import how_to_get, is_cached
from util.runtime.errors import UserError
from util.training.model import needs_base_learner, needs_stage_1


def weight_rows(cfg: Config, settings: str) -> Iterator[Row]:
    """Check that the weights an experiment starts from exist and load into its network.

    ImageNet weights are checked where stage 1 is still to be trained. Where weights to test exist
    and fit, problems of what only training needs are at most warnings.

    Args:
        cfg: The settings of the experiment.
        settings: The words of the command line that give `cfg`, for commands.
    """
    if cfg.pre_weight:
        remedy = "set pre_weight to HDMNet weights"
        yield _row("pre_weight", HDMNET, cfg, RunFiles(cfg).find_pre_weight, remedy)
    tested = _test_row(cfg)
    testable = tested is not None and tested.status == OK
    if cfg.base_learner == "none" and not cfg.pre_weight:
        row = _imagenet_row(cfg)
        yield _only_for_training(row) if testable else row
    if needs_base_learner(cfg):
        for row in _base_rows(cfg, settings):
            yield _only_for_training(row) if testable else row
    if tested is not None:
        yield tested


def _base_rows(cfg: Config, settings: str) -> Iterator[Row]:
    train, files = f"python train_base.py {settings}", RunFiles(cfg)
    remedy = f"{train}, or {how_to_get(BASE, cfg)}"
    try:
        found = files.find_base_learner()
    except UserError as error:
        yield Row(ERROR, BASE, str(error), remedy=remedy)
        return
    if found is None:
        nowhere = f"none in {files.base_snapshot} or at {files.published_base}"
        remedy = f"{train} (train.sh does that first), or {how_to_get(BASE, cfg)}"
        yield Row(WARNING, BASE, f"{nowhere}: stage 1 comes first", remedy=remedy)
    else:
        row = _row(BASE, BASE, cfg, lambda: found.path, remedy)
        if row.status == OK and not found.complete:
            row = Row(WARNING, BASE, f"{found.path}: its training is not complete", remedy=train)
        yield row
    if needs_stage_1(cfg):
        yield _imagenet_row(cfg)


def _imagenet_row(cfg: Config) -> Row:
    path = RunFiles(cfg).imagenet_weight
    if path == "none":
        return Row(OK, IMAGENET, "none: the backbone starts from random weights")
    if path == PUBLIC:
        entry = find_backbone(cfg.backbone)
        found = f"{entry.hub}, licence {entry.licence}"
        if is_cached(cfg.backbone):
            return Row(OK, IMAGENET, found)
        return Row(WARNING, IMAGENET, f"{found}: not downloaded", remedy=how_to_get(IMAGENET, cfg))
    remedy = how_to_get(IMAGENET, cfg) if path else "set backbone_weight"
    remedy += ", or backbone_weight none for random ones"
    if path is None:
        return Row(ERROR, IMAGENET, "backbone_weight is not set", remedy=remedy)
    return _row(IMAGENET, IMAGENET, cfg, lambda: Path(path), remedy)


def _only_for_training(row: Row) -> Row:
    if row.status != ERROR:
        return row
    return row._replace(status=WARNING, found=f"{row.found}; a test does without")


def _test_row(cfg: Config) -> Row | None:
    """Return the row of the checkpoint that a test would take; None where nothing was trained."""
    files, remedy = RunFiles(cfg), "set weight to HDMNet weights"
    if cfg.weight:
        remedy += ", or leave it out for the run's best"
    else:
        try:
            files.find_test_weight()
        except UserError:
            return None
    return _row("weight", HDMNET, cfg, files.find_test_weight, remedy)


def _row(subject: str, kind: str, cfg: Config, find: Callable[[], Path], remedy: str) -> Row:
    """Check that the file that `find` returns exists, is readable, and fits."""
    try:
        path = find()
        content = read_checkpoint(path)
        if kind == HDMNET:
            require_start(content, cfg, str(path))
        else:
            require_fit(kind, content, cfg, str(path))
    except UserError as error:
        return Row(ERROR, subject, str(error), remedy=remedy)
    return Row(OK, subject, f"{path}: {kind} for {cfg.backbone}")
