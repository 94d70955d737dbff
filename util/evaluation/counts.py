"""Counts of a test, all of them integers, so that sums over processes and parts never depend on order."""

from typing import NamedTuple

import numpy as np

from util.evaluation.episode_records import episode_counts
from util.evaluation.metrics import EpisodeMetrics
from util.evaluation.predictor import Prediction
from util.evaluation.prior_baseline import PriorBaselines, PriorHistograms

RECORD = 10  # numbers of `episode_counts`
PIXELS = 8  # index of the one that is never 0


class RunCounts:
    """The counts of the episodes of one run.

    Args:
        classes: The class ids that the episodes are about.
        num_base: The number of base classes; 0 where the base learner is not scored.
        prior: Counts of the similarity prior, where they are wanted.
    """

    def __init__(
        self,
        classes: tuple[int, ...],
        num_base: int,
        prior: PriorHistograms | PriorBaselines | None = None,
    ):
        self.metrics, self.prior = EpisodeMetrics(classes, num_base), prior

    def update(self, class_id: int, prediction: Prediction) -> np.ndarray:
        """Count one episode of a class and return its `episode_counts`, (RECORD,)."""
        p = prediction
        record = episode_counts(p.final, p.meta, p.label, p.classes)
        final, meta = record[:PIXELS].reshape(2, 2, 2)
        self.metrics.add(class_id, final, meta, p.base_counts)
        if self.prior is not None and p.prior is not None:
            self.prior.update(class_id, p.prior, p.label)
        return record

    def state(self) -> np.ndarray:
        """Return all counts as a flat int64 array."""
        parts = [self.metrics.state()]
        if self.prior is not None:
            parts.append(self.prior.state())
        return np.concatenate(parts)

    def load_state(self, state: np.ndarray) -> None:
        """Replace the counts by those of a `state`."""
        metrics, prior = np.split(state, [self.metrics.state().size])
        self.metrics.load_state(metrics)
        if self.prior is not None:
            self.prior.load_state(prior)


class UnitCounts(NamedTuple):
    """The counts that a unit of episodes adds.

    Attributes:
        positions: The positions of its episodes among all of the test.
        records: The `episode_counts` of each, (n, RECORD).
        states: The counts of each run that the episodes belong to, {run: (size,)}.
    """

    positions: list[int]
    records: np.ndarray
    states: dict[int, np.ndarray]


class Counts:
    """The counts of a test of several runs.

    Args:
        lengths: The number of episodes of each run.
        size: The size of the state of a run.

    Attributes:
        records: int64 (episodes, RECORD), run after run; zeros where nothing was counted yet.
        states: int64 (runs, size).
    """

    def __init__(self, lengths: list[int], size: int):
        self.records = np.zeros((sum(lengths), RECORD), np.int64)
        self.states = np.zeros((len(lengths), size), np.int64)

    def add(self, unit: UnitCounts) -> None:
        """Add a unit, none of whose episodes was counted before."""
        self.records[unit.positions] = unit.records
        for run, state in unit.states.items():
            self.states[run] += state

    def done(self) -> np.ndarray:
        """Return whether each episode was counted, bool (episodes,)."""
        return self.records[:, PIXELS] > 0
