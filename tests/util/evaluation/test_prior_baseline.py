import numpy as np
import pytest
import torch

from util.evaluation.counts import RECORD
from util.evaluation.metrics import confusion
from util.evaluation.prior_baseline import (
    BINS,
    VARIANTS,
    Threshold,
    baseline_scores,
    best_threshold,
    prior_histograms,
    threshold_miou,
)

CLASSES = (4, 9, 11)


def drawn():
    """Random episodes: class, prior and label; there is none of the last class."""
    rng = np.random.default_rng(0)
    for class_id in (4, 9, 4):
        prior = torch.from_numpy(rng.random((2, 20, 30)).astype(np.float32))
        yield class_id, prior, rng.choice([0, 1, 255], (20, 30), p=[0.6, 0.3, 0.1])


def miou_of(episodes, classes=CLASSES):
    histograms = np.zeros((len(classes), len(VARIANTS), 2, BINS), np.int64)
    for class_id, prior, label in episodes:
        histograms[classes.index(class_id)] += prior_histograms(prior, label)
    return threshold_miou(histograms)


def naive_miou(variant, threshold):
    """Mean over the classes of the IoU of `prior ≥ threshold`, pixel by pixel."""
    ious = []
    for wanted in CLASSES:
        intersection = union = 0
        for class_id, prior, label in drawn():
            if class_id == wanted:
                prior = prior.numpy()
                value = [prior[0], prior[1], prior.mean(0)][variant]
                foreground, truth, valid = value >= threshold, label == 1, label != 255
                intersection += (foreground & truth).sum().item()
                union += ((foreground | truth) & valid).sum().item()
        ious.append(intersection / max(union, 1))
    return np.mean(ious)


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
@pytest.mark.parametrize("bin_index", [0, 137, BINS - 1])
def test_every_threshold_equals_the_naive_count_and_the_baselines(variant, bin_index):
    miou = miou_of(drawn())
    expected = naive_miou(variant, bin_index / BINS)
    assert miou[variant, bin_index] == pytest.approx(expected, abs=2e-3)
    threshold, records = Threshold(variant, bin_index), np.zeros(3, RECORD)
    for record, (_, prior, label) in zip(records, drawn(), strict=True):
        record["prior"] = confusion(threshold.foreground(prior), label, 2)
        record["final"] = confusion(label == 0, label, 2)  # any prediction
    scores = {"all_foreground": pytest.approx(miou[0, 0]), "prior": pytest.approx(miou[threshold])}
    assert baseline_scores(records, np.array([4, 9, 4]), CLASSES) == scores
    skipped = baseline_scores(records, np.array([4, 9, 4]), (*CLASSES, 6), skip_absent=True)
    present = len({4, 9} & set(CLASSES)) / len(CLASSES)
    assert {key: iou * present for key, iou in skipped.items()} == scores


def test_the_best_threshold_separates_what_can_be_separated():
    label = np.array([[0, 0, 1, 255]])
    prior = torch.tensor([[[0.1, 0.4, 0.5, 0.9]], [[0.9, 0.1, 0.4, 0.2]]])
    best = best_threshold(prior_histograms(prior, label)[None])
    assert VARIANTS[best.variant] == "f5" and 0.4 < best.bin / BINS <= 0.5
    assert best.foreground(prior).tolist() == [[False, False, True, True]]
    assert best.describe().startswith("prior of f5 ≥ 0.4")
    assert best.describe("none").startswith("prior of f3 ≥ 0.4")


def test_values_out_of_range_stay_at_the_ends():
    prior = torch.tensor([[[-0.2, 1.3]], [[-1.0, 1.0]]])
    histograms = prior_histograms(prior, np.array([[0, 1]]))
    assert threshold_miou(histograms[None])[0, -1] == 1.0
    assert histograms.sum() == 2 * len(VARIANTS)
