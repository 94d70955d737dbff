"""Counts of a test, all of them integers, so that sums over processes and parts never depend on order."""

import numpy as np

from util.evaluation.metrics import confusion
from util.evaluation.predictor import Prediction
from util.evaluation.prior_baseline import BINS, VARIANTS, Threshold, prior_histograms

# What is counted of an episode: the `confusion` of the final and of the meta learner's prediction, and
# of the baseline of the prior where it is wanted; the pixels of the query, and the classes in it.
_CONFUSIONS = [(name, np.int64, (2, 2)) for name in ("final", "meta", "prior")]
RECORD = np.dtype([*_CONFUSIONS, ("pixels", np.int64), ("classes", np.int64)])


class Counts:
    """The counts of the episodes of some runs.

    Args:
        episodes: The number of episodes of all runs together.
        runs: The number of runs.
        num_base: The number of base classes; 0 where the base learner is not scored.
        prior_classes: The number of classes with histograms of the prior; 0 where none are wanted.

    Attributes:
        numbers: int64 (episodes, 14), run after run; zeros where nothing was counted yet.
        records: The same numbers by their names, RECORD (episodes,).
        sums: int64 (runs, size), what is summed over the episodes of a run: `base` and `prior`.
        base: The part of `sums` with the `confusion` of the base learner, (runs, N + 1, N + 1).
        prior: The part with the `prior_histograms` of each class, (runs, classes, variants, 2, bins).
    """

    def __init__(self, episodes: int, runs: int, num_base: int, prior_classes: int = 0):
        self.numbers = np.zeros((episodes, RECORD.itemsize // 8), np.int64)
        self.records = self.numbers.view(RECORD)[:, 0]
        labels = num_base + 1 if num_base else 0
        histograms = (prior_classes, len(VARIANTS), 2, BINS)
        self.sums = np.zeros((runs, labels**2 + int(np.prod(histograms))), np.int64)
        self.base = self.sums[:, : labels**2].reshape(runs, labels, labels)
        self.prior = self.sums[:, labels**2 :].reshape(runs, *histograms)

    def count(
        self, row: int, run: int, rank: int, prediction: Prediction, threshold: Threshold | None
    ) -> None:
        """Count an episode.

        Args:
            row: Its row in `records`.
            run: The number of its run.
            rank: The position of its class among those with histograms.
            prediction: The predicted maps.
            threshold: The threshold of the baseline of the prior, if it was chosen before.
        """
        p, record = prediction, self.records[row]
        record["final"], record["meta"] = p.counts.numpy()
        record["pixels"], record["classes"] = p.label.numel(), p.classes
        if p.base_counts is not None:
            self.base[run] += p.base_counts
        if p.prior is not None and threshold is None:
            self.prior[run, rank] += prior_histograms(p.prior, p.label.cpu().numpy())
        elif p.prior is not None and threshold is not None:
            record["prior"] = confusion(threshold.foreground(p.prior), p.label, 2)

    def done(self) -> np.ndarray:
        """Return whether each episode was counted, bool (episodes,)."""
        return self.records["pixels"] > 0
