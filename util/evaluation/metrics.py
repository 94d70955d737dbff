"""Scores of the test protocol and of the base learner, from integer pixel counts.

Everything is counted in int64, so that counts of several processes can be summed without rounding
and in any order; ratios are taken once, at the end. Scores lie within 0 and 1.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import stdtrit
from torch import Tensor

from util.data.folds import IGNORE

BASE_SCORE = "mIoU_b"  # of the base learner
SCORES = ("mIoU", "mIoU_m", BASE_SCORE, "FBIoU", "FBIoU_m", "pIoU")


def confusion(
    prediction: ArrayLike | Tensor, label: ArrayLike | Tensor, num_classes: int
) -> np.ndarray:
    """Count pixels by label and prediction.

    Args:
        prediction: Integers within 0 and num_classes - 1, an array or a tensor of any device.
        label: The same of the same shape, or 255 where a pixel is ignored.
        num_classes: The number of classes, background included.

    Returns:
        Pixel counts, int64 (num_classes, num_classes): row = label, column = prediction.

    Raises:
        ValueError: The shapes differ, or a class is out of range.
    """
    prediction, label = as_array(prediction), as_array(label)
    if prediction.shape != label.shape:
        raise ValueError(f"prediction {prediction.shape} and label {label.shape} differ in shape")
    valid = label != IGNORE
    rows, columns = label[valid].astype(np.int64), prediction[valid].astype(np.int64)
    for name, classes in (("label", rows), ("prediction", columns)):
        if classes.size and not 0 <= classes.min() <= classes.max() < num_classes:
            raise ValueError(f"{name} holds a class outside 0..{num_classes - 1}")
    counts = np.bincount(rows * num_classes + columns, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


class PixelCounts:
    """Integer counts that can be summed over processes.

    Args:
        shape: The shape of the counts.
    """

    def __init__(self, *shape: int):
        self._counts = np.zeros(shape, np.int64)

    def state(self) -> np.ndarray:
        """Return a copy of all counts as a flat int64 array."""
        return self._counts.ravel().copy()

    def load_state(self, state: ArrayLike) -> None:
        """Replace the counts by those of a `state`."""
        self._counts[...] = np.asarray(state).reshape(self._counts.shape)


class EpisodeMetrics(PixelCounts):
    """Scores of few-shot episodes, by the evaluation protocol of the paper.

    Args:
        classes: The class ids that the episodes are about.
        num_base: The number of base classes; 0 where the base learner is not scored.
    """

    def __init__(self, classes: Sequence[int], num_base: int = 0):
        self.classes = tuple(classes)
        size = 4 * len(self.classes)
        base = num_base + 1 if num_base else 0
        super().__init__(2 * size + base**2)
        # These are views, which count into the one array.
        self._final = self._counts[:size].reshape(-1, 2, 2)
        self._meta = self._counts[size : 2 * size].reshape(-1, 2, 2)
        self._base = self._counts[2 * size :].reshape(base, base)

    def add(
        self, class_id: int, final: np.ndarray, meta: np.ndarray, base: np.ndarray | None = None
    ) -> None:
        """Count one episode.

        Args:
            class_id: The class of the episode.
            final: `confusion` of the final prediction, (2, 2).
            meta: `confusion` of the meta learner's prediction, (2, 2).
            base: `confusion` of the base learner's prediction, (num_base + 1, num_base + 1); None
                where the base learner is not scored.

        Raises:
            ValueError: The episodes are not about this class.
        """
        if class_id not in self.classes:
            raise ValueError(f"class {class_id} is not one of {self.classes}")
        rank = self.classes.index(class_id)
        self._final[rank] += final
        self._meta[rank] += meta
        if base is not None:
            self._base += base

    def results(self) -> dict[str, Any]:
        """Return the SCORES as floats, and {class id: IoU} under "class_iou".

        mIoU (final) and mIoU_m (meta) are means over all classes of the foreground's IoU, which is 0
        for a class without episodes; FBIoU and FBIoU_m are means of background and foreground IoU
        over all episodes together, pIoU is the foreground part of FBIoU; mIoU_b is the base
        learner's `base_miou`, and is absent where the base learner is not scored.
        """
        class_iou = _ious(self._final)[:, 1]
        final, meta = _ious(self._final.sum(axis=0)), _ious(self._meta.sum(axis=0))
        return {
            "mIoU": _mean(class_iou),
            "mIoU_m": _mean(_ious(self._meta)[:, 1]),
            **({BASE_SCORE: base_miou(self._base)} if self._base.size else {}),
            "FBIoU": _mean(final),
            "FBIoU_m": _mean(meta),
            "pIoU": float(final[1]),
            "class_iou": dict(zip(self.classes, class_iou.tolist(), strict=True)),
        }


def base_miou(counts: np.ndarray) -> float:
    """Return the mean IoU over the classes that occur in the labels, without background.

    Args:
        counts: `confusion` counts (N + 1, N + 1) of N base classes.

    Returns:
        The mean, 0 where no base class occurs.
    """
    occurs = counts.sum(axis=1) > 0
    occurs[0] = False
    return _mean(_ious(counts)[occurs])


def foreground_iou(counts: np.ndarray) -> float:
    """Return the IoU of the foreground of `confusion` counts (2, 2); 0 where there is none."""
    return float(_ious(counts)[1])


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return mean, sample standard deviation and half width of the 95 % interval of the mean.

    The interval is Student's, mean ± t · deviation / √n with n - 1 degrees of freedom. It covers what
    differs between the runs, the drawn episodes, and not what a second training would change.

    Args:
        values: One score of each run.

    Returns:
        The three numbers; the last two are None for a single run.

    Raises:
        ValueError: There is no run.
    """
    if not len(values):
        raise ValueError("no runs to summarise")
    count, mean = len(values), _mean(values)
    if count == 1:
        return mean, None, None
    deviation = float(np.std(values, ddof=1))
    return mean, deviation, float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Summarise the results of several runs.

    Args:
        runs: `EpisodeMetrics.results` of each run, of at least one.

    Returns:
        {score: value} under "best", taken score by score, and under "mean", "std" and "ci95", which
        `mean_interval` gives.
    """
    columns = {score: [run[score] for run in runs] for score in SCORES if score in runs[0]}
    spread = {score: mean_interval(values) for score, values in columns.items()}
    return {
        "best": {score: float(max(values)) for score, values in columns.items()},
        "mean": {score: mean for score, (mean, _, _) in spread.items()},
        "std": {score: deviation for score, (_, deviation, _) in spread.items()},
        "ci95": {score: half_width for score, (_, _, half_width) in spread.items()},
    }


def as_array(values: ArrayLike | Tensor) -> np.ndarray:
    """Return a tensor of any device, an array or a list as an array."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _ious(counts: np.ndarray) -> np.ndarray:
    """Return the IoU of every class of `confusion` counts (..., C, C) as (..., C); 0 for 0/0."""
    intersection = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(axis=-2) + counts.sum(axis=-1) - intersection
    return intersection / np.maximum(union, 1)


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else 0.0
