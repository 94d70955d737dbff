"""The training loop that both stages share: iterations, checkpoints, stopping and going on."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from model.norms import learning_norms
from util.checkpoints.run_files import remove_leftovers, save_best
from util.config import Config, dump_config
from util.data.data_loader import TrainLoader
from util.data.streams import get_streams, set_streams
from util.runtime.distributed import Processes
from util.runtime.errors import UserError
from util.runtime.log import Meter, RemainingTime, Scalars, get_logger
from util.runtime.precision import Precision
from util.runtime.seed import seed_everything, set_deterministic, untouched_random_streams
from util.training.iteration import Batch, Iteration, Losses
from util.training.memory import peak_memory
from util.training.norms import running_statistics, synchronise, synchronises
from util.training.progress import Progress, ProgressTable
from util.training.resume import RunState, Saved, restore, save_run
from util.training.schedule import set_rate
from util.training.signals import STOPPED, StopRequest


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
    return logger, Scalars(folder if processes.is_main else None, viz)


def distributed(net: nn.Module, processes: Processes) -> nn.Module:
    """The module to call in training: wrapped for gradient averaging where there are several.

    Its batch norms that learn, if it has any, are synchronised where torch can.
    """
    net.train()
    if processes.world_size == 1:
        return net
    if synchronises(processes):
        synchronise(net)
    devices = [processes.device] if processes.device.type == "cuda" else None
    # The strides of a dimension of one are anyone's, and those of 1×1 convolutions disagree.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    wrapped = DistributedDataParallel(net, device_ids=devices)
    # Without batch norms that learn no buffer changes: no need to send them round every step. Set
    # here, for the argument has another name in newer releases of torch.
    wrapped.broadcast_buffers = bool(learning_norms(net))
    return wrapped


class Trainer:
    """Trains one model, from where its last checkpoint stands to the last epoch.

    Args:
        cfg: the configuration.
        folder: of the run.
        epochs: to train.
        net: the model, not wrapped.
        optimizer: one with a `ratio` per group, see `util.training.schedule`.
        loader: training batches of this process; its dataset names the files of a batch.
        grad_accum: batches whose gradients are averaged in an iteration.
        processes: this process among all.
        logger, scalars: told of progress.
        details: plain values kept in every checkpoint beside the weights.
    """

    def __init__(
        self,
        cfg: Config,
        folder: str,
        epochs: int,
        net: nn.Module,
        optimizer: Optimizer,
        loader: TrainLoader,
        grad_accum: int,
        processes: Processes,
        logger: logging.Logger,
        scalars: Scalars,
        details: dict[str, Any],
    ):
        self.cfg, self.folder, self.epochs = cfg, folder, epochs
        self.net, self.optimizer, self.loader = net, optimizer, loader
        self.grad_accum, self.processes = grad_accum, processes
        self.logger, self.scalars = logger, scalars
        self.snapshot = Path(folder) / "snapshot"
        self.precision = Precision(cfg.amp, processes.device)
        self.state = RunState()
        self.steps = len(loader) // grad_accum
        if not self.steps:
            raise UserError(
                f"grad_accum {grad_accum}: {len(loader)} batches an epoch make no iteration"
            )
        items = loader.batch_sampler.batch_size
        self.global_batch = items * processes.world_size * grad_accum
        self.details = details | {
            "global_batch": self.global_batch,
            "world_size": processes.world_size,
        }
        self._resumed = False
        self._skipped = 0  # iterations in a row
        self._streams: dict[str, Any] | None = None

    @property
    def total(self) -> int:
        """Iterations of the whole training."""
        return self.epochs * self.steps

    def describe(self) -> None:
        """Log what is about to be trained, and how."""
        parameters = sum(p.numel() for p in self.net.parameters())
        groups = [
            (sum(p.numel() for p in group["params"]), group["lr"])
            for group in self.optimizer.param_groups
        ]
        rates = ", ".join(f"{rate:.1e} for {n / 1e6:.2f} M" for n, rate in groups)
        self.logger.info(
            f"{parameters / 1e6:.2f} M parameters, {sum(n for n, _ in groups) / 1e6:.2f} M trained, "
            f"rates {rates}"
        )
        items = self.loader.batch_sampler.batch_size
        self.logger.info(
            f"{len(self.loader.dataset)} images, global batch {self.global_batch} "
            f"({items} × {self.processes.world_size} processes × {self.grad_accum} accumulated), "
            f"{self.total} iterations"
        )
        self.net.train()
        several = self.processes.world_size > 1
        if several and learning_norms(self.net) and not synchronises(self.processes):
            self.logger.info(
                "batch norms learn, without CUDA from the batches of each process by themselves; "
                "their running statistics are those of process 0"
            )

    def restore(self, saved: Saved, base_classes: tuple[int, ...]) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: it is of another model or fold.
        """
        content = saved.content
        self.state = state = restore(
            saved, self.net, self.optimizer, self.precision.scaler, base_classes
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
            # An order that no epoch has: the one of this epoch would begin with what was seen.
            state.shuffle = self.epochs * (state.step + 1)
            self.logger.info("the rest of the epoch is drawn anew: its batches would be others")
        # Not what the first epoch drew.
        seed_everything(
            (self.cfg.manual_seed or 0) + self.epochs + state.epoch * self.steps + state.step
        )

    def run(
        self,
        wrapped: nn.Module,
        losses_of: Callable[[Batch], Losses],
        rate_of: Callable[[int], float],
        validate: Callable[[], dict[str, float]],
        validates: Callable[[int], bool],
        halves: bool = False,
    ) -> None:
        """Train to the last epoch, or until no better mIoU comes.

        Args:
            wrapped: the module that `losses_of` calls.
            losses_of: scalars of one batch on the device, by name; "loss" is minimised.
            rate_of: base learning rate of an iteration, counted from 1 over the whole run.
            validate: scalars of the model as it is now; "mIoU" selects the best checkpoint.
            validates: whether the n-th epoch, from 1, ends with a validation.
            halves: validate in the middle of the epochs too, but for the first.

        Raises:
            UserError: losses stay non-finite, memory or disk do not suffice.
            SystemExit: with code `STOPPED`, after SIGTERM or SIGINT, once a checkpoint is written.
        """
        state, cfg = self.state, self.cfg
        if self.processes.is_main:
            remove_leftovers(self.snapshot)
            dump_config(cfg, os.path.join(self.folder, "config.yaml"))
        self._remaining = RemainingTime(self.total, state.epoch * self.steps + state.step)
        self._table = ProgressTable(self.epochs, self.total)
        self._iteration = Iteration(
            self.net,
            wrapped,
            losses_of,
            self.optimizer,
            self.precision,
            self.loader.dataset.file_names,
            self.grad_accum,
            self.processes,
        )
        with StopRequest() as request:
            if not self._resumed:
                # Shows at once whether the disk has room, and is what a restart goes on from.
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

    def _train_epoch(self, wrapped, rate_of, validate, halves, request) -> None:
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
            set_rate(self.optimizer, rate)
            values, blame, stops = self._iteration(batches, meter, request)
            meter.count(self.global_batch)
            if values is not None:
                self._skipped = 0
                meter.add(values)
            else:
                self._skipped += 1
                meter.skip()
            if self._skipped >= cfg.max_nonfinite and blame is not None:
                raise UserError(
                    f"the loss or its gradient is not finite, {self._skipped} times in a row, last at "
                    f"iteration {iteration} with {blame}; lower the rate, or look at these files"
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
                self.logger.info("stopped by a signal: saved, the same command goes on from here")
                self.processes.leave()
                sys.exit(STOPPED)

    def _half_is_due(self) -> bool:
        """Whether this is the middle of an epoch, not the first, and has yet to be validated."""
        state = self.state
        middle = state.epoch > 0 and state.step == (self.steps + 1) // 2
        return middle and state.half_validated <= state.epoch

    def _validate_half(self, validate, request: StopRequest) -> None:
        self._validate(validate, self.state.epoch + 0.5, request)
        self.state.half_validated = self.state.epoch + 1

    def _start_epoch(self) -> Iterator[Batch]:
        """The batches of the epoch, or of what is left of it, with every random stream in place."""
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

    def _validate(self, validate, epoch: float, request: StopRequest) -> None:
        """Validate after `epoch` epochs, a half one included, and keep the best."""
        state = self.state
        # Each process has seen its own batches since the last forward pass shared them.
        self.processes.share(running_statistics(self.net))
        with request.at_once(), untouched_random_streams(), self.precision.autocast():
            values = validate()
        text = "  ".join(f"{key} {value:.4f}" for key, value in values.items())
        self.logger.info(f"epoch {epoch:g}/{self.epochs}  {text}")
        self.scalars.add("val", values, round(epoch * self.steps))
        if values["mIoU"] > state.best:
            state.best, state.best_epoch = values["mIoU"], state.epoch + 1
            if self.processes.is_main:
                content = {"state_dict": self.net.state_dict(), "miou": state.best, **self.details}
                save_best(self.snapshot, state.best_epoch, state.best, content)

    def _save(self) -> None:
        position = self.loader.position() if self.state.step else {"process": get_streams()}
        streams = self.processes.gather(position)
        if self.processes.is_main:
            progress = {"steps": self.steps, "streams": streams, **self.details}
            save_run(
                self.snapshot, self.net, self.optimizer, self.precision.scaler, self.state, progress
            )
        self.processes.barrier()
