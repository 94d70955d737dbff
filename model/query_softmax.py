"""Attention normalised over the queries, in tiles of its columns, in both directions."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of one tile of the attention: few enough to stay in a cache, many enough to fill a GPU.
CPU_TILE = 2**20
GPU_TILE = 2**26


def query_softmax_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax over n of (query @ keyᵀ), times value, with memory linear in n + m.

    A column's softmax needs no other column, so tiles of columns are independent, and each is
    computed anew in the backward pass. The exponentials are taken without subtracting a maximum: the
    products have to stay below 80 in size (cosines over the temperature reach 10).

    Args:
        query: (B, heads, n, d).
        key: (B, heads, m, d).
        value: (B, heads, m, d).

    Returns:
        (B, heads, n, d).
    """
    shape = query.shape
    out = _QuerySoftmax.apply(*(tensor.flatten(0, 1) for tensor in (query, key, value)))
    return out.view(shape)


class _QuerySoftmax(torch.autograd.Function):
    """On (B·heads, rows, d)."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        out = torch.zeros_like(query)
        for start, stop in _tiles(query, key):
            attention, total = _exponentials(query, key[:, start:stop])
            out.baddbmm_(attention, value[:, start:stop] / total.transpose(1, 2))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = ctx.saved_tensors
        grad_query, grad_key, grad_value = map(torch.zeros_like, (query, key, value))
        for start, stop in _tiles(query, key):
            k, v = key[:, start:stop], value[:, start:stop]
            attention, total = _exponentials(query, k)
            attention /= total
            dv = attention.transpose(1, 2) @ grad
            scores = grad @ v.transpose(1, 2)
            scores -= (dv * v).sum(-1)[:, None]
            scores *= attention
            grad_value[:, start:stop] = dv
            grad_key[:, start:stop] = scores.transpose(1, 2) @ query
            grad_query.baddbmm_(scores, k)
        return grad_query, grad_key, grad_value


def _exponentials(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """exp(query @ keyᵀ), (N, n, columns), and its sums over the queries, (N, 1, columns)."""
    exponentials = (query @ key.transpose(1, 2)).exp_()
    return exponentials, exponentials.sum(1, keepdim=True)


def _tiles(query: Tensor, key: Tensor) -> list[tuple[int, int]]:
    elements = GPU_TILE if query.is_cuda else CPU_TILE
    columns = max(1, elements // (query.shape[0] * query.shape[1]))
    m = key.shape[1]
    return [(start, min(start + columns, m)) for start in range(0, m, columns)]
