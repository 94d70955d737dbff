"""Matching of the query with the masked supports, and its correlation map (paper, section 3.3)."""

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
from model.mm import ConvModule


class MatchingAttention(nn.Module):
    """Cosine attention from the query to the supports, normalised over the *query* positions.

    Args:
        channels: C.
        heads: number of heads.
        temperature: divisor of the cosines.
    """

    def __init__(self, channels: int, heads: int = 2, temperature: float = 0.1):
        super().__init__()
        self.heads = heads
        self.temperature = temperature
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.project = nn.Linear(channels, channels, bias=False)

    def forward(self, query: Tensor, support: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Match.

        Args:
            query: tokens (B, n, C).
            support: tokens of all supports together (B, m, C).
            mask: (B, m), 1 where the support shows the class, else 0.

        Returns:
            What the query gathers from the supports, (B, n, C), and the correlation map (B, n): the
            mean of cosine/temperature over the masked-in support positions and the heads. With an
            empty mask both are zero.
        """
        q = F.normalize(split_heads(self.query(query), self.heads), dim=-1)  # (B, heads, n, d)
        k = F.normalize(split_heads(self.key(support), self.heads), dim=-1)  # (B, heads, m, d)
        v = split_heads(self.value(support), self.heads)
        mask = mask[:, None, :, None]  # (B, 1, m, 1)

        attention = (q @ k.transpose(-1, -2) / self.temperature).softmax(dim=-2)
        # Masking the values is masking the columns: nothing is renormalised over the supports.
        gathered = self.project(merge_heads(attention @ (v * mask)))

        # The mean of cosines is the cosine with the mean key: linear in the number of positions.
        mean_key = (k * mask).sum(-2, keepdim=True) / (mask.sum(-2, keepdim=True) + 1e-9)
        correlation = (q * mean_key).sum(-1).mean(1) / self.temperature
        return gathered, correlation


class MatchingLayer(nn.Module):
    """Matching attention and Mix-FFN, then fusion with the prior; one per stage of the hierarchy."""

    def __init__(self, channels: int, dropout: float = 0.1):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.attention = MatchingAttention(channels)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.ffn = MixFFN(channels, dropout=dropout)
        self.fuse = ConvModule(channels + 2, channels, 3, padding=1, norm_cfg={"type": "BN"})

    def forward(
        self, query: Tensor, support: Tensor, mask: Tensor, prior: Tensor, scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Match one stage.

        Args:
            query: (B, C, h, w).
            support: (B, K, C, h, w).
            mask: (B, K, h, w), 1 where the support shows the class, else 0.
            prior: (B, 2, h, w).
            scale: factor of what is gathered from the supports.

        Returns:
            The fused map (B, C, h, w) and the correlation map (B, h, w).
        """
        size = query.shape[-2:]
        query = to_tokens(query)
        support = to_tokens(support.transpose(1, 2).flatten(2, 3))  # (B, K·h·w, C)
        gathered, correlation = self.attention(
            self.norm1(query), self.norm1(support), mask.flatten(1)
        )
        query = query + self.dropout(gathered * scale)
        query = to_map(query + self.ffn(self.norm2(query), size), size)
        return self.fuse(torch.cat([query, prior], dim=1)), correlation.unflatten(1, size)
