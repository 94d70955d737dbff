"""One iteration: the gradients of some batches, and a step of the optimiser if all is finite."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from util.data.data_loader import TrainLoader
from util.runtime.distributed import Processes
from util.runtime.log import Meter
from util.runtime.precision import Precision
from util.training.norms import running_statistics, several_values_a_channel
from util.training.signals import StopRequest

LossValues = dict[str, Tensor]  # scalars by name; "loss" is minimised
Batch = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What is trained, on which batches and how long.

    Attributes:
        net: the model, not wrapped.
        optimizer: one with a `ratio` per group, see `util.training.schedule`.
        loader: training batches of this process.
        grad_accum: batches whose gradients are averaged in an iteration.
        epochs: number of epochs.
        details: plain values kept in every checkpoint beside the weights, "base_classes" among them.
    """

    net: nn.Module
    optimizer: Optimizer
    loader: TrainLoader
    grad_accum: int
    epochs: int
    details: dict[str, Any]

    @property
    def dataset(self) -> Any:
        """The dataset of the loader; its `file_names` names the files of a batch."""
        return self.loader.dataset

    @property
    def batch_size(self) -> int:
        """Number of items that a process takes at a time."""
        sampler: Any = self.loader.batch_sampler
        return sampler.batch_size


class Iteration:
    """Computes the iterations of a training.

    Args:
        recipe: what is trained.
        processes: this process among all.
        precision: of the forward passes.
        wrapped: the module that `losses_of` calls, which averages gradients.
        losses_of: returns the losses of one batch on the device.
    """

    def __init__(
        self,
        recipe: Recipe,
        processes: Processes,
        precision: Precision,
        wrapped: nn.Module,
        losses_of: Callable[[Batch], LossValues],
    ):
        self.recipe, self.processes, self.precision = recipe, processes, precision
        self.wrapped, self.losses_of = wrapped, losses_of

    def __call__(
        self, batches: Iterator[Batch], meter: Meter, request: StopRequest
    ) -> tuple[LossValues | None, str | None, bool]:
        """Take one step of the optimiser, unless it would not be finite.

        Returns:
            The losses (None: nothing was changed), the files of a loss that is not finite where this
            process has it, and whether any process got a signal to stop.

        Raises:
            UserError: a batch norm gets one value a channel.
        """
        optimizer, grad_accum = self.recipe.optimizer, self.recipe.grad_accum
        optimizer.zero_grad(set_to_none=True)
        scaler = self.precision.scaler
        sums: LossValues = {}
        buffers = [(buffer, buffer.clone()) for buffer in running_statistics(self.recipe.net)]
        done = []
        for part in range(grad_accum):
            started = time.monotonic()
            batch = next(batches)
            meter.waited(time.monotonic() - started)
            communication: AbstractContextManager[None] = nullcontext()
            if isinstance(self.wrapped, DistributedDataParallel) and part + 1 < grad_accum:
                communication = self.wrapped.no_sync()  # Only the last batch sends its gradients.
            with communication:
                with several_values_a_channel():
                    losses = self.losses_of(to_device(batch, self.processes.device))
                scaler.scale(losses["loss"] / grad_accum).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / grad_accum
            done.append((losses["loss"].detach(), _indices(batch)))
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
            return sums, None, bool(stops)
        # The scale stays, but the scaler has to know that this iteration is over.
        scaler.update(scaler.get_scale())
        for buffer, value in buffers:
            buffer.copy_(value)
        # A loss that is not finite spoils the gradients of every process: only one of them had it.
        mine = broken[0] if anywhere[0] else broken[1]
        return None, self._files(done) if mine else None, bool(stops)

    def _files(self, done: list[tuple[Tensor, Batch]]) -> str:
        """Return the files of the batches whose own loss is not finite, or of all batches."""
        broken = [batch for loss, batch in done if not loss.isfinite()]
        return "; ".join(
            map(self.recipe.dataset.file_names, broken or [batch for _, batch in done])
        )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on another device; labels of type uint8 become int64 there."""
    moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
    return {
        key: value.long() if value.dtype == torch.uint8 else value for key, value in moved.items()
    }


def _gradient_norm(optimizer: Optimizer) -> Tensor:
    gradients = [
        p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
    ]
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
    return torch.linalg.vector_norm(torch.stack(norms))


def _indices(batch: Batch) -> Batch:
    """Return what names the files of a batch; its images need not be kept."""
    return {key: value for key, value in batch.items() if key.endswith("index")}
