"""One iteration: the gradients of some batches, and a step of the optimiser if all is finite."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from util.runtime.distributed import Processes
from util.runtime.log import Meter
from util.runtime.precision import Precision
from util.training.norms import running_statistics, several_values_a_channel
from util.training.signals import StopRequest

Losses = dict[str, Tensor]
Batch = dict[str, Any]


class Iteration:
    """What an iteration of a training does.

    Args:
        net: the model; wrapped: the module that `losses_of` calls, which averages gradients.
        losses_of: scalars of one batch on the device, by name; "loss" is minimised.
        optimizer, precision: of the training.
        file_names: those of a batch, for messages.
        grad_accum: batches whose gradients are averaged.
        processes: this process among all.
    """

    def __init__(
        self,
        net: nn.Module,
        wrapped: nn.Module,
        losses_of: Callable[[Batch], Losses],
        optimizer: Optimizer,
        precision: Precision,
        file_names: Callable[[Batch], str],
        grad_accum: int,
        processes: Processes,
    ):
        self.net, self.wrapped, self.losses_of = net, wrapped, losses_of
        self.optimizer, self.precision, self.file_names = optimizer, precision, file_names
        self.grad_accum, self.processes = grad_accum, processes

    def __call__(
        self, batches: Iterator[Batch], meter: Meter, request: StopRequest
    ) -> tuple[Losses | None, str | None, bool]:
        """One step of the optimiser, unless it would not be finite.

        Returns:
            The losses (None: nothing was changed), the files to blame where they are this process's,
            and whether any process was told to stop.

        Raises:
            UserError: a batch norm gets one value a channel.
        """
        self.optimizer.zero_grad(set_to_none=True)
        scaler, sums = self.precision.scaler, {}
        buffers = [(buffer, buffer.clone()) for buffer in running_statistics(self.net)]
        done = []
        for part in range(self.grad_accum):
            started = time.monotonic()
            batch = next(batches)
            meter.waited(time.monotonic() - started)
            more = part + 1 < self.grad_accum and self.processes.world_size > 1
            with self.wrapped.no_sync() if more else nullcontext():
                with several_values_a_channel():
                    losses = self.losses_of(to_device(batch, self.processes.device))
                scaler.scale(losses["loss"] / self.grad_accum).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / self.grad_accum
            done.append((losses["loss"].detach(), _indices(batch)))
        scaler.unscale_(self.optimizer)
        sums["gradient"] = _gradient_norm(self.optimizer)
        # Both at once: here the host waits for the device.
        finite = torch.stack([sums["loss"], sums["gradient"]]).isfinite()
        broken = ~finite.cpu().numpy()
        overflow = False
        if broken[1] and scaler.is_enabled():
            # The scaler answers gradients that overflow, until there is nothing left to scale down.
            overflow = not broken[0] and scaler.get_scale() > 1
            broken[1] = not overflow
        told = request.signal is not None
        *anywhere, stops = self.processes.sum(np.array([*broken, told], np.int64)) > 0
        if not any(anywhere):
            scaler.step(self.optimizer)
            scaler.update()
            if overflow:
                del sums["gradient"]
            return sums, None, stops
        # As it is; but it has to be told that this iteration is over.
        scaler.update(scaler.get_scale())
        for buffer, value in buffers:
            buffer.copy_(value)
        # A loss that is not finite spoils the gradients of every process: blame the one that had it.
        mine = broken[0] if anywhere[0] else broken[1]
        return None, self._blame(done) if mine else None, stops

    def _blame(self, done: list[tuple[Tensor, Batch]]) -> str:
        """The files of the batches whose own loss is not finite, or of all."""
        culprits = [batch for loss, batch in done if not loss.isfinite()]
        return "; ".join(map(self.file_names, culprits or [batch for _, batch in done]))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch on another device; labels, uint8 on the way, become int64 there."""
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
    """What names the files of a batch; its images need not be kept."""
    return {key: value for key, value in batch.items() if key.endswith("index")}
