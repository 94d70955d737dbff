import json

import numpy as np
import pytest

from tests.util.coco_files import HEIGHT, WIDTH, box, region, run_lengths
from util.preparation.segmentations import AnnotatedImage, decompress
from util.runtime.errors import UserError


def draw(*segmentations, labels=None):
    labels = labels or range(1, len(segmentations) + 1)
    data = json.dumps([*zip(labels, labels, segmentations, strict=True)]).encode()
    return AnnotatedImage("a.jpg", HEIGHT, WIDTH, data, "a.json").draw("a.jpg")


def test_small_regions_stay_visible_whatever_their_order_and_kind():
    shapes = [(0, 0, 40, 40), (5, 5, 30, 30), (8, 8, 20, 20), (10, 10, 12, 12)]
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    for class_id, shape in enumerate(shapes, 1):
        expected[region(*shape) > 0] = class_id
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        kinds = [
            [box(*shapes[0])],
            run_lengths(region(*shapes[1]), True),
            run_lengths(region(*shapes[2]), False),
            [box(*shapes[3])],
        ]
        drawn = draw(*(kinds[k] for k in order), labels=[k + 1 for k in order])
        np.testing.assert_array_equal(drawn, expected)


def test_of_regions_of_one_size_the_later_is_on_top():
    assert draw([box(0, 0, 9, 9)], [box(0, 3, 9, 12)])[4, 5] == 2


@pytest.mark.parametrize("seed", range(5))
def test_both_run_length_codes_are_read_as_pycocotools_writes_them(seed):
    rng = np.random.RandomState(seed)
    mask = (rng.rand(HEIGHT, WIDTH) < [0, 0.01, 0.3, 0.99, 1][seed]).astype(np.uint8)
    for compressed in (False, True):
        np.testing.assert_array_equal(draw(run_lengths(mask, compressed)), mask)
    flat = run_lengths(mask, compressed=False)["counts"]
    assert decompress(run_lengths(mask, compressed=True)["counts"]) == flat


GOOD = run_lengths(region(3, 3, 9, 9), compressed=True)


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ("text", "neither polygons nor"),
        ([5], r"no list of x, y"),
        ([[1, 2, 3, 4, 5, 6, 7]], r"no list of x, y"),
        ([[1, 2, 3, 4, 5, 6], 7], "could not convert|inhomogeneous|sequence"),
        ([{"x": 1}], "something other than numbers"),
        ([["a", 1, 2, 3, 4, 5]], "could not convert"),
        ([[0, 0, 1e12, 0, 5, 5]], r"leaves the image of 64×48 pixels"),
        ([[0, 0, float("nan"), 0, 5, 5]], r"leaves the image"),
        ({**GOOD, "size": [WIDTH, HEIGHT]}, r"not that of the image, \[48, 64\]"),
        ({"counts": GOOD["counts"]}, "size"),
        ({"size": [HEIGHT, WIDTH]}, "do not add up to 48×64"),
        ({**GOOD, "counts": GOOD["counts"][:-2]}, "do not add up"),
        ({**GOOD, "counts": GOOD["counts"] + "é5"}, "do not add up"),
        ({**GOOD, "counts": ""}, "do not add up"),
        ({**GOOD, "counts": [HEIGHT * WIDTH + 5, -5]}, "do not add up"),
        ({**GOOD, "counts": [HEIGHT * WIDTH - 1]}, "do not add up"),
        ({**GOOD, "counts": [1.5, HEIGHT * WIDTH - 1.5]}, "do not add up"),
    ],
)
def test_a_malformed_segmentation_is_named(segmentation, message):
    with pytest.raises(UserError, match=rf"^a\.json: a\.jpg: annotation 2: .*{message}"):
        draw([box(1, 1, 5, 5)], segmentation)
