import os
from typing import get_args

import cv2
import numpy as np
import pytest

from util.config import Config
from util.data.annotations import ANNOTATIONS, DISK, SHORTEST, STROKE, annotate, annotation_stream


def stream(seed=0):
    return annotation_stream("JPEGImages/a.jpg", 3, seed)


@pytest.fixture
def mask():
    """An L, a ring and a single pixel on 120 × 160, with an ignored band across the L."""
    mask = np.zeros((120, 160), np.uint8)
    mask[10:90, 10:30] = mask[70:90, 10:80] = 1
    cv2.circle(mask, (120, 50), 30, 1, 12)
    mask[110, 150] = 1
    mask[40:44, 5:60] = 255
    return mask


def test_the_setting_offers_these_annotations():
    assert get_args(Config.model_fields["ann_type"].annotation) == tuple(ANNOTATIONS)


def test_a_box_fills_each_component_and_ignored_pixels_stay_on_top(mask):
    expected = np.zeros_like(mask)
    expected[10:40, 10:30] = 1
    expected[44:90, 10:80] = 1
    expected[14:87, 84:157] = 1
    expected[110, 150] = 1
    expected[mask == 255] = 255
    assert (annotate(mask, "bbox", stream()) == expected).all()
    assert (expected[40:44, 5:60] == 255).all()
    # Components that touch at a corner are one.
    assert (annotate(np.eye(6, dtype=np.uint8), "bbox", stream()) == 1).all()


@pytest.mark.parametrize("ann_type", ["scribble", "point"])
@pytest.mark.parametrize("seed", range(3))
def test_every_component_is_marked_inside_only(mask, ann_type, seed):
    before = mask.copy()
    annotated = annotate(mask, ann_type, stream(seed))
    assert annotated.dtype == np.uint8 and (mask == before).all()
    assert ((annotated == 1) <= (mask == 1)).all()
    assert ((annotated == 255) == (mask == 255)).all()
    count, labels = cv2.connectedComponents((mask == 1).astype(np.uint8), connectivity=8)
    assert count == 5
    for number in range(1, count):
        assert (annotated[labels == number] == 1).any()
    assert (annotated == 1).sum() < (mask == 1).sum()


def test_a_point_is_a_disk_about_a_pixel_of_the_object():
    mask = np.ones((200, 100), np.uint8)
    radius = round(DISK * 200)
    centres = set()
    for seed in range(40):
        y, x = np.nonzero(annotate(mask, "point", stream(seed)))
        height, width = np.ptp(y) + 1, np.ptp(x) + 1
        assert height <= 2 * radius + 1 and width <= 2 * radius + 1
        if height == width == 2 * radius + 1:
            assert len(x) == pytest.approx(np.pi * (radius + 0.5) ** 2, rel=0.05)
            centres.add((int(y.mean()), int(x.mean())))
    assert len(centres) > 20
    assert np.ptp([y for y, _ in centres]) > 100 and np.ptp([x for _, x in centres]) > 40


def test_a_scribble_runs_along_the_middle():
    mask = np.zeros((100, 300), np.uint8)
    mask[30:71, 20:280] = 1
    pen = round(STROKE * 300)
    lengths = []
    for seed in range(20):
        annotated = annotate(mask, "scribble", stream(seed))
        assert cv2.connectedComponents(annotated)[0] == 2  # the background and one stroke
        inner = annotated[:, 60:240]  # the ends of the skeleton run into the corners
        rows = np.nonzero(inner)[0]
        assert 50 - pen - 2 <= rows.min() and rows.max() <= 50 + pen + 2
        lengths.append(np.ptp(np.nonzero(annotated)[1]) + 1 - 2 * pen)
    assert min(lengths) >= SHORTEST * 220 and max(lengths) <= 260
    assert len(set(lengths)) > 10


def test_a_scribble_follows_the_longest_way_through():
    """A bar with a stub on it: no stroke turns into the stub, nor ends where the stub begins."""
    mask = np.zeros((120, 300), np.uint8)
    mask[60:81, 10:290] = 1
    mask[45:60, 140:161] = 1
    lengths = []
    for seed in range(20):
        y, x = np.nonzero(annotate(mask, "scribble", stream(seed)))
        assert y.min() >= 58
        lengths.append(np.ptp(x))
    assert min(lengths) > SHORTEST * 240 and max(lengths) > 200


def test_a_scribble_keeps_to_the_middle_of_slanted_shapes_too():
    mask = np.zeros((240, 240), np.uint8)
    corners = np.array([[20, 60], [60, 20], [220, 180], [180, 220]], np.int32)
    cv2.fillPoly(mask, [corners], 1)
    pen = round(STROKE * 240)
    for seed in range(10):
        y, x = np.nonzero(annotate(mask, "scribble", stream(seed)))
        inner = (x + y > 140) & (x + y < 340)
        assert np.abs(x - y)[inner].max() <= 2**0.5 * pen + 3


def test_the_same_image_class_and_seed_give_the_same_annotation(mask):
    name = os.fsdecode(b"caf\xe9")  # A file name need not be UTF-8.
    for ann_type in ("scribble", "point"):
        first = annotate(mask, ann_type, annotation_stream(name, 3, 510))
        assert (first == annotate(mask, ann_type, annotation_stream(name, 3, 510))).all()
        for other in ((os.fsdecode(b"caf\xea"), 3, 510), (name, 4, 510), (name, 3, 365)):
            assert (first != annotate(mask, ann_type, annotation_stream(*other))).any()


@pytest.mark.parametrize("ann_type", ANNOTATIONS)
def test_masks_without_the_class_and_full_ones(mask, ann_type):
    assert ann_type != "mask" or (annotate(mask, "mask", stream()) == mask).all()
    empty = np.zeros((20, 30), np.uint8)
    empty[3:5] = 255
    assert (annotate(empty, ann_type, stream()) == empty).all()
    assert (annotate(np.ones((20, 30), np.uint8), ann_type, stream()) == 1).any()
