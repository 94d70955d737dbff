"""Attention normalised over the queries, computed in tiles of its columns, and its gradient."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of one tile of the attention: few enough to stay in a cache, many enough to fill a GPU.
CPU_TILE = 2**20
GPU_TILE = 2**26
# Exponentials of scores up to this size, and their sums, are far from the limits of float32.
SAFE_SCORE = 40.0


def query_softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, largest: float = float("inf")
) -> Tensor:
    """Return softmax over n of (query @ keyᵀ), times value, with memory linear in n + m.

    Columns are independent, so they are computed in tiles, and computed again in the backward pass;
    see docs/fast_path.md, "Matching in tiles".

    Args:
        query: (B, heads, n, d).
        key: (B, heads, m, d).
        value: (B, heads, m, d).
        largest: bound of the scores' size. Where it is small enough, no maximum is subtracted from
            the scores before the exponential, which saves time and changes nothing but rounding.

    Returns:
        (B, heads, n, d).
    """
    shape = query.shape
    inputs = (tensor.flatten(0, 1) for tensor in (query, key, value))
    return _QuerySoftmax.apply(*inputs, largest <= SAFE_SCORE).view(shape)


class _QuerySoftmax(torch.autograd.Function):
    """The attention of (B·heads, rows, d), with its gradient."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, small: bool) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.small = small
        out = torch.zeros_like(query)
        for start, stop in _tiles(query, key):
            attention, total = _exponentials(query, key[:, start:stop], small)
            out.baddbmm_(attention, value[:, start:stop] / total.transpose(1, 2))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value = ctx.saved_tensors
        grad_query, grad_key, grad_value = map(torch.zeros_like, (query, key, value))
        for start, stop in _tiles(query, key):
            k, v = key[:, start:stop], value[:, start:stop]
            attention, total = _exponentials(query, k, ctx.small)
            attention /= total
            dv = attention.transpose(1, 2) @ grad
            scores = grad @ v.transpose(1, 2)
            scores -= (dv * v).sum(-1)[:, None]
            scores *= attention
            grad_value[:, start:stop] = dv
            grad_key[:, start:stop] = scores.transpose(1, 2) @ query
            grad_query.baddbmm_(scores, k)
        return grad_query, grad_key, grad_value, None


def _exponentials(query: Tensor, key: Tensor, small: bool) -> tuple[Tensor, Tensor]:
    """Return exp(query @ keyᵀ), (N, n, columns), and its sums over the queries, (N, 1, columns).

    Each column is multiplied by a factor of its own unless the scores are `small`.
    """
    scores = query @ key.transpose(1, 2)
    if not small:
        scores -= scores.amax(1, keepdim=True)
    exponentials = scores.exp_()
    return exponentials, exponentials.sum(1, keepdim=True)


def _tiles(query: Tensor, key: Tensor) -> list[tuple[int, int]]:
    """Return first and last column (exclusive) of each tile."""
    elements = GPU_TILE if query.is_cuda else CPU_TILE
    columns = max(1, elements // (query.shape[0] * query.shape[1]))
    m = key.shape[1]
    return [(start, min(start + columns, m)) for start in range(0, m, columns)]
