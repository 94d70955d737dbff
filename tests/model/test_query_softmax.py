"""Attention normalised over the queries, against the dense form."""

import pytest
import torch

from model import query_softmax
from model.query_softmax import query_softmax_attention


def dense(query, key, value):
    return (query @ key.transpose(-1, -2)).softmax(dim=-2) @ value


def random_tensors(dtype=torch.float64, queries=7, keys=11):
    torch.manual_seed(0)
    shapes = ((2, 3, queries, 4), (2, 3, keys, 4), (2, 3, keys, 4))
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.fixture(params=[2**20, 100, 1], ids=["one tile", "tiles of two columns", "single columns"])
def tiles(request, monkeypatch):
    monkeypatch.setattr(query_softmax, "CPU_TILE", request.param)


@pytest.mark.parametrize(("elements", "columns"), [(84, 2), (125, 2), (126, 3), (1, 1), (999, 11)])
def test_a_tile_has_as_many_columns_as_fit(elements, columns, monkeypatch):
    monkeypatch.setattr(query_softmax, "CPU_TILE", elements)
    # Six heads of all episodes with seven queries each.
    found = query_softmax._tiles(torch.empty(6, 7, 4), torch.empty(6, 11, 4))
    assert found == [(n, min(n + columns, 11)) for n in range(0, 11, columns)]


@pytest.mark.parametrize("largest", [query_softmax.SAFE_SCORE, 41.0])
def test_output_and_gradients_are_those_of_the_dense_form(tiles, largest):
    tensors = random_tensors()
    out, expected = query_softmax_attention(*tensors, largest), dense(*tensors)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    gradients = torch.autograd.grad((out * weight).sum(), tensors)
    torch.testing.assert_close(gradients, torch.autograd.grad((expected * weight).sum(), tensors))


def test_gradients_are_those_of_differences(tiles):
    tensors = random_tensors(queries=3, keys=5)
    assert torch.autograd.gradcheck(query_softmax_attention, (*tensors, query_softmax.SAFE_SCORE))
    assert torch.autograd.gradcheck(query_softmax_attention, tensors)


def test_gradients_of_gradients_are_refused():
    tensors = random_tensors()
    (gradient,) = torch.autograd.grad(
        query_softmax_attention(*tensors).sin().sum(), tensors[0], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_rows_of_zeros_add_nothing():
    query, key, value = random_tensors()
    zeros = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    padded = query_softmax_attention(
        query, torch.cat([key, zeros], dim=2), torch.cat([value, zeros], dim=2)
    )
    torch.testing.assert_close(padded, query_softmax_attention(query, key, value))


@pytest.mark.parametrize("largest", [10.0, query_softmax.SAFE_SCORE, 1e6])
def test_the_largest_scores_do_not_overflow(largest):
    query = torch.full((1, 1, 10_000, 1), largest, requires_grad=True)
    key, value = (torch.ones(1, 1, 3, 1, requires_grad=True) for _ in range(2))
    out = query_softmax_attention(query, key, value, largest)
    torch.testing.assert_close(out, torch.full_like(out, 3e-4))
    out.sum().backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in (query, key, value))


def test_what_is_kept_for_the_backward_pass_is_linear():
    query, key, value = random_tensors(queries=50, keys=60)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel()) or t, lambda t: t
    ):
        query_softmax_attention(query, key, value)
    assert sum(sizes) <= query.numel() + key.numel() + value.numel()
