"""Hierarchical self-attention on the query and, separately, on each support (paper, section 3.2).

The hierarchy is "decoupled": query and supports pass through the same weights, and only the matching
brings them together. Numbers in brackets are those of the equations in docs/method.md.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.mm import PatchEmbed

NORM_EPS = 1e-6


class MixFFN(nn.Module):
    """Feed-forward layer with a depthwise 3×3 convolution in its middle (SegFormer's Mix-FFN): (9).

    Args:
        channels: C, of the tokens.
        expansion: channels in the middle, per channel of the tokens.
        dropout: share of what is dropped in the middle and at the end.
    """

    def __init__(self, channels: int, expansion: int = 4, dropout: float = 0.1):
        super().__init__()
        hidden = channels * expansion
        self.expand = nn.Conv2d(channels, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.project = nn.Conv2d(hidden, channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Return tokens (B, h·w, C) of tokens (B, h·w, C) on a grid `size` = (h, w)."""
        x = to_map(tokens, size)
        x = self.dropout(F.gelu(self.depthwise(self.expand(x))))
        return to_tokens(self.dropout(self.project(x)))


class SelfAttention(nn.Module):
    """Multi-head attention whose keys and values come from a coarser grid: (8).

    Args:
        channels: C, of the tokens.
        heads: number of heads.
        reduction: side of the cells that become one key; 1 keeps the grid.
    """

    def __init__(self, channels: int, heads: int, reduction: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.project = nn.Linear(channels, channels, bias=False)
        self.reduction = reduction
        if reduction > 1:
            self.reduce = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Return tokens (B, h·w, C) of tokens (B, h·w, C) on a grid `size` = (h, w)."""
        source = tokens
        if self.reduction > 1:
            source = self.norm(to_tokens(self.reduce(to_map(tokens, size))))
        query = split_heads(self.query(tokens), self.heads)
        key = split_heads(self.key(source), self.heads)
        value = split_heads(self.value(source), self.heads)
        scale = 1 / (query.shape[-1] ** 0.5 + 1e-9)
        out = F.scaled_dot_product_attention(query, key, value, scale=scale)
        return self.project(merge_heads(out))


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and Mix-FFN, each with a residual connection: (7).

    Args:
        channels, heads, reduction: see `SelfAttention`.
        dropout: share of what is dropped after the attention and in the Mix-FFN.
    """

    def __init__(self, channels: int, heads: int, reduction: int, dropout: float = 0.1):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.attention = SelfAttention(channels, heads, reduction)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.ffn = MixFFN(channels, dropout=dropout)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Return tokens (B, h·w, C) of tokens (B, h·w, C) on a grid `size` = (h, w)."""
        tokens = tokens + self.dropout(self.attention(self.norm1(tokens), size))
        return tokens + self.ffn(self.norm2(tokens), size)


class HierarchyStage(nn.Module):
    """Patch embedding, two transformer layers and LayerNorm.

    Args:
        channels, heads, reduction: see `SelfAttention`.
        kernel: side of the patches.
        stride: distance between the patches.
    """

    def __init__(self, channels: int, heads: int, reduction: int, kernel: int, stride: int):
        super().__init__()
        self.embed = PatchEmbed(
            channels,
            channels,
            kernel_size=kernel,
            stride=stride,
            padding=kernel // 2,
            norm_cfg={"type": "LN", "eps": NORM_EPS},
        )
        self.layers = nn.ModuleList(TransformerLayer(channels, heads, reduction) for _ in range(2))
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, ⌈h/stride⌉, ⌈w/stride⌉) of x (B, C, h, w)."""
        tokens, size = self.embed(x)
        for layer in self.layers:
            tokens = layer(tokens, size)
        return to_map(self.norm(tokens), size)


class Hierarchy(nn.Module):
    """Three stages, each on half the grid of the one before.

    Args:
        channels: C, of all maps.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.stages = nn.ModuleList(
            HierarchyStage(channels, heads, reduction, kernel, stride)
            for heads, reduction, kernel, stride in ((2, 4, 1, 1), (4, 2, 3, 2), (8, 1, 3, 2))
        )

    def grids(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the grid of each stage for features of `size` = (h, w)."""
        height, width = size
        return [(-(-height // 2**i), -(-width // 2**i)) for i in range(len(self.stages))]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return one map per stage, finest first, of features (B, C, h, w)."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def to_tokens(x: Tensor) -> Tensor:
    """Return a map (B, C, h, w) as tokens (B, h·w, C)."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Return tokens (B, h·w, C) as a map (B, C, h, w), with `size` = (h, w)."""
    return tokens.transpose(1, 2).unflatten(2, tuple(size))


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """Return tokens (B, n, C) as (B, heads, n, C/heads)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(tokens: Tensor) -> Tensor:
    """Return tokens (B, heads, n, d) as (B, n, heads·d)."""
    return torch.flatten(tokens.transpose(1, 2), 2)
