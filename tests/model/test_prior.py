"""Prototypes and the similarity prior."""

import pytest
import torch

from model import prior
from model.prior import masked_prototype, product_type, similarity_prior, unit_rows
from model.prior import widened as prior_widened


def test_tiles_change_nothing(monkeypatch):
    torch.manual_seed(0)
    query, support = torch.randn(2, 13, 8), unit_rows(torch.randn(2, 3, 7, 8))
    cosines = torch.einsum("bqc,bkmc->bkqm", unit_rows(query), support)
    expected = cosines.amax(-1).mean(1)
    torch.testing.assert_close(similarity_prior(query, support), expected)
    rows = []
    monkeypatch.setattr(
        prior, "widened", lambda part: rows.append(part.shape[1]) or prior_widened(part)
    )
    # Two queries with three times seven columns each; at least a row.
    for tile, expected_rows in (
        (84, [2] * 6 + [1]),
        (125, [2] * 6 + [1]),
        (126, [3] * 4 + [1]),
        (1, [1] * 13),
    ):
        rows.clear()
        monkeypatch.setattr(prior, "CPU_TILE", tile)
        torch.testing.assert_close(similarity_prior(query, support), expected)
        assert rows[::2] == rows[1::2] == expected_rows  # maxima and lengths


def test_bfloat16_moves_a_cosine_little():
    torch.manual_seed(0)
    query, support = torch.randn(2, 9, 2048), unit_rows(torch.randn(2, 3, 7, 2048))
    support[:, :, 0] = unit_rows(query[:, :3])  # The best matches of some positions are perfect.
    expected = similarity_prior(query, support)
    short, columns = query.bfloat16(), support.bfloat16()
    assert product_type(short) == torch.bfloat16
    actual = similarity_prior(short, columns)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=2**-8, atol=1e-3)
    assert not torch.equal(actual, similarity_prior(short.float(), columns.float()))
    # Supports that were encoded in another type are compared in float32.
    for one, other in ((short, support), (query, columns)):
        wide = similarity_prior(one.float(), other.float())
        assert torch.equal(similarity_prior(one, other), wide)


def test_a_row_of_zeros_is_a_cosine_of_zero():
    query = torch.tensor([[[-3.0, 0.0], [3.0, 0.0], [0.0, 0.0]]])
    support = torch.tensor([[[[1.0, 0.0]]]])
    assert similarity_prior(query, support).tolist() == [[-1, 1, 0]]
    outside = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    assert similarity_prior(query, outside).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_types_neither_overflow_nor_lose_length(dtype):
    feature = torch.full((1, 4, 64, 64), 60.0, dtype=dtype)
    prototype = masked_prototype(feature, torch.ones(1, 1, 64, 64))
    torch.testing.assert_close(prototype, torch.full((1, 4, 1, 1), 60.0))
    rows = unit_rows(torch.full((1, 2, 2048), 6e4, dtype=dtype))
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(1, 2))
