"""The training loop that both stages share: epochs of steps, and where a run stands."""

import logging
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader, DistributedSampler

from util.checkpoint import check_classes, load_weights, read_checkpoint, save_checkpoint
from util.config import Config, dump_config
from util.distributed import Processes
from util.errors import UserError
from util.log import Means, RemainingTime, Scalars, get_logger
from util.schedule import set_rate
from util.seed import seed_everything, set_deterministic
from util.snapshots import LAST, find_best, save_best


@dataclass
class RunState:
    """Where a training run stands: epochs done, the best mIoU so far and its epoch."""

    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0

    def waited(self, epochs: int) -> bool:
        """Whether that many epochs (0: any number) brought no better mIoU since the best one."""
        return 0 < epochs <= self.epoch - self.best_epoch and self.best_epoch > 0


def start_run(
    cfg: Config, folder: str, processes: Processes, viz: bool
) -> tuple[logging.Logger, Scalars]:
    """Seed everything and open the log in the run's folder.

    Raises:
        UserError: the folder cannot be written.
    """
    if cfg.manual_seed is not None:
        seed_everything(cfg.manual_seed)
    set_deterministic(cfg.seed_deterministic)
    logger = get_logger(folder, processes.is_main)
    logger.info(processes.describe())
    return logger, Scalars(folder, viz and processes.is_main)


def keep_config(cfg: Config, folder: str, processes: Processes) -> None:
    """Write the configuration that a run trains with into its folder."""
    if processes.is_main:
        dump_config(cfg, os.path.join(folder, "config.yaml"))


def prepare_epoch(cfg: Config, epoch: int, loader: DataLoader) -> None:
    """Seed the epoch (counted from 0) and shuffle for it."""
    if cfg.fix_random_seed_val and cfg.manual_seed is not None:
        seed_everything(cfg.manual_seed + epoch)
    if isinstance(loader.sampler, DistributedSampler):
        loader.sampler.set_epoch(epoch)


def run_epoch(
    loader: Iterable[dict[str, Tensor]],
    losses_of: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    rate_of: Callable[[int], float],
    first: int,
    remaining: RemainingTime,
    logger: logging.Logger,
    scalars: Scalars,
    print_freq: int,
    halfway: Callable[[], None] | None = None,
) -> None:
    """Train for one pass over a loader.

    Args:
        loader: batches; has a length.
        losses_of: scalars of one batch by name; "loss" is minimised.
        optimizer: one with a `ratio` per group, see `util.schedule`.
        scaler: of `Precision`.
        rate_of: base learning rate of an iteration, counted from 1 over the whole run.
        first: iterations done before this epoch.
        remaining: estimates the time that is left.
        logger, scalars: take a line and the means every `print_freq` iterations.
        print_freq: iterations.
        halfway: called once in the middle of the epoch.

    Raises:
        UserError: the loss is not finite.
    """
    means = Means()
    steps = len(loader)
    for step, batch in enumerate(loader, start=1):
        iteration = first + step
        rate = rate_of(iteration)
        set_rate(optimizer, rate)
        losses = losses_of(batch)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(losses["loss"]).backward()
        scaler.step(optimizer)
        scaler.update()
        means.update({name: value.detach() for name, value in losses.items()})
        if step % print_freq == 0 or step == steps:
            values = {name: float(value) for name, value in means.pop().items()}
            if not all(map(math.isfinite, values.values())):
                raise UserError(
                    f"the loss is not finite at iteration {iteration} ({values}); lower the rate"
                )
            text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
            logger.info(
                f"iteration {iteration}/{remaining.total}  rate {rate:.2e}  {text}  "
                f"left {remaining(iteration)}"
            )
            scalars.add("train", values | {"rate": rate}, iteration)
        if halfway is not None and step == (steps + 1) // 2:
            halfway()


def distributed(net: nn.Module, processes: Processes, **options) -> nn.Module:
    """The module to call in training: wrapped for gradient averaging where there are several."""
    if processes.world_size == 1:
        return net
    devices = [processes.device] if processes.device.type == "cuda" else None
    return DistributedDataParallel(net, device_ids=devices, **options)


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch on another device."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


def resume(
    setting: str,
    snapshot: Path,
    net: nn.Module,
    optimizer: Optimizer,
    base_classes: tuple[int, ...],
    processes: Processes,
    logger: logging.Logger,
) -> RunState:
    """Continue from a checkpoint of an earlier run.

    Args:
        setting: "auto" (the last checkpoint in `snapshot`, if any), "none", or a path.
        snapshot: folder of the run's checkpoints.
        net, optimizer: get the state of the checkpoint; rates and weight decay stay as configured.
        base_classes: of the fold.
        processes: this process among all.
        logger: told what happened.

    Raises:
        UserError: the checkpoint is missing, foreign, of another model or fold, or not there for
            every process.
    """
    path = snapshot / LAST if setting == "auto" else Path(setting)
    state = RunState()
    if setting != "none" and (setting != "auto" or path.exists()):
        state = _continued(path, net, optimizer, base_classes)
        if setting == "auto" and (best := find_best(snapshot)) and best.miou > state.best:
            # Written after the last checkpoint was: it must not fall to a lesser one.
            state.best, state.best_epoch = best.miou, best.epoch
        logger.info(f"resumed from {path}: {state.epoch} epochs done, best mIoU {state.best:.4f}")
    epochs = processes.sum(np.array([state.epoch]))[0]
    if epochs != state.epoch * processes.world_size:
        raise UserError(
            f"resume {path}: not all processes find the same checkpoint; exp_dir has to be on a disk "
            "that all nodes share"
        )
    return state


def _continued(
    path: Path, net: nn.Module, optimizer: Optimizer, base_classes: tuple[int, ...]
) -> RunState:
    content = read_checkpoint(path)
    if not {"optimizer", "run"} <= set(content):
        raise UserError(f"resume {path}: holds weights only; give it as pre_weight instead")
    check_classes(content, base_classes, str(path))
    load_weights(net, content["state_dict"], str(path))
    configured = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    try:
        optimizer.load_state_dict(content["optimizer"])
    except ValueError as error:
        raise UserError(
            f"resume {path}: its optimiser has other parameters; was train_kshot_rw changed?"
        ) from error
    for group, options in zip(optimizer.param_groups, configured, strict=True):
        group.update(options)
    return RunState(**content["run"])


def keep_best(
    snapshot: Path,
    net: nn.Module,
    state: RunState,
    miou: float,
    details: dict[str, Any],
    write: bool = True,
) -> None:
    """Write the best checkpoint if `miou`, of the epoch after `state.epoch`, beats the best so far.

    Args:
        snapshot: folder of the run's checkpoints.
        net: the model, not wrapped.
        state: `best` and `best_epoch` are updated.
        miou: of the validation.
        details: plain values kept in the file beside the weights.
        write: whether this is the process that writes files.
    """
    if miou > state.best:
        state.best, state.best_epoch = miou, state.epoch + 1
        if write:
            save_best(snapshot, state.best_epoch, miou, {"state_dict": net.state_dict(), **details})


def save_last(
    snapshot: Path, net: nn.Module, optimizer: Optimizer, state: RunState, details: dict[str, Any]
) -> None:
    """Write the checkpoint that `resume` continues from; arguments as of `keep_best`."""
    content = {
        "state_dict": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "run": asdict(state),
        **details,
    }
    save_checkpoint(snapshot / LAST, content)
