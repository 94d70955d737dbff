"""Gathering of the positions inside masks, since what a mask removes need not be computed.

Columns of the matching and of the prior are independent of one another, so positions outside the
masks can be left out. One row of zeros represents all of them: its cosine with anything is 0, and
its value adds nothing. Shorter masks of a batch are padded by more such rows. A mask that covers the
whole grid has no such row, and it never needs padding. See docs/fast_path.md, "Masked positions".
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def gather_rows(tokens: Tensor, index: Tensor) -> Tensor:
    """Return the rows (N, m, C) of tokens (N, n, C) at index (N, m)."""
    first = torch.arange(len(tokens), device=index.device)[:, None] * tokens.shape[1]
    rows = tokens.flatten(0, 1).index_select(0, (first + index).flatten())
    return rows.unflatten(0, index.shape)


def cat_rows(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate gathered rows, after padding all to the longest by rows of zeros.

    Args:
        tensors: each (B, K, m, C), with an m of its own.
        dim: 0 puts episodes together, 1 the supports of an episode.

    Returns:
        (B, K, m, C) with the sum of the B or of the K, and the largest m.
    """
    rows = max(tensor.shape[2] for tensor in tensors)
    return torch.cat([F.pad(tensor, (0, 0, 0, rows - tensor.shape[2])) for tensor in tensors], dim)


class MaskedPositions(NamedTuple):
    """Positions of N masks on one grid, those inside first.

    Attributes:
        index: int64 (N, m), into the h·w positions of the grid.
        inside: (N, m), 1 where the position is in the mask, 0 where it pads.
        count: (N,), number of positions inside the mask.
    """

    index: Tensor  # type: ignore[assignment]  # hides the method of tuples
    inside: Tensor
    count: Tensor  # type: ignore[assignment]  # hides the method of tuples

    def gather(self, tokens: Tensor) -> Tensor:
        """Return tokens (N, h·w, C) at these positions, (N, m, C); rows that pad are arbitrary."""
        return gather_rows(tokens, self.index)

    def only(self, part: slice) -> "MaskedPositions":
        """Return the positions of some of the masks."""
        return MaskedPositions(*(tensor[part] for tensor in self))


_fixed: list[Sequence[int]] = []


@contextmanager
def fixed_lengths(lengths: Sequence[int]) -> Iterator[None]:
    """Gather as many rows on each grid as `lengths` say, whatever the masks; no length is read then.

    The lengths have to suffice for the masks, see `MaskGrids.lengths`. They are for CUDA graphs, which
    fix all shapes.
    """
    _fixed.append(lengths)
    try:
        yield
    finally:
        _fixed.pop()


class MaskGrids:
    """Masks on several grids, whose longest counts are being copied to the host.

    The host has to know how long the gathered rows are. On CUDA it starts the copy here and reads it
    in `positions`, so that the device always has work queued.

    Args:
        mask: (N, H, W) in {0, 1}.
        sizes: (h, w) of each grid.
    """

    def __init__(self, mask: Tensor, sizes: list[tuple[int, int]]):
        self._masks = [
            F.interpolate(mask[:, None], size=size, mode="nearest").flatten(1) for size in sizes
        ]
        self._counts = [mask.sum(1) for mask in self._masks]
        self._fixed = _fixed[-1] if _fixed else None
        if self._fixed is not None:
            return
        longest = torch.stack([count.amax() for count in self._counts])
        # Other devices have no event in every torch from 2.6 on: there the copy waits.
        self._longest = longest.to("cpu", non_blocking=mask.is_cuda)
        self._arrived = None
        if mask.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(mask.device))

    @cached_property
    def positions(self) -> list[MaskedPositions]:
        """The positions on each grid, which wait for the copy."""
        found = []
        lengths = self._fixed or self.lengths()
        for mask, count, length in zip(self._masks, self._counts, lengths, strict=True):
            inside, index = mask.sort(dim=1, descending=True, stable=True)
            found.append(MaskedPositions(index[:, :length], inside[:, :length], count))
        return found

    def lengths(self) -> list[int]:
        """Return the number of rows that suffices on each grid: the longest count, and one of zeros."""
        return [
            min(int(longest) + 1, mask.shape[1])
            for mask, longest in zip(self._masks, self._longest_counts(), strict=True)
        ]

    def _longest_counts(self) -> list[float]:
        """Return the longest count on each grid, once its copy has arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._longest.tolist()
