"""Sizes of classes on the network's grid: the number of its cells that a class covers."""

from typing import NamedTuple

import cv2
import numpy as np


class Grid(NamedTuple):
    """The grid of the backbone's last features, on which supports are matched.

    Attributes:
        size: Side of the square image, in pixels.
        height: Rows of the grid.
        width: Columns of the grid.
    """

    size: int
    height: int
    width: int

    def cells(self, mask: np.ndarray) -> np.ndarray:
        """Return the class of each cell, uint8 (height, width).

        The mask, uint8 (H, W), is resized to the image and then to the grid, both times with nearest
        neighbours, as it is for the matching. A class may therefore be in no cell.
        """
        square = cv2.resize(mask, (self.size, self.size), interpolation=cv2.INTER_NEAREST)
        rows, columns = (np.arange(n) * self.size // n for n in (self.height, self.width))
        return square[np.ix_(rows, columns)]
