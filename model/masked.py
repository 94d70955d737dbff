"""The positions inside masks, gathered: whatever a mask removes need not be computed.

Columns of the matching and of the prior are independent of one another, so positions outside the
masks can be left out. One row of zeros stands for all of them: its cosine with anything is 0, and
its value adds nothing. Shorter masks of a batch are padded by more such rows. A mask that covers the
whole grid has no such row, and is never padded, being the longest there can be.
"""

from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def gather_rows(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows (N, m, C) of tokens (N, n, C) at index (N, m)."""
    first = torch.arange(len(tokens), device=index.device)[:, None] * tokens.shape[1]
    rows = tokens.flatten(0, 1).index_select(0, (first + index).flatten())
    return rows.unflatten(0, index.shape)


class MaskedPositions(NamedTuple):
    """Positions of N masks on one grid, those inside first.

    index: int64 (N, m), into the h·w positions of the grid.
    inside: (N, m), 1 where the position is in the mask, 0 where it pads.
    count: (N,), positions inside, before padding.
    """

    index: Tensor
    inside: Tensor
    count: Tensor

    def gather(self, tokens: Tensor) -> Tensor:
        """Tokens (N, h·w, C) → (N, m, C) at these positions; what pads is arbitrary."""
        return gather_rows(tokens, self.index)

    def only(self, part: slice) -> "MaskedPositions":
        """Those of some of the masks."""
        return MaskedPositions(*(tensor[part] for tensor in self))


class MaskGrids:
    """Masks on several grids, with their longest counts on the way to the host.

    The host has to know how long the gathered rows are. It asks early and reads late: on CUDA the
    device does not run dry meanwhile.

    Args:
        mask: (N, H, W) in {0, 1}.
        sizes: (h, w) of each grid.
    """

    def __init__(self, mask: Tensor, sizes: list[tuple[int, int]]):
        self._masks = [
            F.interpolate(mask[:, None], size=size, mode="nearest").flatten(1) for size in sizes
        ]
        self._counts = [mask.sum(1) for mask in self._masks]
        longest = torch.stack([count.amax() for count in self._counts])
        self._longest = longest.to("cpu", non_blocking=True)
        self._arrived = None
        if mask.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    @cached_property
    def positions(self) -> list[MaskedPositions]:
        """The positions on each grid."""
        if self._arrived is not None:
            self._arrived.synchronize()
        found = []
        for mask, count, longest in zip(
            self._masks, self._counts, self._longest.tolist(), strict=True
        ):
            length = min(int(longest) + 1, mask.shape[1])
            inside, index = mask.sort(dim=1, descending=True, stable=True)
            found.append(MaskedPositions(index[:, :length], inside[:, :length], count))
        return found
