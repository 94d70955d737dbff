"""The frozen base learner inside HDMNet: folded weights, and a head computed in two parts.

The head's convolution of [f4, resized pools] is the sum of one over f4, which supports need only at
some positions, and one over the pools, a function of 50 pooled cells. See docs/fast_path.md, "The
head of the base learner".
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbone import Backbone, BackboneFeatures
from model.folding import folded, weight_versions
from model.hierarchy import to_tokens
from model.masked import gather_rows
from model.mm import resize
from model.norms import scale_and_shift
from model.precision import full_precision, widened
from model.pspnet import PSPNet

# Pixels that pass the backbone at once on the CPU, where larger batches save no time and cost memory.
CPU_PIXELS = 2**18
# Channels that the head's convolution reads at once on the CPU: shorter sums round less, in the same
# time and less memory.
CPU_CHANNELS = 512
# Values of f4 that the head gathers at once at masked positions, nine for each position and channel.
CPU_GATHERED, GPU_GATHERED = 2**22, 2**26


class FrozenBase:
    """Features and logits of a base learner in eval mode, without gradients.

    It keeps a folded copy of the backbone, outside any state dict. The copy is made at the first call
    and again when the weights were loaded, moved or trained. Writing to `parameter.data` is not
    noticed.

    Args:
        base: the base learner.
        dtype: type of the computation of the backbone and of the head's convolution. None takes the
            type of autocast where it is enabled, else that of the weights.
    """

    def __init__(self, base: PSPNet, dtype: torch.dtype | None = None):
        self.base = base
        self.dtype = dtype
        self._compiles = False
        self._source: tuple[Any, ...] | None = None
        self._folded: Backbone | None = None
        self._spread: dict[tuple[Any, ...], Tensor] = {}

    def compile(self) -> None:
        """Have torch.compile make faster code of the backbone's copy, at its next use."""
        self._compiles, self._source = True, None

    def features(self, images: Tensor) -> Iterator[BackboneFeatures]:
        """Yield the features of images (N, 3, H, W), slice by slice, with f2 on the grid of f3."""
        backbone = self._folded_backbone(images.device)
        at_once = len(images)
        if images.device.type == "cpu":
            at_once = max(1, CPU_PIXELS // images[0, 0].numel())
        for part in images.split(at_once):
            # Without a name or a decorator here, no slice is held while the next one is computed.
            yield self._features(backbone, part)

    @torch.no_grad()
    def _features(self, backbone: Backbone, images: Tensor) -> BackboneFeatures:
        weight = next(backbone.parameters())
        memory_format = _memory_format(backbone, weight.device)
        with full_precision(weight.device):
            f2, f3, f4 = backbone(images.to(weight.dtype, memory_format=memory_format))
            if f2.shape[-2:] != f3.shape[-2:]:
                f2 = resize(f2, size=f3.shape[-2:], mode="bilinear", align_corners=True)
        return BackboneFeatures(f2, f3, f4)

    @torch.no_grad()
    def head(self, f4: Tensor) -> Tensor:
        """Return f5, the head after its batch norm, (N, h·w, 512), of f4 (N, C, h, w)."""
        with full_precision(f4.device):
            out = self._pool_part(f4)
            weight = self._f4_weight(f4)
            if f4.is_cuda:
                out += to_tokens(F.conv2d(f4, weight, padding=1))
            else:
                parts = (tensor.split(CPU_CHANNELS, dim=1) for tensor in (f4, weight))
                for x, part in zip(*parts, strict=True):
                    x = x.contiguous(memory_format=torch.channels_last)
                    out += to_tokens(F.conv2d(x, part, padding=1))
            return self._normalised(out)

    @torch.no_grad()
    def head_at(self, f4: Tensor, index: Tensor) -> Tensor:
        """Return f5 at some positions, (N, m, 512).

        Args:
            f4: (N, C, h, w).
            index: int64 (N, m), into the h·w positions.
        """
        channels, height, width = f4.shape[1:]
        if 2 * index.shape[1] > height * width:
            # From about half of all positions on, gathering costs more than it saves.
            return gather_rows(self.head(f4), index)
        elements = GPU_GATHERED if f4.is_cuda else CPU_GATHERED
        at_once = max(1, elements // (9 * channels * len(f4)))
        with full_precision(f4.device):
            padded = to_tokens(F.pad(f4, (1, 1, 1, 1)))
            weight = self._f4_weight(f4).permute(2, 3, 1, 0).flatten(0, 2)  # (9·C, 512)
            tap = torch.arange(3, device=f4.device)
            taps = (tap[:, None] * (width + 2) + tap).flatten()
            near = (index // width * (width + 2) + index % width)[:, :, None] + taps  # (N, m, 9)
            out = [
                gather_rows(padded, part.flatten(1)).view(*part.shape[:2], -1) @ weight
                for part in near.split(at_once, dim=1)
            ]
            return self._normalised(torch.cat(out, dim=1) + gather_rows(self._pool_part(f4), index))

    @torch.no_grad()
    def logits(self, f5: Tensor) -> Tensor:
        """Return logits (N, classes+1, h, w) of f5 (N, C, h, w)."""
        with full_precision(f5.device):
            return self.base.classifier(f5)

    def _folded_backbone(self, device: torch.device) -> Backbone:
        """Return the folded copy in the type of the computation, up to date."""
        dtype = self.dtype
        if dtype is None and torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        dtype = dtype or next(self.base.parameters()).dtype
        source = (dtype, weight_versions(self.base))
        if self._folded is None or source != self._source:
            memory_format = _memory_format(self.base.backbone, device)
            self._folded = cast(Backbone, folded(self.base.backbone, dtype, memory_format))
            self._source = source
            if self._compiles:
                self._folded.compile()
        return self._folded

    @property
    def _pools(self) -> list[nn.Sequential]:
        """The branches of the pyramid: a pool and what follows it."""
        return cast(list[nn.Sequential], list(self.base.pyramid.pools))

    @property
    def _head_weight(self) -> Tensor:
        """The weight of the head's convolution."""
        return cast(nn.Conv2d, self.base.head[0]).weight

    def _normalised(self, x: Tensor) -> Tensor:
        """Apply the head's batch norm to tokens (N, m, 512), in place."""
        scale, shift = scale_and_shift(self.base.head[1])
        return x.mul_(scale).add_(shift)

    def _f4_weight(self, f4: Tensor) -> Tensor:
        """Return the part of the head's weight that reads f4."""
        return self._head_weight[:, : f4.shape[1]].to(f4.dtype)

    def _pool_part(self, f4: Tensor) -> Tensor:
        """Return the pools' part of the head's convolution, (N, h·w, 512), of f4 (N, C, h, w)."""
        branches = self._head_weight[:, f4.shape[1] :].chunk(len(self._pools), dim=1)
        height, width = f4.shape[-2:]
        rows, across = [], []
        for pool, pooled, taps in zip(self._pools, self._pooled(f4), branches, strict=True):
            cells = pool[1:](pooled)  # (N, C/4, s, s)
            bins = cells.shape[-1]
            parts = torch.einsum("nirc,oiyx->noryxc", cells, taps)
            parts = torch.einsum("noryxc,cxw->nrywo", parts, self._shares(bins, width, cells))
            across.append(parts.flatten(1, 2))
            rows.append(self._shares(bins, height, cells).flatten(0, 1))
        out = torch.einsum("ph,npwo->nhwo", torch.cat(rows), torch.cat(across, dim=1))
        return out.flatten(1, 2)

    def _pooled(self, f4: Tensor) -> Iterator[Tensor]:
        """Yield f4 (N, C, h, w) after the average pool to s×s cells of each branch: (N, C, s, s)."""
        sizes = [cast(int, cast(nn.AdaptiveAvgPool2d, pool[0]).output_size) for pool in self._pools]
        height, width = f4.shape[-2:]
        # The rows of all pools at once: the map is large and is read a single time.
        rows = torch.cat([self._cells(size, height, f4) for size in sizes])
        summed = (rows @ f4.permute(0, 2, 3, 1).flatten(2)).unflatten(2, (width, -1))
        for size, part, of_rows in zip(
            sizes, widened(summed).split(sizes, dim=1), rows.split(sizes), strict=True
        ):
            columns = self._cells(size, width, part)
            area = widened(of_rows).sum(1)[:, None] * columns.sum(1)
            yield ((columns @ part) / area[..., None]).movedim(-1, 1)

    def _cells(self, bins: int, length: int, like: Tensor) -> Tensor:
        """Return 1 where a cell of an adaptive pool covers a position, else 0: (bins, length)."""
        key = ("cells", bins, length, like.dtype, like.device)
        if key not in self._spread:
            shares = F.adaptive_avg_pool1d(torch.eye(length, device=like.device)[None], bins)
            self._spread[key] = (shares[0].T > 0).to(like.dtype)
        return self._spread[key]

    def _shares(self, bins: int, length: int, like: Tensor) -> Tensor:
        """Return the share of each cell in what each tap reads at each position: (bins, 3, length)."""
        key = (bins, length, like.dtype, like.device)
        if key not in self._spread:
            spread = torch.eye(bins, dtype=like.dtype, device=like.device)
            spread = F.interpolate(spread[None], size=length, mode="linear", align_corners=True)[0]
            # A tap reads a neighbour, which is zero outside the map.
            self._spread[key] = F.pad(spread, (1, 1)).unfold(1, length, 1)
        return self._spread[key]


def _memory_format(backbone: Backbone, device: torch.device) -> torch.memory_format:
    """Return the faster format: channels last, but not for 3×3 convolutions alone on the CPU."""
    kernels = {conv.kernel_size for conv in backbone.modules() if isinstance(conv, nn.Conv2d)}
    if device.type == "cpu" and kernels == {(3, 3)}:
        return torch.contiguous_format
    return torch.channels_last
