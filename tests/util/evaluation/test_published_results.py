import pytest

from util.evaluation.published_results import PUBLISHED


@pytest.mark.parametrize("key", PUBLISHED, ids=str)
def test_printed_means_are_those_of_the_folds(key):
    folds, mean = PUBLISHED[key]
    assert sum(folds) / 4 == pytest.approx(mean, abs=0.0501)


def test_datasets_backbones_and_shots():
    datasets, backbones, shots = map(set, zip(*PUBLISHED, strict=True))
    assert (datasets, backbones, shots) == ({"pascal", "coco"}, {"vgg16", "resnet50"}, {1, 5})
    assert len(PUBLISHED) == 8
