"""Positions inside masks."""

import torch

from model.masked import MaskGrids


def test_positions_inside_come_first_in_order_and_one_row_stands_for_the_rest():
    mask = torch.zeros(3, 8, 8)
    mask[0, 2:4, 4:8] = 1  # positions 6 and 7 of a grid of 4 by 4
    mask[1] = 1
    fine, coarse = MaskGrids(mask[:1], [(4, 4), (2, 2)]).positions
    assert fine.index[0, :2].tolist() == [6, 7] and fine.inside.tolist() == [[1, 1, 0]]
    assert fine.count.tolist() == [2]
    assert coarse.inside.sum() == coarse.count.sum()

    (both,) = MaskGrids(mask, [(4, 4)]).positions
    # A full mask has no position outside to stand for.
    assert both.index.shape == (3, 16)
    assert both.count.tolist() == [2, 16, 0]
    assert both.inside.sum(1).tolist() == [2, 16, 0]
    assert both.only(slice(1, 3)).count.tolist() == [16, 0]

    tokens = torch.arange(32.0).view(1, 16, 2)
    assert fine.gather(tokens)[0, :2].tolist() == [[12, 13], [14, 15]]
