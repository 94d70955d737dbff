import numpy as np
import pytest
import torch

from util.evaluation.prior_baseline import (
    BINS,
    VARIANTS,
    PriorBaselines,
    PriorHistograms,
    Threshold,
)


def episode(rng, height=20, width=30):
    prior = torch.from_numpy(rng.random((2, height, width)).astype(np.float32))
    label = rng.choice([0, 1, 255], (height, width), p=[0.6, 0.3, 0.1])
    return prior, label


def naive_miou(episodes, classes, variant, threshold):
    """Mean over the classes of the IoU of `prior ≥ threshold`, pixel by pixel."""
    ious = []
    for wanted in classes:
        intersection = union = 0
        for class_id, prior, label in episodes:
            if class_id == wanted:
                prior = prior.numpy()
                value = [prior[0], prior[1], prior.mean(0)][variant]
                foreground, truth, valid = value >= threshold, label == 1, label != 255
                intersection += (foreground & truth).sum().item()
                union += ((foreground | truth) & valid).sum().item()
        ious.append(intersection / max(union, 1))
    return np.mean(ious)


@pytest.fixture
def counted():
    rng = np.random.default_rng(0)
    episodes = [(class_id, *episode(rng)) for class_id in (4, 9, 4)]
    histograms = PriorHistograms([4, 9, 11])
    for item in episodes:
        histograms.update(*item)
    return histograms, episodes


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
@pytest.mark.parametrize("bin_index", [0, 1, 137, 250, BINS - 1])
def test_every_threshold_equals_the_naive_count(counted, variant, bin_index):
    histograms, episodes = counted
    expected = naive_miou(episodes, histograms.classes, variant, bin_index / BINS)
    assert histograms.miou()[variant, bin_index] == pytest.approx(expected, abs=2e-3)


def test_the_best_threshold_separates_what_can_be_separated():
    label = np.array([[0, 0, 1, 255]])
    prior = torch.tensor([[[0.1, 0.4, 0.5, 0.9]], [[0.9, 0.1, 0.4, 0.2]]])
    histograms = PriorHistograms([3])
    histograms.update(3, prior, label)
    best = histograms.best()
    assert VARIANTS[best.variant] == "f5" and 0.4 < best.bin / BINS <= 0.5
    baselines = PriorBaselines([3], best)
    baselines.update(3, prior, label)
    assert baselines.results() == {"all_foreground": pytest.approx(1 / 3), "prior": 1.0}
    assert best.describe().startswith("prior of f5 ≥ 0.4")
    assert best.describe("none").startswith("prior of f3 ≥ 0.4")


def test_values_out_of_range_stay_at_the_ends():
    histograms = PriorHistograms([1])
    histograms.update(1, torch.tensor([[[-0.2, 1.3]], [[-1.0, 1.0]]]), np.array([[0, 1]]))
    assert histograms.miou()[0, -1] == 1.0
    assert histograms.state().sum() == 2 * len(VARIANTS)


def baselines_of(threshold, episodes):
    baselines = PriorBaselines([4, 9, 11], threshold)
    for item in episodes:
        baselines.update(*item)
    return baselines


@pytest.mark.parametrize("threshold", [Threshold(0, 137), Threshold(1, 250), Threshold(2, 1)])
def test_the_baselines_are_those_of_the_histograms(counted, threshold):
    histograms, episodes = counted
    miou = histograms.miou()
    assert baselines_of(threshold, episodes).results() == {
        "all_foreground": pytest.approx(miou[0, 0]),
        "prior": pytest.approx(miou[threshold]),
    }


def test_counts_of_two_processes_add_up(counted):
    histograms, episodes = counted
    parts = [PriorHistograms(histograms.classes) for _ in range(2)]
    for index, item in enumerate(episodes):
        parts[index % 2].update(*item)
    joined = PriorHistograms(histograms.classes)
    joined.load_state(parts[0].state() + parts[1].state())
    assert (joined.miou() == histograms.miou()).all()
    threshold = Threshold(0, 100)
    one, other = (baselines_of(threshold, part).state() for part in (episodes[:1], episodes[1:]))
    joined = PriorBaselines([4, 9, 11], threshold)
    joined.load_state(one + other)
    assert joined.results() == baselines_of(threshold, episodes).results()
