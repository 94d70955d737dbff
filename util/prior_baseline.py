"""Baselines without learning: everything foreground, and the similarity prior above a threshold.

Any number of thresholds is evaluated at once from histograms of the prior inside and outside the
truth. The threshold is chosen on the base classes and then applied to the held-out ones.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

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
        """All counts, to be summed over processes."""
        return self._counts

    def load_state(self, state: np.ndarray) -> None:
        """Replace the counts by those of `state`."""
        self._counts = state

    def update(self, class_id: int, prior: Tensor, label: Tensor) -> None:
        """Count one episode: prior (2, H, W) of f5 and f4, label (H, W) in {0, 1, 255}."""
        values = prior.cpu().numpy()
        values = np.stack([values[0], values[1], values.mean(0)])
        bins = (values * BINS).astype(np.int64).clip(0, BINS - 1)
        label = label.cpu().numpy()
        row = self._counts[self.classes.index(class_id)]
        for variant, side in np.ndindex(len(VARIANTS), 2):
            row[variant, side] += np.bincount(bins[variant][label == side], minlength=BINS)

    def miou(self) -> np.ndarray:
        """mIoU of every variant and threshold, (variants, bins); bin 0 is everything foreground."""
        above = self._counts[..., ::-1].cumsum(-1)[..., ::-1]  # (classes, variants, 2, bins)
        intersection = above[:, :, 1]
        union = self._counts[:, :, 1].sum(-1, keepdims=True) + above[:, :, 0]
        return (intersection / np.maximum(union, 1)).mean(0)

    def best(self) -> Threshold:
        """The variant and threshold of highest mIoU."""
        return Threshold(*map(int, np.unravel_index(self.miou().argmax(), (len(VARIANTS), BINS))))

    def baselines(self, threshold: Threshold) -> dict[str, float]:
        """mIoU of both baselines on these episodes."""
        miou = self.miou()
        return {"all_foreground": float(miou[0, 0]), "prior": float(miou[threshold])}
