"""What a test counts, all of it integers: sums over processes and parts are the same in any order."""

from typing import NamedTuple

import numpy as np

from util.evaluation.generalised import GeneralisedMetrics
from util.evaluation.metrics import EpisodeMetrics
from util.evaluation.predictor import Prediction
from util.evaluation.prior_baseline import PriorBaselines, PriorHistograms
from util.slices import episode_counts

RECORD = 10  # numbers of `episode_counts`
PIXELS = 8  # which of them is never 0


class RunCounts:
    """The counts of the episodes of one run.

    Args:
        classes: class ids that the episodes are about.
        base_classes: those of the base learner.
        prior: counts of the prior, None for none.
        generalised: count base and held-out classes together too.
    """

    def __init__(
        self,
        classes: tuple[int, ...],
        base_classes: tuple[int, ...],
        prior: PriorHistograms | PriorBaselines | None = None,
        generalised: bool = False,
    ):
        self.metrics = EpisodeMetrics(classes, len(base_classes))
        self.prior = prior
        self.generalised = GeneralisedMetrics(base_classes, classes) if generalised else None
        self._parts = [
            part for part in (self.metrics, self.prior, self.generalised) if part is not None
        ]
        self._sizes = [part.state().size for part in self._parts]

    def update(self, class_id: int, prediction: Prediction) -> np.ndarray:
        """Count one episode of a class; returns what `util.slices` keeps of it, (RECORD,)."""
        p = prediction
        record = episode_counts(p.final, p.meta, p.label, p.classes)
        final, meta = record[:PIXELS].reshape(2, 2, 2)
        self.metrics.add(class_id, final, meta, p.base_counts)
        if self.prior is not None:
            self.prior.update(class_id, p.prior, p.label)
        if self.generalised is not None:
            self.generalised.update(class_id, p.merged, p.label, p.base_label)
        return record

    def state(self) -> np.ndarray:
        """All counts as one int64 array."""
        return np.concatenate([part.state().ravel() for part in self._parts])

    def load_state(self, state: np.ndarray) -> None:
        """Replace the counts by those of `state`."""
        pieces = np.split(state, np.cumsum(self._sizes)[:-1])
        for part, piece in zip(self._parts, pieces, strict=True):
            part.load_state(piece)


class UnitCounts(NamedTuple):
    """What a unit of episodes adds.

    positions: of the episodes among all of the test; records: (n, RECORD) of them; states: the
    counts of each run that they belong to, {run: (size,)}.
    """

    positions: list[int]
    records: np.ndarray
    states: dict[int, np.ndarray]


class Counts:
    """The counts of a test of several runs.

    Args:
        lengths: number of episodes of each run.
        size: of the state of a run.

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
        """Whether each episode was counted, bool (episodes,)."""
        return self.records[:, PIXELS] > 0
