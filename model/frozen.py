"""The base learner as HDMNet uses it, frozen: folded weights, and a head that works where it has to.

The head's convolution of [f4, resized pools] is split. Its half over the pools is a function of the
50 pooled cells: each cell is multiplied by the weights of the nine taps, and what a cell adds to a
position is the product of a share of its row and a share of its column.
"""

from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbone import Backbone, Features
from model.folding import fingerprint, folded
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


class FrozenBase:
    """Features and logits of a base learner in eval mode, without gradients.

    It keeps a folded copy of the backbone, outside any state dict, made at the first call and made
    anew when the weights have changed: loaded, moved, or trained. Writing to `parameter.data` goes
    unnoticed.

    Args:
        base: the base learner.
        dtype: what the backbone and the head's convolution are computed in; None for the type that
            surrounds the call: that of autocast, else that of the weights.
    """

    def __init__(self, base: PSPNet, dtype: torch.dtype | None = None):
        self.base = base
        self.dtype = dtype
        self._made_of: tuple | None = None
        self._backbone: Backbone | None = None

    def features(self, images: Tensor) -> Iterator[Features]:
        """Backbone features of images (N, 3, H, W), slice by slice; f2 is brought to the grid of f3."""
        self._refresh(images.device)
        at_once = len(images)
        if images.device.type == "cpu":
            at_once = max(1, CPU_PIXELS // images[0, 0].numel())
        for part in images.split(at_once):
            # No name, and no decorator, holds a slice here while the next one is computed.
            yield self._features(part)

    @torch.no_grad()
    def _features(self, images: Tensor) -> Features:
        weight = next(self._backbone.parameters())
        memory_format = _memory_format(self._backbone, weight.device)
        with full_precision(weight.device):
            f2, f3, f4 = self._backbone(images.to(weight.dtype, memory_format=memory_format))
            if f2.shape[-2:] != f3.shape[-2:]:
                f2 = resize(f2, size=f3.shape[-2:], mode="bilinear", align_corners=True)
        return Features(f2, f3, f4)

    @torch.no_grad()
    def head(self, f4: Tensor) -> Tensor:
        """f5, the head after its batch norm, at every position of f4 (N, C, h, w): (N, h·w, 512)."""
        with full_precision(f4.device):
            out = self._of_pools(f4)
            weight = self._of_f4(f4)
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
        """f5 at some positions, int64 (N, m) into the h·w: (N, m, 512)."""
        height, width = f4.shape[-2:]
        row, column = index // width, index % width
        with full_precision(f4.device):
            tokens = to_tokens(f4)
            weight = self._of_f4(f4).contiguous(memory_format=torch.channels_last)
            out = gather_rows(self._of_pools(f4), index)
            for i, j in product(range(3), range(3)):
                y, x = row + i - 1, column + j - 1
                inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
                near = gather_rows(tokens, (y * width + x).clamp(0, height * width - 1))
                near *= inside[..., None]
                out += near @ weight[:, :, i, j].T
            return self._normalised(out)

    @torch.no_grad()
    def logits(self, f5: Tensor) -> Tensor:
        """Logits (N, classes+1, h, w) of f5 (N, C, h, w)."""
        with full_precision(f5.device):
            return self.base.classifier(f5)

    def _refresh(self, device: torch.device) -> None:
        dtype = self.dtype
        if dtype is None and torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        dtype = dtype or self.base.head[0].weight.dtype
        made_of = (dtype, fingerprint(self.base))
        if made_of != self._made_of:
            memory_format = _memory_format(self.base.backbone, device)
            self._backbone = folded(self.base.backbone, dtype, memory_format)
            self._made_of = made_of

    def _normalised(self, x: Tensor) -> Tensor:
        """The head's batch norm on tokens (N, m, 512), in place."""
        scale, shift = scale_and_shift(self.base.head[1])
        return x.mul_(scale).add_(shift)

    def _of_f4(self, f4: Tensor) -> Tensor:
        """The weights of the head's convolution that read f4."""
        return self.base.head[0].weight[:, : f4.shape[1]].to(f4.dtype)

    def _of_pools(self, f4: Tensor) -> Tensor:
        """What the pools add to the head's convolution of f4 (N, C, h, w): (N, h·w, 512)."""
        pools = self.base.pyramid.pools
        branches = self.base.head[0].weight[:, f4.shape[1] :].chunk(len(pools), dim=1)
        height, width = f4.shape[-2:]
        rows, across = [], []
        for pool, taps in zip(pools, branches, strict=True):
            cells = pool[1:](widened(pool[0](f4)))  # (N, C/4, s, s)
            bins = cells.shape[-1]
            parts = torch.einsum("nirc,oiyx->noryxc", cells, taps)
            parts = torch.einsum("noryxc,cxw->nrywo", parts, _shares(bins, width, cells))
            across.append(parts.flatten(1, 2))
            rows.append(_shares(bins, height, cells).flatten(0, 1))
        out = torch.einsum("ph,npwo->nhwo", torch.cat(rows), torch.cat(across, dim=1))
        return out.flatten(1, 2)


def _memory_format(backbone: Backbone, device: torch.device) -> torch.memory_format:
    """Channels last, but for nets of 3×3 convolutions alone on the CPU: those are faster without."""
    kernels = {conv.kernel_size for conv in backbone.modules() if isinstance(conv, nn.Conv2d)}
    if device.type == "cpu" and kernels == {(3, 3)}:
        return torch.contiguous_format
    return torch.channels_last


def _shares(bins: int, length: int, like: Tensor) -> Tensor:
    """How much each cell counts, by each tap, at each position: (bins, 3, length)."""
    spread = torch.eye(bins, dtype=like.dtype, device=like.device)
    spread = F.interpolate(spread[None], size=length, mode="linear", align_corners=True)[0]
    # A tap looks at a neighbour, and outside the map there is nothing.
    return F.pad(spread, (1, 1)).unfold(1, length, 1)
