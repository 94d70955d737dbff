"""The training loop of both stages: iterations, checkpoints, stopping and resuming."""

import logging
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.norms import learning_norms
from util.checkpoints.io import check_backbone
from util.checkpoints.run_files import remove_leftovers, save_best
from util.config import Config, dump_config, load_config
from util.config.fields import SECTION_OF
from util.data.streams import get_streams, set_streams
from util.runtime.distributed import Processes
from util.runtime.errors import UserError
from util.runtime.lock import exclusive
from util.runtime.log import get_logger
from util.runtime.machine import environment_line, peak_memory
from util.runtime.precision import Precision, compute_as_set
from util.runtime.seed import seed_everything, untouched_random_streams
from util.training.iteration import Batch, Iteration, Recipe
from util.training.parallel import running_statistics, synchronises
from util.training.progress import Progress, Scalars, draw_curves
from util.training.resume import RunState, Saved, check_lists, find_saved, restore, save_run
from util.training.schedule import freeze_untrained, set_rate
from util.training.signals import STOPPED, StopRequest


@dataclass(frozen=True)
class Run:
    """Where a training writes, who takes part in it, and what it continues from."""

    cfg: Config
    folder: Path
    processes: Processes
    logger: logging.Logger
    scalars: Scalars
    saved: Saved | None

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
        UserError: the folder cannot be written, another training uses it, its checkpoints cannot be
            continued from, or this machine lacks what a setting needs.
    """
    with exclusive(folder / ".lock", processes.is_main):
        if cfg.cuda_graphs and processes.device.type != "cuda":
            raise UserError("cuda_graphs True needs a GPU; set cuda_graphs False")
        if cfg.cuda_graphs and processes.world_size > 1 and not cfg.fix_bn:
            raise UserError(
                "with several processes, cuda_graphs True needs fix_bn True: batch norms that learn "
                "wait for each other within a pass; set cuda_graphs False"
            )
        cfg = compute_as_set(cfg, processes.device)
        if cfg.manual_seed is not None:
            seed_everything(_seed(cfg, processes))
        logger = get_logger(folder, processes.is_main)
        logger.info(processes.describe())
        logger.info(environment_line())
        saved = find_saved(cfg.resume, folder / "snapshot", processes, logger)
        with closing(Scalars(folder if processes.is_main else None, viz)) as scalars:
            yield Run(cfg, folder, processes, logger, scalars, saved)


def _seed(cfg: Config, processes: Processes) -> int:
    """Return the seed of a process; those of epochs follow it."""
    return (cfg.manual_seed or 0) + 10**6 * processes.rank * cfg.seed_per_rank


def _changed_settings(saved: Saved, cfg: Config) -> list[str]:
    """Return "KEY NOW (before: THEN)" for the settings that the run of a checkpoint had otherwise."""
    try:
        before = load_config(saved.path.parent.parent / "config.yaml").model_dump()
    except UserError:  # There is none, or another version wrote it.
        return []
    return [
        f"{key} {value} (before: {before[key]})"
        for key, value in cfg.model_dump().items()
        if value != before[key] and key != "resume" and SECTION_OF[key] != "Test_Finetune"
    ]


class Trainer:
    """Trains one model, from where its last checkpoint stands to the last epoch.

    Attributes:
        state: progress of the training.
        global_batch: items of an iteration, over all processes.
    """

    def __init__(self, run: Run, recipe: Recipe):
        self.run, self.recipe, self.steps = run, recipe, recipe.steps
        self.cfg, self.processes, self.logger = run.cfg, run.processes, run.logger
        freeze_untrained(recipe.net, recipe.optimizer)
        self.precision = Precision(run.cfg.amp, run.processes.device)
        sampler: Any = recipe.loader.batch_sampler
        self._batch_size = sampler.batch_size
        self.global_batch = self._batch_size * self.processes.world_size * recipe.grad_accum
        self._details = recipe.details | {
            "global_batch": self.global_batch,
            "world_size": self.processes.world_size,
        }
        self.state = RunState()
        self._skipped = 0  # iterations in a row
        self._streams: dict[str, Any] | None = None
        if run.saved:
            self._restore(run.saved)

    def _restore(self, saved: Saved) -> None:
        """Continue from a checkpoint; raises UserError if it is of another model or fold."""
        content, net, optimizer = saved.content, self.recipe.net, self.recipe.optimizer
        classes = self._details["base_classes"]
        if "backbone" in self._details:
            check_backbone(content, self._details["backbone"], str(saved.path))
        check_lists(saved, self._details)
        self.state = state = restore(saved, net, optimizer, self.precision.scaler, classes)
        self.logger.info(
            f"resumed from {saved.path}: {state.epoch} epochs and {state.step} iterations done"
            + (f", best mIoU {state.best:.4f}" if state.best >= 0 else "")
        )
        if changed := _changed_settings(saved, self.cfg):
            self.logger.info(
                f"settings that differ from those before: {', '.join(changed)}; exp_name NAME "
                "trains a run of its own"
            )
        world, batch, steps = (content[key] for key in ("world_size", "global_batch", "steps"))
        if world != self.processes.world_size:
            now = "as before" if batch == self.global_batch else f"it was {batch}"
            self.logger.info(
                f"{self.processes.number} instead of {world}; "
                f"global batch {self.global_batch}, {now}"
            )
        if (world, batch, steps) == (self.processes.world_size, self.global_batch, self.steps):
            mine = content["streams"][self.processes.rank]
            if not state.step or len(mine["workers"]) == self.recipe.loader.num_workers:
                self._streams = mine
                return
        if state.step:
            state.step = min(round(state.step * self.steps / steps), self.steps - 1)
            # No epoch has this order; the order of this one would begin with what was seen.
            state.shuffle = self.recipe.epochs * (state.step + 1)
            self.logger.info("the rest of the epoch is drawn again, since its batches are others")
        # A seed of its own: the first epoch's would draw the same again.
        seed = self.recipe.epochs + state.epoch * self.steps + state.step
        seed_everything(_seed(self.cfg, self.processes) + seed)

    def train(self) -> None:
        """Train to the last epoch, or until no better mIoU comes.

        Raises:
            UserError: losses stay non-finite, memory or disk do not suffice.
            SystemExit: with code `STOPPED`, after SIGTERM or SIGINT, once a checkpoint is written.
        """
        state, cfg, recipe = self.state, self.cfg, self.recipe
        self._iteration = Iteration(recipe, self.processes, self.precision)
        self._describe()
        if self.processes.is_main:
            remove_leftovers(self.run.snapshot)
            dump_config(cfg, self.run.folder / "config.yaml")
        total, done = recipe.epochs * self.steps, state.epoch * self.steps + state.step
        self._progress = Progress(self.logger, self.run.scalars, recipe.epochs, total, done)
        with StopRequest() as self._request:
            if self.run.saved is None:
                # Shows at once whether the disk has room, and is where a restart begins.
                self._save()
            while state.epoch < recipe.epochs:
                self._train_epoch()
                epoch = state.epoch + 1
                validated = recipe.validates(epoch)
                if validated:
                    self._save()
                    self._validate(epoch)
                state.epoch, state.step, state.shuffle = epoch, 0, 0
                stops = validated and state.waited(cfg.stop_interval)
                last = stops or epoch == recipe.epochs
                if last and not validated:
                    self._draw_curves()
                if last or epoch % cfg.save_freq == 0 or epoch == state.best_epoch:
                    self._save()
                if stops:
                    self.logger.info(f"no better mIoU for {cfg.stop_interval} epochs: stopping")
                    break

    def _describe(self) -> None:
        """Log what will be trained, and how."""
        recipe = self.recipe
        parameters = sum(p.numel() for p in recipe.net.parameters())
        groups = [
            (sum(p.numel() for p in group["params"]), group["lr"])
            for group in recipe.optimizer.param_groups
        ]
        rates = ", ".join(f"{rate:.1e} for {n / 1e6:.2f} M" for n, rate in groups)
        self.logger.info(
            f"{parameters / 1e6:.2f} M parameters, {sum(n for n, _ in groups) / 1e6:.2f} M trained, "
            f"rates {rates}"
        )
        images: Any = recipe.loader.dataset
        self.logger.info(
            f"{len(images)} images, global batch {self.global_batch} ({self._batch_size} × "
            f"{self.processes.number} × {recipe.grad_accum} accumulated), "
            f"{recipe.epochs * self.steps} iterations"
        )
        several = self.processes.world_size > 1
        if several and learning_norms(recipe.net) and not synchronises(self.processes):
            self.logger.info(
                "batch norms learn; without CUDA each process normalises by its own batch, and "
                "their running statistics are those of process 0"
            )

    def _train_epoch(self) -> None:
        """Train the rest of the epoch that `state` is in."""
        state, cfg, recipe = self.state, self.cfg, self.recipe
        batches = self._start_epoch()
        if self._half_is_due():
            # It was interrupted, or the run was before it began.
            self._validate(state.epoch + 0.5)
        self._iteration.model.train()
        self._progress.start_epoch(state.epoch + 1)
        while state.step < self.steps:
            iteration = state.epoch * self.steps + state.step + 1
            rate = recipe.rate_of(iteration)
            set_rate(recipe.optimizer, rate)
            values, files, stops, waited = self._iteration(batches, self._request)
            self._progress.count(self.global_batch, values, waited)
            self._skipped = self._skipped + 1 if values is None else 0
            if self._skipped >= cfg.max_nonfinite and files is not None:
                raise UserError(
                    f"the loss or its gradient is not finite, {self._skipped} times in a row, last at "
                    f"iteration {iteration} with {files}; lower the rate, or look at these files"
                )
            state.step += 1
            if iteration % cfg.print_freq == 0 or state.step == self.steps:
                memory = peak_memory(self.processes.device)
                self._progress.report(iteration, rate, state.best, memory)
            if not stops and self._half_is_due():
                self._save()
                self._validate(state.epoch + 0.5)
                self._iteration.model.train()
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
        return self.recipe.halves and middle and state.half_validated <= state.epoch

    def _start_epoch(self) -> Iterator[Batch]:
        """Return the batches of the rest of the epoch, with every random stream in place."""
        state, cfg, streams, loader = self.state, self.cfg, self._streams, self.recipe.loader
        self._streams = None
        loader.set_epoch(state.epoch + state.shuffle)
        if not state.step:
            if streams is not None:
                set_streams(streams["process"])
            if cfg.fix_random_seed_val and cfg.manual_seed is not None:
                seed_everything(_seed(cfg, self.processes) + state.epoch)
        elif streams is not None:
            if state.step == self.steps:
                set_streams(streams["process"])
                return iter(())
            loader.resume_at(streams)
        return iter(loader)

    def _validate(self, epoch: float) -> None:
        """Validate after `epoch` epochs, a half one included, and keep the best."""
        state, net = self.state, self.recipe.net
        # Each process has seen its own batches since the last forward pass shared them.
        self.processes.share(running_statistics(net))
        with self._request.at_once(), untouched_random_streams(), self.precision.autocast():
            values = self.recipe.validate(state.epoch)
        text = "  ".join(f"{key} {value:.4f}" for key, value in values.items())
        self.logger.info(f"epoch {epoch:g}/{self.recipe.epochs}  {text}")
        self.run.scalars.add("val", values, round(epoch * self.steps))
        if values["mIoU"] > state.best:
            state.best, state.best_epoch = values["mIoU"], state.epoch + 1
            if self.processes.is_main:
                content = {"state_dict": net.state_dict(), "miou": state.best, **self._details}
                save_best(self.run.snapshot, state.best_epoch, state.best, content)
        if epoch != round(epoch):
            state.half_validated = state.epoch + 1
        self._draw_curves()

    def _draw_curves(self) -> None:
        if self.processes.is_main:
            draw_curves(self.run.folder, self.logger)

    def _save(self) -> None:
        loader = self.recipe.loader
        position = loader.position() if self.state.step else {"process": get_streams()}
        streams = self.processes.gather(position)
        if self.processes.is_main:
            progress = {"steps": self.steps, "streams": streams, **self._details}
            net, optimizer = self.recipe.net, self.recipe.optimizer
            save_run(self.run.snapshot, net, optimizer, self.precision.scaler, self.state, progress)
        self.processes.barrier()
