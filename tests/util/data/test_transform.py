import random

import cv2
import numpy as np
import pytest
import torch

from model.preprocessing import MEAN, STD
from tests.util.data.scripted import Scripted
from util.data.transform import (
    Compose,
    EvalTransform,
    base_train_transform,
    random_blur,
    random_crop,
    random_flip,
    random_rotate,
    random_scale,
    train_transform,
)


@pytest.fixture
def image():
    return np.random.RandomState(0).uniform(0, 255, (40, 60, 3)).astype(np.float32)


@pytest.fixture
def label():
    return np.random.RandomState(1).choice([0, 1, 255], (40, 60)).astype(np.uint8)


def test_scale_uses_one_factor_for_all(image, label):
    rng = Scripted(0.5)
    scaled, (first, second) = random_scale((0.5, 1.5), rng, image, [label, label])
    np.testing.assert_array_equal(scaled, image)
    assert random_scale((0.5, 1.5), Scripted(0.0), image, [label])[0].shape == (20, 30, 3)
    assert first.shape == second.shape == (40, 60)
    assert rng.asked == ["random"]


def test_rotation_draws_its_angle_only_if_it_rotates(image, label):
    rng = Scripted(0.5)
    kept, _ = random_rotate((-10, 10), rng, image, [label])
    assert kept is image and rng.asked == ["random"]
    rng = Scripted(0.49, 1.0)
    turned, (turned_label,) = random_rotate((-90, 90), rng, image, [label])
    assert rng.asked == ["random", "random"]
    # a quarter turn of a 60×40 image leaves the left and right margins uncovered
    np.testing.assert_allclose(turned[20, 2], MEAN, rtol=1e-6)
    assert turned_label[20, 2] == 255
    matrix = cv2.getRotationMatrix2D((30, 20), 90, 1)
    np.testing.assert_array_equal(
        turned_label,
        cv2.warpAffine(label, matrix, (60, 40), flags=cv2.INTER_NEAREST, borderValue=255),
    )


def test_blur_leaves_labels_and_flip_mirrors_all(image, label):
    blurred, (same,) = random_blur(Scripted(0.1), image, [label])
    np.testing.assert_array_equal(blurred, cv2.GaussianBlur(image, (5, 5), 0))
    assert same is label
    assert random_blur(Scripted(0.5), image, [])[0] is image
    flipped, (flipped_label,) = random_flip(Scripted(0.1), image, [label])
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    np.testing.assert_array_equal(flipped_label, label[:, ::-1])
    assert random_flip(Scripted(0.5), image, [])[0] is image


def test_train_transform_draws_in_the_published_order(image, label):
    # scale, rotate?, angle, blur?, flip?
    rng = Scripted(0.0, 0.2, 0.75, 0.9, 0.4)
    tensor, mask, other = train_transform((33, 41), (0.5, 1.5), (-10, 10))(rng, image, label, label)
    assert rng.numbers == []
    assert tensor.shape == (3, 33, 41) and tensor.dtype == torch.float32
    expected = cv2.resize(image, (30, 20), interpolation=cv2.INTER_LINEAR)
    matrix = cv2.getRotationMatrix2D((15, 10), 5, 1)
    expected = cv2.warpAffine(expected, matrix, (30, 20), flags=cv2.INTER_LINEAR, borderValue=MEAN)
    expected = cv2.resize(expected[:, ::-1], (41, 33), interpolation=cv2.INTER_LINEAR)
    expected = (expected - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(tensor.permute(1, 2, 0), expected, atol=1e-5)
    assert mask.shape == (33, 41) and mask.dtype == torch.uint8
    assert torch.equal(mask, other)
    assert set(mask.unique().tolist()) <= {0, 1, 255}


def test_the_module_random_is_a_stream(image):
    random.seed(3)
    (ours,) = train_transform((20, 20), (0.9, 1.1), (-10, 10))(random, image)
    (theirs,) = train_transform((20, 20), (0.9, 1.1), (-10, 10))(random.Random(3), image)
    assert torch.equal(ours, theirs)


def test_normalisation():
    image = np.array([[MEAN, np.add(MEAN, STD)]], np.float32)
    (tensor,) = Compose([], (1, 2))(None, image)
    np.testing.assert_allclose(tensor[:, 0, 0], 0, atol=1e-6)
    np.testing.assert_allclose(tensor[:, 0, 1], 1, atol=1e-6)


def test_an_image_is_written_where_there_is_a_place_for_it(image, label):
    transform = EvalTransform((33, 41))
    out = torch.zeros(2, 3, *transform.size)
    tensor, _ = transform(None, image, label, out=out[1])
    assert tensor.data_ptr() == out[1].data_ptr()
    assert torch.equal(out[1], transform(None, image)[0]) and not out[0].any()


def test_crop_of_a_larger_image_is_a_window(image, label):
    rng = Scripted(3, 7)
    crop, (label_crop,) = random_crop((32, 33), rng, image, [label])
    assert rng.asked == [(0, 8), (0, 27)]
    np.testing.assert_array_equal(crop, image[3:35, 7:40])
    np.testing.assert_array_equal(label_crop, label[3:35, 7:40])


def test_crop_pads_a_smaller_image_evenly(image, label):
    rng = Scripted(0, 10)
    crop, (label_crop,) = random_crop((43, 50), rng, image, [label])
    assert rng.asked == [(0, 0), (0, 10)]
    np.testing.assert_array_equal(crop[1:41], image[:, 10:])
    np.testing.assert_allclose(crop[[0, 41, 42]], np.broadcast_to(MEAN, (3, 50, 3)), rtol=1e-6)
    np.testing.assert_array_equal(label_crop[1:41], label[:, 10:])
    assert (label_crop[[0, 41, 42]] == 255).all()


def test_base_train_transform_keeps_the_aspect(image, label):
    rng = Scripted(0.5, 0.5, 0.5, 0.5, 4, 5)
    tensor, mask = base_train_transform((33, 33), (0.5, 1.5), (-10, 10))(rng, image, label)
    assert rng.numbers == []
    np.testing.assert_array_equal(mask, label[4:37, 5:38])
    np.testing.assert_array_equal(tensor, Compose([], (33, 33))(None, image[4:37, 5:38])[0])


def test_eval_transform_resizes_without_drawing(image, label):
    tensor, mask = EvalTransform((33, 33))(None, image, label)
    np.testing.assert_array_equal(
        mask, cv2.resize(label, (33, 33), interpolation=cv2.INTER_NEAREST)
    )
    assert tensor.shape == (3, 33, 33)


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((473, 473), (473, 473)),
        ((300, 400), (300, 400)),
        ((500, 375), (472, 352)),
        ((375, 500), (352, 472)),
        ((474, 474), (472, 472)),
        ((2000, 10), (472, 8)),
    ],
)
def test_fitted_sizes(size, fitted):
    assert EvalTransform((473, 473), resized=False).fitted_size(*size) == fitted
    assert EvalTransform((473, 473)).fitted_size(*size) == (473, 473)


def test_eval_transform_without_resizing_pastes_top_left(image, label):
    tensor, mask = EvalTransform((65, 65), resized=False)(None, image, label)
    np.testing.assert_array_equal(mask[:40, :60], label)
    assert (mask[40:] == 255).all() and (mask[:, 60:] == 255).all()
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    torch.testing.assert_close(tensor[:, 64, 64], black)
    np.testing.assert_array_equal(tensor[:, :40, :60], Compose([], (40, 60))(None, image)[0])
    tensor, mask = EvalTransform((33, 33), resized=False)(None, image, label)
    assert tensor.shape == (3, 33, 33)
    # 60×40 → 33×22 → 32×16
    expected = cv2.resize(label, (32, 16), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(mask[:16, :32], expected)
    assert (mask[16:] == 255).all() and (mask[:, 32:] == 255).all()
