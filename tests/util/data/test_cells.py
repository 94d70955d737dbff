"""The size of classes on the network's grid is the one that the matching sees."""

import numpy as np
import pytest
import torch.nn.functional as F

from model import preprocess_mask
from util.data.cells import Grid
from util.data.loaders import backbone_grid


@pytest.mark.parametrize(
    ("backbone", "size", "cells"),
    [("resnet50", 473, 60), ("vgg16", 473, 30), ("resnet18", 97, 13), ("convnext_tiny", 80, 10)],
)
def test_the_grid_is_that_of_the_backbone(backbone, size, cells):
    assert backbone_grid(backbone, size) == Grid(size, cells, cells)


@pytest.mark.parametrize("grid", [Grid(473, 60, 60), Grid(97, 13, 13), Grid(84, 6, 6)])
def test_cells_are_those_of_the_matching(grid):
    mask = np.random.RandomState(0).choice([0, 1, 255], (200, 317)).astype(np.uint8)
    square = preprocess_mask(mask, grid.size)[None, None].double()
    expected = F.interpolate(square, size=(grid.height, grid.width), mode="nearest")[0, 0]
    assert np.array_equal(grid.cells(mask), expected.numpy())
