"""The forward and backward pass over a batch as one CUDA graph, for GPUs that outrun their host.

A pass of stage 2 is some two thousand short kernels. A graph launches them at once; it holds the
addresses and shapes of everything, so there is one for each combination of lengths that depend on the
masks.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from model.masked import fixed_lengths
from util.runtime.errors import UserError, is_out_of_memory

Batch = dict[str, Any]
_WARM_UPS = 2  # passes after which everything that is made at its first use is there


class CapturedPass:
    """Computes passes by replaying CUDA graphs, each of which is captured when it is first needed.

    Args:
        compute: Computes the scalars of a batch on the device, and adds its gradients to those of the
            parameters. It may not wait for the device.
        parameters: Those that can get gradients. Theirs keep their place from the first pass on.
        buffers: What a pass changes besides.
        lengths_of: Returns the lengths that a batch needs, see `model.masked.fixed_lengths`.
    """

    def __init__(
        self,
        compute: Callable[[Batch], dict[str, Tensor]],
        parameters: Iterable[nn.Parameter],
        buffers: Iterable[Tensor],
        lengths_of: Callable[[Batch], tuple[int, ...]],
    ):
        self._compute, self._lengths_of = compute, lengths_of
        self._parameters, self._buffers = list(parameters), list(buffers)
        self._inputs: Batch = {}
        self._graphs: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, batch: Batch, on_device: Batch) -> dict[str, Tensor]:
        """Compute the scalars and gradients of a batch.

        Args:
            batch: The batch on the host.
            on_device: The same batch on the device, always in the same shapes.

        Raises:
            UserError: A graph cannot be captured.
        """
        lengths = self._lengths_of(batch)
        if not self._inputs:
            self._inputs = {key: torch.empty_like(value) for key, value in on_device.items()}
        for key, value in self._inputs.items():
            value.copy_(on_device[key])
        if lengths not in self._graphs:
            try:
                self._graphs[lengths] = self._capture(lengths)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
                raise UserError(
                    f"cuda_graphs True: a pass cannot be captured ({reason}); set cuda_graphs False"
                ) from error
        graph, values = self._graphs[lengths]
        graph.replay()
        # The next graph uses the same memory.
        return {name: value.clone() for name, value in values.items()}

    def _capture(self, lengths: tuple[int, ...]) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]:
        """Return a graph and the scalars that it computes; nothing else is changed."""
        gradients = [parameter.grad for parameter in self._parameters]
        buffers = [buffer.clone() for buffer in self._buffers]
        stream = torch.cuda.get_rng_state()
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with fixed_lengths(lengths):
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    for parameter in self._parameters:
                        parameter.grad = None
                    self._compute(self._inputs)
            torch.cuda.current_stream().wait_stream(side)
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                # What gets no gradient is none of the optimiser's business.
                if parameter.grad is not None and gradient is None:
                    gradient = torch.zeros_like(parameter)
                parameter.grad = gradient
            # Other threads, such as that which pins batches, may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                values = self._compute(self._inputs)
        torch.cuda.set_rng_state(stream)
        for buffer, value in zip(self._buffers, buffers, strict=True):
            buffer.copy_(value)
        return graph, values
