"""Baselines without learning: everything foreground, and the similarity prior above a threshold.

Any number of thresholds is evaluated at once from histograms of the prior inside and outside the
truth. The threshold is chosen on the base classes and then applied to the held-out ones.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from util.evaluation.metrics import PixelCounts, confusion, foreground_iou

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


class PriorHistograms(PixelCounts):
    """Counts of prior values per class, variant, outside/inside the truth, and bin of [0, 1].

    Args:
        classes: The class ids that occur.
    """

    def __init__(self, classes: Sequence[int]):
        self.classes = list(classes)
        super().__init__(len(self.classes), len(VARIANTS), 2, BINS)

    def update(self, class_id: int, prior: Tensor, label: np.ndarray) -> None:
        """Count one episode.

        Args:
            class_id: The class of the episode.
            prior: The prior of f5 and of f4, (2, H, W).
            label: The truth, (H, W) in {0, 1, 255}.
        """
        row = self._counts[self.classes.index(class_id)]
        for variant, bins in enumerate(_bins(prior)):
            for side in (0, 1):
                row[variant, side] += np.bincount(bins[label == side], minlength=BINS)

    def miou(self) -> np.ndarray:
        """Return the mIoU of every variant and threshold, (variants, bins).

        Bin 0 takes everything for foreground.
        """
        above = self._counts[..., ::-1].cumsum(-1)[..., ::-1]  # (classes, variants, 2, bins)
        intersection = above[:, :, 1]
        union = self._counts[:, :, 1].sum(-1, keepdims=True) + above[:, :, 0]
        return (intersection / np.maximum(union, 1)).mean(0)

    def best(self) -> Threshold:
        """Return the variant and threshold of highest mIoU."""
        return Threshold(*map(int, np.unravel_index(self.miou().argmax(), (len(VARIANTS), BINS))))


class PriorBaselines(PixelCounts):
    """Counts of both baselines per class, for a threshold that was chosen before.

    Args:
        classes: The class ids that occur.
        threshold: The threshold of the prior.
    """

    def __init__(self, classes: Sequence[int], threshold: Threshold):
        self.classes, self.threshold = list(classes), threshold
        super().__init__(len(BASELINES), len(self.classes), 2, 2)

    def update(self, class_id: int, prior: Tensor, label: np.ndarray) -> None:
        """Count one episode; the arguments are those of `PriorHistograms.update`."""
        bins = _bins(prior)[self.threshold.variant]
        predictions = np.ones_like(label), bins >= self.threshold.bin
        rank = self.classes.index(class_id)
        for counts, prediction in zip(self._counts, predictions, strict=True):
            counts[rank] += confusion(prediction, label, 2)

    def results(self) -> dict[str, float]:
        """Return the mIoU of the baselines over all classes, by the names of `BASELINES`."""
        return {
            name: float(np.mean([foreground_iou(one) for one in counts]))
            for name, counts in zip(BASELINES, self._counts, strict=True)
        }


def _bins(prior: Tensor) -> np.ndarray:
    """Return the bins of all variants, int64 (variants, H, W), of a prior (2, H, W)."""
    values = prior.cpu().numpy()
    values = np.stack([values[0], values[1], values.mean(0)])
    return (values * BINS).astype(np.int64).clip(0, BINS - 1)
