"""Baselines without learning: everything foreground, and the similarity prior above a threshold.

Any number of thresholds is evaluated at once from histograms of the prior inside and outside the
truth. The threshold is chosen on the base classes and then applied to the held-out ones.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from util.evaluation.metrics import confusion, foreground_iou

BASELINES = ("all_foreground", "prior")
BINS = 500
VARIANTS = ("f5", "f4", "mean of f5 and f4")


class Threshold(NamedTuple):
    """A variant of the prior (index into `VARIANTS`) and the lowest bin taken for foreground."""

    variant: int
    bin: int

    def describe(self) -> str:
        return f"prior of {VARIANTS[self.variant]} ≥ {self.bin / BINS:.3f}"


class PriorHistograms:
    """Counts of prior values per class, variant, outside/inside the truth, and bin of [0, 1].

    Args:
        classes: the class ids that occur.
    """

    def __init__(self, classes: Sequence[int]):
        self.classes = list(classes)
        self._counts = np.zeros((len(self.classes), len(VARIANTS), 2, BINS), np.int64)

    def state(self) -> np.ndarray:
        """All counts as one int64 array, to be summed over processes."""
        return self._counts.ravel().copy()

    def load_state(self, state: np.ndarray) -> None:
        """Replace the counts by those of `state`."""
        self._counts[...] = state.reshape(self._counts.shape)

    def update(self, class_id: int, prior: Tensor, label: np.ndarray) -> None:
        """Count one episode: prior (2, H, W) of f5 and f4, label (H, W) in {0, 1, 255}."""
        row = self._counts[self.classes.index(class_id)]
        for variant, bins in enumerate(_bins(prior)):
            for side in (0, 1):
                row[variant, side] += np.bincount(bins[label == side], minlength=BINS)

    def miou(self) -> np.ndarray:
        """mIoU of every variant and threshold, (variants, bins); bin 0 is everything foreground."""
        above = self._counts[..., ::-1].cumsum(-1)[..., ::-1]  # (classes, variants, 2, bins)
        intersection = above[:, :, 1]
        union = self._counts[:, :, 1].sum(-1, keepdims=True) + above[:, :, 0]
        return (intersection / np.maximum(union, 1)).mean(0)

    def best(self) -> Threshold:
        """The variant and threshold of highest mIoU."""
        return Threshold(*map(int, np.unravel_index(self.miou().argmax(), (len(VARIANTS), BINS))))


class PriorBaselines:
    """Counts of both baselines per class, for a threshold that was chosen before.

    Args:
        classes: the class ids that occur.
        threshold: of the prior.
    """

    def __init__(self, classes: Sequence[int], threshold: Threshold):
        self.classes, self.threshold = list(classes), threshold
        self._counts = np.zeros((len(BASELINES), len(self.classes), 2, 2), np.int64)

    def state(self) -> np.ndarray:
        """All counts as one int64 array, to be summed over processes."""
        return self._counts.ravel().copy()

    def load_state(self, state: np.ndarray) -> None:
        """Replace the counts by those of `state`."""
        self._counts[...] = state.reshape(self._counts.shape)

    def update(self, class_id: int, prior: Tensor, label: np.ndarray) -> None:
        """Count one episode; arguments as of `PriorHistograms.update`."""
        bins = _bins(prior)[self.threshold.variant]
        predictions = np.ones_like(label), bins >= self.threshold.bin
        rank = self.classes.index(class_id)
        for counts, prediction in zip(self._counts, predictions, strict=True):
            counts[rank] += confusion(prediction, label, 2)

    def results(self) -> dict[str, float]:
        """mIoU of the baselines, over all classes."""
        return {
            name: float(np.mean([foreground_iou(one) for one in counts]))
            for name, counts in zip(BASELINES, self._counts, strict=True)
        }


def _bins(prior: Tensor) -> np.ndarray:
    """Bins of all variants, int64 (variants, H, W), of a prior (2, H, W)."""
    values = prior.cpu().numpy()
    values = np.stack([values[0], values[1], values.mean(0)])
    return (values * BINS).astype(np.int64).clip(0, BINS - 1)
