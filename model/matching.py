"""Matching of the query with the masked supports, and its correlation map (paper, section 3.3).

Only support positions inside the masks take part, see `model.masked`. A row of zeros among keys and
values adds nothing, since its column of the attention is multiplied by a value of zero. Numbers in
brackets are those of the equations in docs/method.md.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.hierarchy import (
    NORM_EPS,
    MixFFN,
    merge_heads,
    split_heads,
    to_map,
    to_tokens,
)
from model.masked import MaskedPositions, cat_rows
from model.mm import ConvModule
from model.precision import full_precision, widened
from model.query_softmax import query_softmax_attention


class SupportTokens(NamedTuple):
    """Keys and values of supports that one stage matches the query with, in float32 or wider.

    `MatchingLayer.encode_support` returns (N, ...) instead of (B, K, ...).

    Attributes:
        keys: (B, K, m, C), of unit length per head; rows of zeros pad.
        values: (B, K, m, C); rows of zeros pad.
        key_sum: (B, K, C), sum of the keys.
        count: (B, K), number of positions inside the mask.
    """

    keys: Tensor
    values: Tensor
    key_sum: Tensor
    count: Tensor  # type: ignore[assignment]  # hides the method of tuples

    @classmethod
    def stack(cls, samples: Sequence["SupportTokens"], dim: int) -> "SupportTokens":
        """Return the tokens of all samples, put together as `model.parts.Tokens` states."""
        keys, values, *sums = zip(*samples, strict=True)
        rows = (cat_rows(tensors, dim) for tensors in (keys, values))
        return cls(*rows, *(torch.cat(tensors, dim) for tensors in sums))

    def trimmed(self, rows: int) -> "SupportTokens":
        """Return the tokens of one support, (1, 1, ...), of whose rows only the first are needed."""
        return self._replace(keys=self.keys[:, :, :rows], values=self.values[:, :, :rows])


class MatchingAttention(nn.Module):
    """Cosine attention from the query to the supports, normalised over the *query* positions: (10), (11).

    Args:
        channels: C.
        heads: number of heads.
        temperature: divisor of the cosines, at least 1e-6.

    Raises:
        ValueError: the temperature is below that, where float32 cannot tell cosines apart any more.
    """

    def __init__(self, channels: int, heads: int = 2, temperature: float = 0.1):
        super().__init__()
        if not temperature >= 1e-6:
            raise ValueError(f"temperature {temperature} is not at least 1e-6")
        self.heads = heads
        self.temperature = temperature
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.project = nn.Linear(channels, channels, bias=False)

    def encode_support(self, support: Tensor, positions: MaskedPositions) -> SupportTokens:
        """Return keys and values of support tokens (N, m, C) gathered at N masks' positions."""
        inside = positions.inside[..., None]
        keys, values = widened(self.key(support)), widened(self.value(support))
        keys = F.normalize(keys.unflatten(-1, (self.heads, -1)), dim=-1).flatten(-2) * inside
        return SupportTokens(keys, values * inside, keys.sum(1), positions.count)

    def forward(self, query: Tensor, support: SupportTokens) -> tuple[Tensor, Tensor]:
        """Match query tokens with the supports.

        Args:
            query: tokens (B, n, C).
            support: tokens of K supports for each query.

        Returns:
            What the query gathers from the supports, (B, n, C), and the correlation map (B, n): the
            mean of cosine/temperature over the support positions inside the masks and over the heads.
            With empty masks both are zero.
        """
        query = self.query(query)
        with full_precision(query.device):
            q = F.normalize(split_heads(widened(query), self.heads), dim=-1)  # (B, heads, n, d)
            q = q / self.temperature
            k = split_heads(support.keys.flatten(1, 2), self.heads)  # (B, heads, K·m, d)
            v = split_heads(support.values.flatten(1, 2), self.heads)
            largest = 1 / self.temperature
            gathered = merge_heads(query_softmax_attention(q, k, v, largest))  # (11)

            # (14) is linear in the keys: see docs/fast_path.md, "The correlation map".
            mean_key = support.key_sum.sum(1) / (support.count.sum(1)[:, None] + 1e-9)  # (B, C)
            correlation = (merge_heads(q) @ mean_key[:, :, None]).squeeze(-1) / self.heads
        return self.project(gathered), correlation


class MatchingLayer(nn.Module):
    """Matching attention and Mix-FFN, then fusion with the prior: (10)–(14), one per stage.

    Args:
        channels: C, of the stage's maps.
        dropout: share of what is dropped after the attention and in the Mix-FFN.
        temperature: divisor of the cosines, see `MatchingAttention`.
    """

    def __init__(self, channels: int, dropout: float = 0.1, temperature: float = 0.1):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.attention = MatchingAttention(channels, temperature=temperature)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.ffn = MixFFN(channels, dropout=dropout)
        self.fuse = ConvModule(channels + 2, channels, 3, padding=1, norm_cfg={"type": "BN"})

    def encode_support(self, support: Tensor, positions: MaskedPositions) -> SupportTokens:
        """Return the tokens of support maps (N, C, h, w) at the positions inside N masks."""
        gathered = positions.gather(to_tokens(support))
        return self.attention.encode_support(self.norm1(gathered), positions)

    def forward(
        self, query: Tensor, support: SupportTokens, prior: Tensor, scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Match one stage of the query with the supports.

        Args:
            query: maps (B, C, h, w).
            support: tokens of K supports for each query.
            prior: (B, 2, h, w).
            scale: γ of (12), the factor of what is gathered from the supports.

        Returns:
            The matched map (B, C, h, w) and the correlation map (B, h, w).
        """
        height, width = query.shape[-2:]
        size = height, width
        query = to_tokens(query)
        gathered, correlation = self.attention(self.norm1(query), support)
        query = query + self.dropout(gathered * scale)  # (12)
        query = to_map(query + self.ffn(self.norm2(query), size), size)
        matched = self.fuse(torch.cat([query, prior], dim=1))  # (13)
        return matched, correlation.unflatten(1, size)
