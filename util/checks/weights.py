"""The checks of `util.verify` on weights: those that training starts from, and the one to test."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from util.checkpoints.io import read_checkpoint
from util.checkpoints.run_files import RunFiles
from util.checks.rows import ERROR, OK, WARNING, Row
from util.config import Config
from util.pretrained.kinds import BASE, HDMNET, IMAGENET, recognise, require_fit
from util.pretrained.places import foreign_sha256, how_to_get, torchvision_source
from util.runtime.errors import UserError


def weight_rows(cfg: Config, settings: str) -> Iterator[Row]:
    """Check that the weights an experiment starts from are there and load into its network.

    ImageNet weights are looked at where stage 1 is still to be trained. Where weights to test are
    there and fit, what only training needs is at most a warning.

    Args:
        cfg: its settings.
        settings: the words of the command line that give `cfg`, for commands.
    """
    tested = _test_row(cfg)
    if cfg.pre_weight:
        yield _row("pre_weight", HDMNET, cfg, cfg.pre_weight, "set pre_weight to HDMNet weights")
    else:
        testable = tested is not None and tested.status == OK
        yield from (
            _only_for_training(row) if testable else row for row in _base_rows(cfg, settings)
        )
    if tested is not None:
        yield tested


def needs_stage_1(cfg: Config) -> bool:
    """Whether the base learner is still to be trained, as far as its files tell."""
    if cfg.pre_weight:
        return False
    found = RunFiles(cfg).find_base_learner()
    return found is None or not found.complete


def _base_rows(cfg: Config, settings: str) -> Iterator[Row]:
    train, files = f"python train_base.py {settings}", RunFiles(cfg)
    found = files.find_base_learner()
    if found is None:
        nowhere = f"none in {files.base_snapshot} or at {files.published_base}"
        mend = f"{train} (train.sh does that first), or {how_to_get(BASE, cfg)}"
        yield Row(WARNING, BASE, f"{nowhere}: stage 1 comes first", mend=mend)
    else:
        row = _row(BASE, BASE, cfg, str(found.path), f"{train}, or {how_to_get(BASE, cfg)}")
        if row.status == OK and not found.complete:
            row = Row(WARNING, BASE, f"{found.path}: its training is not complete", mend=train)
        yield row
    if found is None or not found.complete:
        yield _imagenet_row(cfg)


def _imagenet_row(cfg: Config) -> Row:
    path = RunFiles(cfg).imagenet_weight
    mend = "set backbone_weight; none starts from random ones"
    if path:
        mend = how_to_get(IMAGENET, cfg)
        if torchvision_source(cfg.net_name) is None:
            mend += " (from where: initmodel/README.md)"
    if path is None:
        return Row(ERROR, IMAGENET, "backbone_weight is not set", mend=mend)
    if path == "none":
        return Row(OK, IMAGENET, "none: stage 1 starts from random weights")
    row = _row(IMAGENET, IMAGENET, cfg, path, mend)
    if row.status == OK and (foreign := foreign_sha256(cfg.net_name, path)):
        mend = f"if it should be that: mv {shlex.quote(path)} elsewhere, then {mend}"
        return Row(WARNING, IMAGENET, f"{path}: fits, but is {foreign}", mend=mend)
    return row


def _only_for_training(row: Row) -> Row:
    if row.status != ERROR:
        return row
    return row._replace(status=WARNING, found=f"{row.found}; a test does without")


def _test_row(cfg: Config) -> Row | None:
    """The row of the checkpoint that a test would take; none where nothing was trained."""
    mend = "set weight to HDMNet weights"
    mend += ", or leave it out for the run's best" if cfg.weight else ""
    try:
        path = str(RunFiles(cfg).find_test_weight())
    except UserError as error:
        return Row(ERROR, "weight", str(error), mend=mend) if cfg.weight else None
    return _row("weight", HDMNET, cfg, path, mend)


def _as_trained(cfg: Config, content: dict[str, Any], source: str) -> Config:
    """The experiment at the shot of the weights: HDMNet is tested and trained on at other ones, too."""
    found = recognise(content, source)
    if found.shot == cfg.shot:
        return cfg
    trained = {"shot": found.shot, "kshot_trans_dim": found.kshot_trans_dim}
    return cfg.model_copy(update=trained)


def _row(subject: str, kind: str, cfg: Config, path: str | Path, mend: str) -> Row:
    """Whether a file is there, readable, and fits."""
    try:
        content = read_checkpoint(path)
        trained = _as_trained(cfg, content, str(path)) if kind == HDMNET else cfg
        require_fit(kind, content, trained, str(path))
    except UserError as error:
        return Row(ERROR, subject, str(error), mend=mend)
    return Row(OK, subject, f"{path}: {kind} for {cfg.backbone}")
