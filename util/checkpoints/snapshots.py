"""The checkpoints of a run's folder: their names, and which one stage 2 and the test start from."""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from util.checkpoints.io import read_checkpoint, save_checkpoint
from util.config import Config
from util.runtime.errors import UserError

LAST = "last.pth"
PREVIOUS = "previous.pth"
PUBLISHED = "published.pth"  # imported by util.weights
_BEST = re.compile(r"best_epoch_(\d+)_(\d+\.\d+)\.pth")


class Best(NamedTuple):
    """A best checkpoint, by the values in its name."""

    miou: float
    epoch: int
    path: Path


class BaseLearner(NamedTuple):
    """A checkpoint of stage 1, and whether its training is complete."""

    path: Path
    complete: bool


def snapshot_dir(run_dir: str) -> Path:
    """Where a run keeps its checkpoints."""
    return Path(run_dir) / "snapshot"


def find_best(snapshot: Path) -> Best | None:
    """The best checkpoint in a snapshot folder; None without one."""
    return max(_best_files(snapshot), default=None)


def save_best(snapshot: Path, epoch: int, miou: float, content: dict[str, Any]) -> Path:
    """Save a new best checkpoint, named by epoch and mIoU in [0, 1], then remove the older ones."""
    older = [best.path for best in _best_files(snapshot)]
    path = snapshot / f"best_epoch_{epoch}_{miou:.4f}.pth"
    save_checkpoint(path, content)
    for other in older:
        if other != path:
            other.unlink(missing_ok=True)
    return path


def remove_leftovers(snapshot: Path) -> None:
    """Remove what processes that were killed during a save left in a snapshot folder.

    Only for the process that writes there: a checkpoint being written by another is removed too.
    """
    for path in snapshot.glob("*.tmp"):
        path.unlink(missing_ok=True)


def _best_files(snapshot: Path) -> list[Best]:
    return [
        Best(float(match[2]), int(match[1]), path)
        for path in snapshot.glob("best_epoch_*.pth")
        if (match := _BEST.fullmatch(path.name))
    ]


def find_base_learner(cfg: Config) -> BaseLearner | None:
    """What stage 2 builds on: `base_weight`, a completed stage 1, a published one, or a partial one."""
    if cfg.base_weight:
        return BaseLearner(Path(cfg.base_weight), True)
    snapshot = snapshot_dir(cfg.base_dir)
    best = find_best(snapshot)
    complete = _epochs_done(snapshot) >= cfg.base_epochs
    if best is not None and complete:
        return BaseLearner(best.path, True)
    if Path(cfg.initmodel_base_path).is_file():
        return BaseLearner(Path(cfg.initmodel_base_path), True)
    return None if best is None else BaseLearner(best.path, False)


def _epochs_done(snapshot: Path) -> float:
    """Epochs of the last checkpoint; unlimited where only a best one was left."""
    if not (snapshot / LAST).exists():
        return math.inf
    try:
        return read_checkpoint(snapshot / LAST)["run"]["epoch"]
    except (UserError, KeyError):
        return 0  # damaged: the training that goes on finds out from which checkpoint


def find_test_weight(cfg: Config) -> Path:
    """The checkpoint to test: `weight`, else the run's best or an imported one, else the 1-shot run's.

    Raises:
        UserError: there is none.
    """
    snapshots = [snapshot_dir(run.run_dir) for run in (cfg, cfg.model_copy(update={"shot": 1}))]
    if cfg.weight:
        for path in (Path(cfg.weight), snapshots[0] / cfg.weight):
            if path.is_file():
                return path
        raise UserError(f"weight = {cfg.weight}: there is no such file")
    for snapshot in snapshots:
        best = find_best(snapshot)
        if best is not None:
            return best.path
        for path in (snapshot / LAST, snapshot / PUBLISHED):
            if path.is_file():
                return path
    raise UserError(
        f"no trained model in {snapshots[0]}; train it by `{script(cfg, 'train.sh')}` or set weight"
    )


def script(cfg: Config, name: str) -> str:
    """The command line of a shell script for this experiment, for messages."""
    shot = f" shot {cfg.shot}" if cfg.shot > 1 else ""
    return f"NET={cfg.net_name} sh {name} split{cfg.split} {cfg.data_set} 1{shot}"
