import random

import numpy as np
import pytest
import torch

from tests.small_model import SIZE, small_episodes
from util.data.draws import draw_test_episodes
from util.evaluation.episode_parts import EpisodeParts


@pytest.fixture(scope="module", params=[True, False], ids=["resized", "padded"])
def episodes(request, tiny_voc, tmp_path_factory):
    cache = tmp_path_factory.mktemp("lists")
    return small_episodes(tiny_voc, cache, shot=2, resized=request.param)


def draws(episodes):
    return draw_test_episodes(episodes.lists, 2, 6, 510, 2)


def test_parts_are_what_whole_episodes_hold(episodes):
    parts, small = EpisodeParts(episodes), EpisodeParts(episodes, original_size=False)
    for draw in draws(episodes):
        item = episodes.load(*draw, rng=None)
        keys = [(index, draw.class_id) for index in draw.supports]
        queries, supports = parts[[draw.index], keys]
        query = queries[draw.index]
        assert query.image.equal(item["query"])
        assert ((query.mask == draw.class_id) == (item["label"] == 1).numpy()).all()
        assert (query.base_label == item["base_label"].numpy()).all()
        assert query.fitted == episodes.transform.fitted_size(*item["label"].shape)
        resized = small.query(draw.index)
        assert resized.mask.shape == (SIZE, SIZE) and resized.classes == query.classes
        assert ((resized.mask == draw.class_id) == (item["query_mask"] == 1).numpy()).all()
        assert (resized.base_label == item["base_mask"].numpy()).all()
        for number, key in enumerate(reversed(keys)):
            image, mask = supports[key]
            assert image.equal(item["support"][number])
            assert mask.equal(item["support_mask"][number])
    # All classes of an image are counted.
    assert {parts.query(index).classes for index in range(10)} == {1, 2}


def test_no_image_depends_on_the_streams_of_the_episodes(episodes):
    draw, parts = draws(episodes)[0], EpisodeParts(episodes, ann_type="scribble")
    loaded = []
    for seed in (1, 9):
        np.random.seed(seed)
        random.seed(seed)
        before = random.getstate(), torch.get_rng_state()
        loaded.append(parts.support(draw.supports[0], draw.class_id))
        assert random.getstate() == before[0] and torch.get_rng_state().equal(before[1])
    assert all(a.equal(b) for a, b in zip(*loaded, strict=True))


def test_annotations_are_made_before_the_transform(episodes):
    draw = draws(episodes)[0]
    masks = {}
    for ann_type in ("mask", "bbox", "scribble", "point"):
        parts = EpisodeParts(episodes, ann_type=ann_type)
        image, annotation = parts.annotated(draw.supports[0], draw.class_id)
        assert annotation.shape == image.shape[:2] != (SIZE, SIZE)
        masks[ann_type] = annotation == 1
        small = parts.support(draw.supports[0], draw.class_id)[1]
        assert small.shape == (SIZE, SIZE)
        shares = [(m == 1).sum() / (m != 255).sum() for m in (annotation, small.numpy())]
        assert shares[0] == pytest.approx(shares[1], abs=0.05)
    assert masks["point"].sum() < masks["scribble"].sum() < masks["mask"].sum()
    assert not (masks["point"] & ~masks["mask"]).any() and (masks["bbox"] | ~masks["mask"]).any()
