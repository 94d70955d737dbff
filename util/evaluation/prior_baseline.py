"""Baselines without learning: everything foreground, and the similarity prior above a threshold.

Any number of thresholds is evaluated at once from histograms of the prior inside and outside the
truth. The threshold is chosen on the base classes and then applied to the held-out ones.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from util.evaluation.metrics import episode_scores

BASELINES = ("all_foreground", "prior")
BINS = 500
VARIANTS = ("f5", "f4", "mean of f5 and f4")


class Threshold(NamedTuple):
    """A variant of the prior (index into `VARIANTS`) and the lowest bin taken for foreground."""

    variant: int
    bin: int

    def describe(self, base_learner: str | None = None) -> str:
        """Return the threshold in words, for tables; without a base learner f3 is in place of f5."""
        variant = VARIANTS[self.variant]
        variant = variant.replace("f5", "f3") if base_learner == "none" else variant
        return f"prior of {variant} ≥ {self.bin / BINS:.3f}"

    def foreground(self, prior: Tensor) -> np.ndarray:
        """Return what the baseline takes for foreground, bool (H, W), of a prior (2, H, W)."""
        return _bins(prior)[self.variant] >= self.bin


def prior_histograms(prior: Tensor, label: np.ndarray) -> np.ndarray:
    """Count the values of a prior outside and inside the truth.

    Args:
        prior: The prior of f5 and of f4, (2, H, W).
        label: The truth, (H, W) in {0, 1, 255}.

    Returns:
        Pixel counts by variant, outside/inside and bin of [0, 1], int64 (variants, 2, bins).
    """
    return np.array(
        [
            [np.bincount(bins[label == side], minlength=BINS) for side in (0, 1)]
            for bins in _bins(prior)
        ]
    )


def threshold_miou(histograms: np.ndarray) -> np.ndarray:
    """Return the mIoU of every variant and threshold, (variants, bins).

    Bin 0 takes everything for foreground.

    Args:
        histograms: The sums of `prior_histograms` of each class, (classes, variants, 2, bins).
    """
    above = histograms[..., ::-1].cumsum(-1)[..., ::-1]
    intersection = above[:, :, 1]
    union = histograms[:, :, 1].sum(-1, keepdims=True) + above[:, :, 0]
    return (intersection / np.maximum(union, 1)).mean(0)


def best_threshold(histograms: np.ndarray) -> Threshold:
    """Return the variant and threshold of highest `threshold_miou`."""
    best = np.unravel_index(threshold_miou(histograms).argmax(), (len(VARIANTS), BINS))
    return Threshold(*map(int, best))


def baseline_scores(
    records: np.ndarray, class_ids: np.ndarray, classes: Sequence[int], skip_absent: bool = False
) -> dict[str, float]:
    """Return the mIoU of the BASELINES; the arguments are those of `episode_scores`."""
    scored = records.copy()
    scored["final"], scored["meta"] = 0, records["prior"]
    # Everything that is labelled, by row, is predicted as foreground.
    scored["final"][..., 1] = records["final"].sum(-1)
    scores = episode_scores(scored, class_ids, classes, skip_absent=skip_absent)
    return dict(zip(BASELINES, (scores["mIoU"], scores["mIoU_m"]), strict=True))


def _bins(prior: Tensor) -> np.ndarray:
    """Return the bins of all variants, int64 (variants, H, W), of a prior (2, H, W)."""
    values = prior.cpu().numpy()
    values = np.stack([values[0], values[1], values.mean(0)])
    return (values * BINS).astype(np.int64).clip(0, BINS - 1)
