import pytest
import torch

from model.features import SupportFeatures, feature_bytes
from util.evaluation.feature_cache import FeatureCache


def features(floats=100):
    empty = torch.zeros(0)
    return SupportFeatures(torch.zeros(floats), empty, empty, empty, empty, ())


SIZE = feature_bytes(features())


def test_those_used_last_stay():
    cache = FeatureCache(3 * SIZE)
    kept = {key: features() for key in "abcd"}
    for key in "abc":
        cache.put(key, kept[key])
    assert cache.get("a") is kept["a"]
    cache.put("d", kept["d"])
    assert [key for key in "abcd" if key in cache] == ["a", "c", "d"]
    assert cache.get("b") is None and cache.get("c") is kept["c"]
    assert (cache.hits, cache.misses) == (2, 1)


def test_several_make_room_for_one_that_is_large():
    cache = FeatureCache(3.5 * SIZE)
    for key in "abc":
        cache.put(key, features())
    cache.put("large", features(200))
    assert [key for key in ("a", "b", "c", "large") if key in cache] == ["c", "large"]
    cache.put("d", features())
    assert "c" not in cache and "large" in cache and "d" in cache


@pytest.mark.parametrize("limit", [0, 0.5, 1.5])
def test_what_does_not_fit_is_not_kept_and_drives_nothing_out(limit):
    cache = FeatureCache(limit * SIZE)
    cache.put("a", features())
    assert ("a" in cache) == (cache.get("a") is not None) == (limit > 1)
    cache.put("b", features(1000))
    assert ("a" in cache) == (limit > 1) and "b" not in cache
