"""From pictures to the model's input, as docs/model.md shows it."""

import re

import numpy as np
import pytest
import torch

from model import preprocess_image, preprocess_mask
from tests.paths import ROOT
from util.data.transform import EvalTransform


def random_picture(height=31, width=45):
    rng = np.random.default_rng(0)
    return (
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        rng.choice(np.array([0, 1, 255], np.uint8), (height, width)),
    )


@pytest.mark.parametrize("size", [(33, 33), (41, 25)])
def test_the_input_is_that_of_the_test_protocol(size):
    image, mask = random_picture()
    expected_image, expected_mask = EvalTransform(size)(None, image, mask)
    assert torch.equal(preprocess_image(image, size), expected_image)
    assert torch.equal(preprocess_mask(mask, size), expected_mask.long())
    if size[0] == size[1]:
        assert torch.equal(preprocess_image(image, size[0]), expected_image)


def test_channels_are_rgb_and_normalised_by_the_statistics_of_imagenet():
    image = np.broadcast_to(np.array([200, 100, 50], np.uint8), (9, 9, 3))
    statistics = zip((200, 100, 50), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    expected = [(value / 255 - mean) / deviation for value, mean, deviation in statistics]
    assert preprocess_image(image, 9)[:, 4, 4].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"expected an image \(H, W, 3\) of uint8, got \(3, 8, 8\)"),
        (np.zeros((8, 8, 3), np.float32), "of float32"),
        (np.zeros((8, 8, 3), bool), "of bool"),
        *((np.zeros(shape, np.uint8), "expected an image") for shape in ((8, 8), (8, 8, 1))),
        (np.zeros((8, 8, 3, 1), np.uint8), "expected an image"),
    ],
)
def test_other_images_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        preprocess_image(image, 33)


def test_other_masks_are_refused():
    assert preprocess_mask(np.eye(8, dtype=bool), 8).sum() == 8
    for mask in (np.full((8, 8), 2, np.uint8), *(np.zeros(s, np.uint8) for s in (8, (8, 8, 3)))):
        with pytest.raises(ValueError, match="expected a mask"):
            preprocess_mask(mask, 33)


@pytest.mark.slow
def test_the_snippet_of_the_page_runs_as_it_stands(tmp_path):
    (snippet,) = re.findall(
        r"^## Use the model\n+```python\n(.*?)^```$",
        (ROOT / "docs/model.md").read_text(),
        re.M | re.S,
    )
    names = {}
    exec(snippet, names)
    assert not names["net"].training
    assert names["prediction"].shape == (1, 473, 473)
    assert len(names["out"].correlations) == 3

    # Once more with these weights, and smaller.
    state = names["net"].state_dict()
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    for stated, instead in (("None", repr(str(tmp_path / "weights.pth"))), ("473", "97")):
        changed = snippet.replace(f" = {stated}  #", f" = {instead}  #", 1)
        assert changed != snippet
        snippet = changed
    exec(snippet, names)
    assert names["prediction"].shape == (1, 97, 97)
    loaded = names["net"].state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in state.items())
