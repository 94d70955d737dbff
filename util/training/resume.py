"""Checkpoints to resume from: writing them, finding the newest whole one, restoring from it."""

import logging
import os
import time
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from util.checkpoints.io import check_classes, load_weights, read_checkpoint, save_checkpoint
from util.checkpoints.run_files import LAST, PREVIOUS, find_best, own_checkpoints
from util.runtime.distributed import Processes
from util.runtime.errors import UserError

# A training goes on with the lists that it began with.
LIST_SETTINGS = ("mixed_images", "min_cells")
# Seconds: other machines may see only after a while what was written on a network file system.
_PAUSES = (1, 5, 10, 30, 60, 0)


@dataclass
class RunState:
    """The progress of a training.

    Attributes:
        epoch: number of epochs done.
        step: number of iterations done in the next one.
        best: the best mIoU so far.
        best_epoch: its epoch.
        half_validated: the epoch, from 1, whose middle was validated last.
        shuffle: added to the number of the epoch where its order is drawn.
    """

    epoch: int = 0
    step: int = 0
    best: float = -1.0
    best_epoch: int = 0
    half_validated: int = 0
    shuffle: int = 0

    def waited(self, epochs: int) -> bool:
        """Return whether `epochs` epochs brought no better mIoU since the best one; 0: never."""
        return 0 < epochs <= self.epoch - self.best_epoch and self.best_epoch > 0


class Saved(NamedTuple):
    """A checkpoint that training can resume from."""

    path: Path
    content: dict[str, Any]


def save_run(
    snapshot: Path,
    net: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    state: RunState,
    progress: dict[str, Any],
) -> None:
    """Write the checkpoint that `find_saved` finds, and keep the one before beside it.

    Args:
        snapshot: folder of the run's checkpoints.
        net, optimizer, scaler, state: of the training; the model is not wrapped.
        progress: further plain values kept in the file.

    Raises:
        UserError: the disk is full or cannot be written; the checkpoints of before are untouched.
    """
    content = {
        "state_dict": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "run": asdict(state),
        **progress,
    }
    complete, last, previous = (snapshot / name for name in ("next.pth", LAST, PREVIOUS))
    save_checkpoint(complete, content)
    if last.exists():
        previous.unlink(missing_ok=True)
        try:
            os.link(last, previous)
        except OSError:  # A disk without links: there is no last one for a moment.
            os.replace(last, previous)
    os.replace(complete, last)


def find_saved(
    setting: str, snapshot: Path, processes: Processes, logger: logging.Logger
) -> Saved | None:
    """Return the checkpoint to resume from, None to start from the beginning.

    Args:
        setting: "auto" (the newest whole checkpoint in `snapshot`, if any), "none", or a path. Where
            torchrun has restarted the processes it is "auto" whatever was given.
        snapshot: folder of the run's checkpoints.
        processes: this process among all.
        logger: gets a line for each checkpoint that is passed over.

    Raises:
        UserError: the checkpoint given is missing or no training can resume from it; all
            checkpoints in `snapshot` are damaged; or not all processes find the same one, even after
            some time.
    """
    for pause in _PAUSES:
        saved = _find(setting, snapshot, logger)
        if processes.agree(saved and saved.content["run"]):
            return saved
        time.sleep(pause)
    raise UserError(
        "resume: not all processes find the same checkpoint; exp_dir has to be on a disk that all "
        "nodes share"
    )


def _find(setting: str, snapshot: Path, logger: logging.Logger) -> Saved | None:
    """Return the checkpoint that this process finds."""
    own = own_checkpoints(snapshot)
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if setting == "auto" or (restarted and own):
        return _newest_whole(own, logger) if own else None
    return None if setting == "none" else Saved(Path(setting), _read(Path(setting)))


def _newest_whole(paths: list[Path], logger: logging.Logger) -> Saved:
    path, *before = paths
    try:
        return Saved(path, _read(path))
    except UserError as error:
        if not before:
            raise UserError(
                f"{error}; move it away to start again, or set resume to another checkpoint"
            ) from None
        logger.warning(f"{error}; going on from the one before, {before[0]}")
    return _newest_whole(before, logger)


def _read(path: Path) -> dict[str, Any]:
    content = read_checkpoint(path)
    if not {"optimizer", "run", "streams"} <= set(content):
        raise UserError(
            f"resume {path}: is no checkpoint of a training here; give its weights as pre_weight"
        )
    with zipfile.ZipFile(path) as archive:
        if torn := archive.testzip():
            raise UserError(f"checkpoint {path}: damaged ({torn} does not match its checksum)")
    return content


def restore(
    saved: Saved,
    net: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    base_classes: tuple[int, ...],
) -> RunState:
    """Load a checkpoint into the objects of a run and return its progress.

    Rates and weight decay stay as configured.

    Raises:
        UserError: the checkpoint is of another model or fold.
    """
    path, content = saved
    check_classes(content, base_classes, str(path))
    load_weights(net, content["state_dict"], str(path))
    configured = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    steps = content["optimizer"]
    # Before it is loaded, since it depends on `fused` on which device the number of steps lies.
    for group, options in zip(steps["param_groups"], configured, strict=False):
        group.update(options)
    try:
        optimizer.load_state_dict(steps)
    except ValueError as error:
        raise UserError(
            f"resume {path}: its optimiser has other parameters; was train_kshot_rw or "
            "base_encoder_ratio changed?"
        ) from error
    if content.get("scaler"):
        scaler.load_state_dict(content["scaler"])
    state = RunState(**content["run"])
    best = find_best(path.parent)
    if path.name in (LAST, PREVIOUS) and best and best.epoch > state.best_epoch:
        # Written after this checkpoint; a lower mIoU must not replace it.
        state.best = read_checkpoint(best.path).get("miou", best.miou)
        state.best_epoch = best.epoch
    return state


def check_lists(saved: Saved, details: Mapping[str, Any]) -> None:
    """Raise a UserError if a checkpoint names other LIST_SETTINGS than `details`, those of the run."""
    for key in LIST_SETTINGS:
        if key in details and (there := saved.content.get(key, details[key])) != details[key]:
            raise UserError(
                f"resume {saved.path}: was trained with {key} {there}, the settings have "
                f"{details[key]}; set {key} {there}, or exp_name for a run of its own"
            )


def plan_batches(
    batch_size: int, grad_accum: int, world_size: int, saved: Saved | None
) -> tuple[int, int]:
    """Return the items of a process at a time, and the number of such batches in an iteration.

    They are those configured or, with another number of processes than that of `saved`, those that
    keep its global batch where the processes can share it evenly, at most `batch_size` at a time.
    """
    if saved is None or saved.content.get("world_size", world_size) == world_size:
        return batch_size, grad_accum
    share, rest = divmod(saved.content["global_batch"], world_size)
    if rest or not share:
        return batch_size, grad_accum
    size = max(part for part in range(1, min(batch_size, share) + 1) if share % part == 0)
    return size, share // size
