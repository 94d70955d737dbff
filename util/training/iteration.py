"""One iteration: the gradients of some batches, and a step of the optimiser if all is finite."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from util.data.data_loader import TrainLoader
from util.runtime.distributed import Processes
from util.runtime.errors import UserError
from util.runtime.precision import Precision
from util.training.captured import Batch, CapturedPass
from util.training.parallel import average_gradients, distributed, running_statistics
from util.training.signals import StopRequest

LossValues = dict[str, Tensor]  # scalars by name; "loss" is minimised


@dataclass(frozen=True)
class Recipe:
    """What is trained, on which batches and how long.

    Attributes:
        net: the model.
        optimizer: one with a `ratio` per group, see `util.training.schedule`.
        loader: training batches of this process; its dataset's `file_names` names those of a batch.
        grad_accum: batches whose gradients are averaged in an iteration.
        epochs: number of epochs.
        details: plain values kept in every checkpoint beside the weights, "base_classes" among them.
        losses_of: returns the losses of one batch on the device. It calls the model as the function
            that it gets, which averages gradients over processes and computes in mixed precision.
        rate_of: returns the base learning rate of an iteration, from 1 over the whole run.
        validate: returns scalars of the model after some epochs; "mIoU" selects the best checkpoint.
        validates: returns whether the n-th epoch, from 1, ends with a validation.
        halves: validate in the middle of the epochs too, except the first.
        lengths_of: passes are replayed from CUDA graphs, see `CapturedPass`; None: they are not.
    """

    net: nn.Module
    optimizer: Optimizer
    loader: TrainLoader
    grad_accum: int
    epochs: int
    details: dict[str, Any]
    losses_of: Callable[[Callable[..., Any], Batch], LossValues]
    rate_of: Callable[[int], float]
    validate: Callable[[int], dict[str, float]]
    validates: Callable[[int], bool]
    halves: bool = False
    lengths_of: Callable[[Batch], tuple[int, ...]] | None = None

    @property
    def steps(self) -> int:
        """Number of iterations of an epoch."""
        return len(self.loader) // self.grad_accum


class Outcome(NamedTuple):
    """What an iteration gave.

    Attributes:
        values: the losses and the norm of the "gradient"; None: nothing was changed, as not all of
            them were finite.
        files: those of a loss that is not finite, where this process has it.
        stops: whether any process got a signal to stop.
        waited: seconds in which this process waited for data.
    """

    values: LossValues | None
    files: str | None
    stops: bool
    waited: float


class Iteration:
    """Computes the iterations of a training.

    Args:
        recipe: what is trained.
        processes: this process among all.
        precision: of the forward passes.
    """

    def __init__(self, recipe: Recipe, processes: Processes, precision: Precision):
        self.recipe, self.processes, self.precision = recipe, processes, precision
        self._captured: CapturedPass | None = None
        if recipe.lengths_of is None:
            self.model = distributed(recipe.net, processes)
        else:
            # A graph does not communicate: its gradients are averaged after the passes.
            self.model = recipe.net.train()
            processes.share([*recipe.net.state_dict().values()])
            buffers = running_statistics(recipe.net)
            trained = _parameters(recipe.optimizer)
            self._captured = CapturedPass(self._pass, trained, buffers, recipe.lengths_of)

    def __call__(self, batches: Iterator[Batch], request: StopRequest) -> Outcome:
        """Take one step of the optimiser, unless it would not be finite.

        Raises:
            UserError: a batch norm that learns gets one value a channel, which has no variance.
        """
        optimizer, grad_accum = self.recipe.optimizer, self.recipe.grad_accum
        optimizer.zero_grad(set_to_none=self._captured is None)
        scaler = self.precision.scaler
        sums: LossValues = {}
        buffers = [(buffer, buffer.clone()) for buffer in running_statistics(self.recipe.net)]
        done, waited = [], 0.0
        for part in range(grad_accum):
            started = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - started
            communication: AbstractContextManager[None] = nullcontext()
            if isinstance(self.model, DistributedDataParallel) and part + 1 < grad_accum:
                communication = self.model.no_sync()  # Only the last batch sends its gradients.
            on_device = to_device(batch, self.processes.device)
            with communication:
                if self._captured is not None:
                    losses = self._captured(batch, on_device)
                else:
                    losses = self._pass(on_device)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value / grad_accum
            # What names the files of a batch; its images need not be kept.
            indices = {key: value for key, value in batch.items() if key.endswith("index")}
            done.append((losses["loss"], indices))
        if self._captured is not None and self.processes.world_size > 1:
            average_gradients(_parameters(optimizer))
        scaler.unscale_(optimizer)
        sums["gradient"] = _gradient_norm(optimizer)
        # Both at once: here the host waits for the device.
        finite = torch.stack([sums["loss"], sums["gradient"]]).isfinite()
        broken = ~finite.cpu().numpy()
        overflow = False
        if broken[1] and scaler.is_enabled():
            # The scaler lowers its scale where gradients overflow, as long as it can.
            overflow = not broken[0] and scaler.get_scale() > 1
            broken[1] = not overflow
        stopping = request.signal is not None
        *anywhere, stops = self.processes.sum(np.array([*broken, stopping], np.int64)) > 0
        if not any(anywhere):
            scaler.step(optimizer)
            scaler.update()
            if overflow:
                del sums["gradient"]
            return Outcome(sums, None, bool(stops), waited)
        # The scale stays, but the scaler has to know that this iteration is over.
        scaler.update(scaler.get_scale())
        for buffer, value in buffers:
            buffer.copy_(value)
        # A loss that is not finite spoils the gradients of every process: only one of them had it.
        mine = broken[0] if anywhere[0] else broken[1]
        return Outcome(None, self._files(done) if mine else None, bool(stops), waited)

    def _pass(self, batch: Batch) -> LossValues:
        """Return the losses of a batch on the device, after adding its gradients."""
        losses = self.recipe.losses_of(self._forward, batch)
        self.precision.scaler.scale(losses["loss"] / self.recipe.grad_accum).backward()
        return {name: value.detach() for name, value in losses.items()}

    def _forward(self, *inputs: Tensor) -> Any:
        try:
            with self.precision.autocast():
                return self.model(*inputs)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                "a batch norm that learns got one value a channel, which has no variance; give each "
                "process two items at a time: a higher batch_size (stage 1: base_batch_size) or a "
                "lower grad_accum"
            ) from error

    def _files(self, done: list[tuple[Tensor, Batch]]) -> str:
        """Return the files of the batches whose own loss is not finite, or of all batches."""
        broken = [batch for loss, batch in done if not loss.isfinite()]
        dataset: Any = self.recipe.loader.dataset
        return "; ".join(map(dataset.file_names, broken or [batch for _, batch in done]))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on another device; labels of type uint8 become int64 there."""
    moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
    return {
        key: value.long() if value.dtype == torch.uint8 else value for key, value in moved.items()
    }


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _gradient_norm(optimizer: Optimizer) -> Tensor:
    gradients = [p.grad for p in _parameters(optimizer) if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)
