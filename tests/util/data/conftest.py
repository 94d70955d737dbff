"""Fixtures that the tests of util/data share."""

import pytest

from tests.small_model import small_episodes
from util.data.folds import fold_classes
from util.data.lists import load_lists


@pytest.fixture(scope="session")
def tiny_lists(tiny_voc, list_cache):
    """A function that returns the fold and its lists on the tiny dataset."""

    def tiny_lists(part, split, folds="contiguous"):
        fold = fold_classes(20, folds, split)
        list_file = str(tiny_voc / f"{part}.txt")
        return fold, load_lists(str(tiny_voc), list_file, fold, part, list_cache)

    return tiny_lists


@pytest.fixture(scope="session")
def episodes(tiny_voc, list_cache):
    """Test episodes of two shots."""
    return small_episodes(tiny_voc, list_cache, shot=2)
