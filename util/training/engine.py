"""The training loop of both stages: iterations, checkpoints, stopping and resuming."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model.norms import learning_norms
from util.checkpoints.io import check_backbone
from util.checkpoints.run_files import remove_leftovers, save_best
from util.config import Config, dump_config
from util.data.streams import get_streams, set_streams
from util.runtime.distributed import Processes
from util.runtime.errors import UserError
from util.runtime.lock import exclusive
from util.runtime.log import Meter, RemainingTime, Scalars, get_logger
from util.runtime.machine import environment_line
from util.runtime.precision import Precision
from util.runtime.seed import seed_everything, set_deterministic, untouched_random_streams
from util.training.iteration import Batch, Iteration, LossValues, Recipe
from util.training.memory import peak_memory
from util.training.norms import running_statistics, synchronise, synchronises
from util.training.progress import Progress, ProgressTable
from util.training.resume import RunState, Saved, restore, save_run
from util.training.schedule import freeze_untrained, set_rate
from util.training.signals import STOPPED, StopRequest


@dataclass(frozen=True)
class Run:
    """Where a training writes and who takes part in it."""

    cfg: Config
    folder: Path
    processes: Processes
    logger: logging.Logger
    scalars: Scalars

    @property
    def snapshot(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "snapshot"


@contextmanager
def open_run(cfg: Config, folder: Path, processes: Processes, viz: bool) -> Iterator[Run]:
    """Seed everything, and hold the folder of a run and its log while entered.

    Args:
        cfg: the configuration.
        folder: of the run.
        processes: this process among all.
        viz: whether to write TensorBoard's files too.

    Raises:
        UserError: the folder cannot be written, or another training uses it.
    """
    with exclusive(folder / ".lock", processes.is_main):
        if cfg.manual_seed is not None:
            seed_everything(cfg.manual_seed)
        set_deterministic(cfg.seed_deterministic)
        logger = get_logger(folder, processes.is_main)
        logger.info(processes.describe())
        logger.info(environment_line())
        with closing(Scalars(folder if processes.is_main else None, viz)) as scalars:
            yield Run(cfg, folder, processes, logger, scalars)


def distributed(net: nn.Module, processes: Processes) -> nn.Module:
    """Return the module to call in training, which averages gradients over several processes.

    Its batch norms that learn, if it has any, are synchronised where torch can.
    """
    net.train()
    if processes.world_size == 1:
        return net
    if synchronises(processes):
        synchronise(net)
    devices = [processes.device] if processes.device.type == "cuda" else None
    # A dimension of size one may have any stride, and those of 1×1 convolutions differ.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    wrapped = DistributedDataParallel(net, device_ids=devices)
    # Without batch norms that learn no buffer changes: no need to broadcast them in every step. Set
    # here, for the argument has another name in newer releases of torch.
    wrapped.broadcast_buffers = bool(learning_norms(net))
    return wrapped


class Trainer:
    """Trains one model, from where its last checkpoint stands to the last epoch."""

    def __init__(self, run: Run, recipe: Recipe):
        self.recipe = recipe
        freeze_untrained(recipe.net, recipe.optimizer)
        self.cfg, self.processes, self.snapshot = run.cfg, run.processes, run.snapshot
        self.folder, self.logger, self.scalars = run.folder, run.logger, run.scalars
        self.loader, self.epochs = recipe.loader, recipe.epochs
        self.precision = Precision(run.cfg.amp, run.processes.device)
        self.state = RunState()
        self.steps = len(self.loader) // recipe.grad_accum
        self.global_batch = recipe.batch_size * self.processes.world_size * recipe.grad_accum
        self.details = recipe.details | {
            "global_batch": self.global_batch,
            "world_size": self.processes.world_size,
        }
        self._resumed = False
        self._skipped = 0  # iterations in a row
        self._streams: dict[str, Any] | None = None

    @property
    def total(self) -> int:
        """Number of iterations of the whole training."""
        return self.epochs * self.steps

    def describe(self) -> None:
        """Log what will be trained, and how."""
        parameters = sum(p.numel() for p in self.recipe.net.parameters())
        groups = [
            (sum(p.numel() for p in group["params"]), group["lr"])
            for group in self.recipe.optimizer.param_groups
        ]
        rates = ", ".join(f"{rate:.1e} for {n / 1e6:.2f} M" for n, rate in groups)
        self.logger.info(
            f"{parameters / 1e6:.2f} M parameters, {sum(n for n, _ in groups) / 1e6:.2f} M trained, "
            f"rates {rates}"
        )
        self.logger.info(
            f"{len(self.recipe.dataset)} images, global batch {self.global_batch} "
            f"({self.recipe.batch_size} × {self.processes.world_size} processes × "
            f"{self.recipe.grad_accum} accumulated), "
            f"{self.total} iterations"
        )
        self.recipe.net.train()
        several = self.processes.world_size > 1
        if several and learning_norms(self.recipe.net) and not synchronises(self.processes):
            self.logger.info(
                "batch norms learn; without CUDA each process normalises by its own batch, and "
                "their running statistics are those of process 0"
            )

    def restore(self, saved: Saved) -> None:
        """Continue from a checkpoint.

        Raises:
            UserError: it is of another model or fold.
        """
        content = saved.content
        if "backbone" in self.details:
            check_backbone(content, self.details["backbone"], str(saved.path))
        net, optimizer = self.recipe.net, self.recipe.optimizer
        self.state = state = restore(
            saved, net, optimizer, self.precision.scaler, self.details["base_classes"]
        )
        self._resumed = True
        self.logger.info(
            f"resumed from {saved.path}: {state.epoch} epochs and {state.step} iterations done, "
            f"best mIoU {state.best:.4f}"
        )
        world, batch, steps = (content[key] for key in ("world_size", "global_batch", "steps"))
        if world != self.processes.world_size:
            now = "as before" if batch == self.global_batch else f"it was {batch}"
            self.logger.info(
                f"{self.processes.world_size} processes instead of {world}; "
                f"global batch {self.global_batch}, {now}"
            )
        mine = content["streams"][self.processes.rank :][:1]
        workers = len(mine[0].get("workers", ())) if mine else 0
        here = (self.processes.world_size, self.global_batch, self.steps)
        if (world, batch, steps) != here or (state.step and workers != self.loader.num_workers):
            mine = []
        if mine:
            self._streams = mine[0]
            return
        if state.step:
            state.step = min(round(state.step * self.steps / steps), self.steps - 1)
            # No epoch has this order; the order of this one would begin with what was seen.
            state.shuffle = self.epochs * (state.step + 1)
            self.logger.info("the rest of the epoch is drawn again, since its batches are others")
        # A seed of its own: the first epoch's would draw the same again.
        seed_everything(
            (self.cfg.manual_seed or 0) + self.epochs + state.epoch * self.steps + state.step
        )

    def run(
        self,
        wrapped: nn.Module,
        losses_of: Callable[[Batch], LossValues],
        rate_of: Callable[[int], float],
        validate: Callable[[], dict[str, float]],
        validates: Callable[[int], bool],
        halves: bool = False,
    ) -> None:
        """Train to the last epoch, or until no better mIoU comes.

        Args:
            wrapped: the module that `losses_of` calls.
            losses_of: returns the losses of one batch on the device; "loss" is minimised.
            rate_of: returns the base learning rate of an iteration, from 1 over the whole run.
            validate: returns scalars of the model as it is; "mIoU" selects the best checkpoint.
            validates: returns whether the n-th epoch, from 1, ends with a validation.
            halves: validate in the middle of the epochs too, except the first.

        Raises:
            UserError: losses stay non-finite, memory or disk do not suffice.
            SystemExit: with code `STOPPED`, after SIGTERM or SIGINT, once a checkpoint is written.
        """
        state, cfg = self.state, self.cfg
        if self.processes.is_main:
            remove_leftovers(self.snapshot)
            dump_config(cfg, str(self.folder / "config.yaml"))
        self._remaining = RemainingTime(self.total, state.epoch * self.steps + state.step)
        self._table = ProgressTable(self.epochs, self.total)
        self._iteration = Iteration(self.recipe, self.processes, self.precision, wrapped, losses_of)
        with StopRequest() as request:
            if not self._resumed:
                # Shows at once whether the disk has room, and is where a restart begins.
                self._save()
            while state.epoch < self.epochs:
                self._train_epoch(wrapped, rate_of, validate, halves, request)
                epoch = state.epoch + 1
                validated = validates(epoch)
                if validated:
                    self._save()
                    self._validate(validate, epoch, request)
                state.epoch, state.step, state.shuffle = epoch, 0, 0
                stops = validated and state.waited(cfg.stop_interval)
                if stops or epoch % cfg.save_freq == 0 or epoch in (self.epochs, state.best_epoch):
                    self._save()
                if stops:
                    self.logger.info(f"no better mIoU for {cfg.stop_interval} epochs: stopping")
                    break

    def _train_epoch(
        self,
        wrapped: nn.Module,
        rate_of: Callable[[int], float],
        validate: Callable[[], dict[str, float]],
        halves: bool,
        request: StopRequest,
    ) -> None:
        state, cfg = self.state, self.cfg
        batches = self._start_epoch()
        if halves and self._half_is_due():
            # It was interrupted, or the run was before it began.
            self._validate_half(validate, request)
        wrapped.train()
        meter = Meter()
        while state.step < self.steps:
            iteration = state.epoch * self.steps + state.step + 1
            rate = rate_of(iteration)
            set_rate(self.recipe.optimizer, rate)
            values, files, stops = self._iteration(batches, meter, request)
            meter.count(self.global_batch)
            if values is not None:
                self._skipped = 0
                meter.add(values)
            else:
                self._skipped += 1
                meter.skip()
            if self._skipped >= cfg.max_nonfinite and files is not None:
                raise UserError(
                    f"the loss or its gradient is not finite, {self._skipped} times in a row, last at "
                    f"iteration {iteration} with {files}; lower the rate, or look at these files"
                )
            state.step += 1
            if iteration % cfg.print_freq == 0 or state.step == self.steps:
                self._report(meter, rate, iteration)
            if halves and not stops and self._half_is_due():
                self._save()
                self._validate_half(validate, request)
                wrapped.train()
            if stops or (cfg.save_iters and iteration % cfg.save_iters == 0):
                self._save()
            if stops:
                self.logger.info(
                    "stopped by a signal: saved, run the same command again to continue"
                )
                self.processes.leave()
                sys.exit(STOPPED)

    def _half_is_due(self) -> bool:
        """Return whether this is the middle of an epoch after the first, not validated yet."""
        state = self.state
        middle = state.epoch > 0 and state.step == (self.steps + 1) // 2
        return middle and state.half_validated <= state.epoch

    def _validate_half(
        self, validate: Callable[[], dict[str, float]], request: StopRequest
    ) -> None:
        self._validate(validate, self.state.epoch + 0.5, request)
        self.state.half_validated = self.state.epoch + 1

    def _start_epoch(self) -> Iterator[Batch]:
        """Return the batches of the rest of the epoch, with every random stream in place."""
        state, cfg, streams = self.state, self.cfg, self._streams
        self._streams = None
        self.loader.set_epoch(state.epoch + state.shuffle)
        if not state.step:
            if streams is not None:
                set_streams(streams["process"])
            if cfg.fix_random_seed_val and cfg.manual_seed is not None:
                seed_everything(cfg.manual_seed + state.epoch)
        elif streams is not None:
            if state.step == self.steps:
                set_streams(streams["process"])
                return iter(())
            self.loader.resume_at(streams)
        return iter(self.loader)

    def _report(self, meter: Meter, rate: float, iteration: int) -> None:
        values = meter.pop() | {"rate": rate, "peak_gb": peak_memory(self.processes.device) / 2**30}
        progress = Progress(
            self.state.epoch + 1, iteration, self.state.best, self._remaining(iteration)
        )
        for line in self._table.lines(progress, values):
            self.logger.info(line)
        self.scalars.add("train", values, iteration)

    def _validate(
        self, validate: Callable[[], dict[str, float]], epoch: float, request: StopRequest
    ) -> None:
        """Validate after `epoch` epochs, a half one included, and keep the best."""
        state = self.state
        # Each process has seen its own batches since the last forward pass shared them.
        self.processes.share(running_statistics(self.recipe.net))
        with request.at_once(), untouched_random_streams(), self.precision.autocast():
            values = validate()
        text = "  ".join(f"{key} {value:.4f}" for key, value in values.items())
        self.logger.info(f"epoch {epoch:g}/{self.epochs}  {text}")
        self.scalars.add("val", values, round(epoch * self.steps))
        if values["mIoU"] > state.best:
            state.best, state.best_epoch = values["mIoU"], state.epoch + 1
            if self.processes.is_main:
                content = {
                    "state_dict": self.recipe.net.state_dict(),
                    "miou": state.best,
                    **self.details,
                }
                save_best(self.snapshot, state.best_epoch, state.best, content)

    def _save(self) -> None:
        position = self.loader.position() if self.state.step else {"process": get_streams()}
        streams = self.processes.gather(position)
        if self.processes.is_main:
            progress = {"steps": self.steps, "streams": streams, **self.details}
            net, optimizer = self.recipe.net, self.recipe.optimizer
            save_run(self.snapshot, net, optimizer, self.precision.scaler, self.state, progress)
        self.processes.barrier()
