import random

import numpy as np
import pytest
import torch

from tests.small_model import SIZE, small_episodes
from util.data.draws import draw_test_episodes
from util.evaluation.episode_parts import EpisodeParts, Request, SupportKey


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
        keys = [SupportKey(index, draw.class_id, "mask") for index in draw.supports]
        loaded = parts[Request((draw.index,), tuple(keys))]
        query = loaded.queries[draw.index]
        assert query.image.equal(item["query"])
        assert ((query.mask == draw.class_id) == (item["label"] == 1).numpy()).all()
        assert (query.base_label == item["base_label"].numpy()).all()
        assert query.fitted == episodes.transform.fitted_size(*item["label"].shape)
        resized = small.query(draw.index)
        assert resized.mask.shape == (SIZE, SIZE) and resized.classes == query.classes
        assert ((resized.mask == draw.class_id) == (item["query_mask"] == 1).numpy()).all()
        assert (resized.base_label == item["base_mask"].numpy()).all()
        for number, key in enumerate(reversed(keys)):
            image, mask = loaded.supports[key]
            assert image.equal(item["support"][number])
            assert mask.equal(item["support_mask"][number])


def test_no_image_depends_on_the_streams_of_the_episodes(episodes):
    key = SupportKey(draws(episodes)[0].supports[0], draws(episodes)[0].class_id, "scribble")
    parts = EpisodeParts(episodes)
    random.seed(1)
    first, streams = parts.support(key), (random.getstate(), np.random.get_state()[1].tolist())
    assert random.getstate() == streams[0]
    np.random.seed(5)
    random.seed(9)
    before = random.getstate(), torch.get_rng_state()
    again = parts.support(key)
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert random.getstate() == before[0] and torch.get_rng_state().equal(before[1])


def test_annotations_are_made_before_the_transform(episodes):
    draw = draws(episodes)[0]
    parts = EpisodeParts(episodes)
    masks = {}
    for ann_type in ("mask", "bbox", "scribble", "point"):
        key = SupportKey(draw.supports[0], draw.class_id, ann_type)
        image, annotation = parts.annotated(key)
        assert annotation.shape == image.shape[:2] != (SIZE, SIZE)
        masks[ann_type] = annotation == 1
        small = parts.support(key)[1]
        assert small.shape == (SIZE, SIZE)
        shares = [(m == 1).sum() / (m != 255).sum() for m in (annotation, small.numpy())]
        assert shares[0] == pytest.approx(shares[1], abs=0.05)
    assert masks["point"].sum() < masks["scribble"].sum() < masks["mask"].sum()
    assert not (masks["point"] & ~masks["mask"]).any() and (masks["bbox"] | ~masks["mask"]).any()


def test_classes_of_the_whole_image_are_counted(episodes):
    parts = EpisodeParts(episodes)
    counts = {parts.query(index).classes for index in range(10)}
    assert counts == {1, 2}
