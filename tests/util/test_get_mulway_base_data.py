import os

import cv2
import numpy as np

from util.data.folds import Fold
from util.data.images import read_mask
from util.get_mulway_base_data import write_base_labels
from util.runtime.files import write_atomically


def test_labels_of_masks_of_any_file_name_are_written_once(tmp_path):
    """cv2.imread of OpenCV 5 ends the process at a name that is not UTF-8."""
    name = os.fsdecode(b"mask \xe9.png")
    mask = np.arange(6, dtype=np.uint8).reshape(2, 3)
    write_atomically(tmp_path / name, png(mask))
    fold, labels = Fold(base=(1, 3, 5), novel=(2, 4)), str(tmp_path / "labels")
    for expected in (1, 0):
        arguments = (str(tmp_path), [("image.jpg", name)], fold, labels)
        assert write_base_labels(*arguments, progress=False) == expected
    stored = read_mask(os.path.join(labels, name))
    np.testing.assert_array_equal(stored, [[0, 1, 0], [2, 0, 3]])
    write_atomically(os.path.join(labels, name), b"damaged")
    assert write_base_labels(*arguments, progress=False) == 1


def png(mask):
    return cv2.imencode(".png", mask)[1].tobytes()
