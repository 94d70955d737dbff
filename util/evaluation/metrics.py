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
        label: The same of the same shape, on any device, or 255 where a pixel is ignored.
        num_classes: The number of classes, background included.

    Returns:
        Pixel counts, int64 (num_classes, num_classes): row = label, column = prediction.

    Raises:
        ValueError: A class is out of range.
    """
    prediction = torch.as_tensor(prediction)
    label = torch.as_tensor(label, device=prediction.device)
    for name, classes in (("label", label[label != IGNORE]), ("prediction", prediction)):
        if classes.numel() and not 0 <= classes.min() <= classes.max() < num_classes:
            raise ValueError(f"{name} holds a class outside 0..{num_classes - 1}")
    return pixel_counts(prediction, label, num_classes).cpu().numpy()


def pixel_counts(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Return `confusion` on the device of the tensors, which have to be in range, without waiting."""
    # Pixels that are ignored are counted in a row of their own, which is cut off.
    row = torch.where(label == IGNORE, num_classes, label.long())
    index = (row * num_classes + prediction).flatten()
    counts = index.new_zeros((num_classes + 1) * num_classes)
    counts.scatter_add_(0, index, torch.ones_like(index))
    return counts.unflatten(0, (num_classes + 1, num_classes))[:-1]


def episode_scores(
    records: np.ndarray,
    class_ids: np.ndarray,
    classes: Sequence[int],
    base: np.ndarray | None = None,
    skip_absent: bool = False,
) -> dict[str, Any]:
    """Return the scores of few-shot episodes, by the evaluation protocol of the paper.

    Args:
        records: The counts of each episode, `util.evaluation.counts.RECORD` (episodes,).
        class_ids: The class of each episode, (episodes,).
        classes: All classes that the episodes are about.
        base: `confusion` (N + 1, N + 1) of the base learner; None where it is not scored.
        skip_absent: Whether classes without episodes are left out; the protocol counts them as 0.

    Returns:
        The SCORES as floats, and {class id: IoU} under "class_iou". mIoU (final) and mIoU_m (meta)
        are means over all classes of the foreground's IoU, which is 0 for a class without episodes,
        or None under "class_iou" and not in the means with `skip_absent`.
        FBIoU and FBIoU_m are means of background and foreground IoU over all episodes together, pIoU
        is the foreground part of FBIoU. mIoU_b is `base_miou`, and is absent without `base`.
    """
    of_class = [records[class_ids == class_id] for class_id in classes]
    final, meta = (np.stack([r[key].sum(0) for r in of_class]) for key in ("final", "meta"))
    class_iou, all_final = _ious(final)[:, 1], _ious(final.sum(0))
    scored = np.array([not skip_absent or len(own) > 0 for own in of_class])
    ious = [iou if there else None for iou, there in zip(class_iou.tolist(), scored, strict=True)]
    return {
        "mIoU": _mean(class_iou[scored]),
        "mIoU_m": _mean(_ious(meta)[scored, 1]),
        **({} if base is None else {BASE_SCORE: base_miou(base)}),
        "FBIoU": _mean(all_final),
        "FBIoU_m": _mean(_ious(meta.sum(0))),
        "pIoU": float(all_final[1]),
        "class_iou": dict(zip(classes, ious, strict=True)),
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
    """
    count, mean = len(values), _mean(values)
    if count == 1:
        return mean, None, None
    deviation = float(np.std(values, ddof=1))
    return mean, deviation, float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Summarise the results of several runs.

    Args:
        runs: `episode_scores` of each run, of at least one.

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


def _ious(counts: np.ndarray) -> np.ndarray:
    """Return the IoU of every class of `confusion` counts (..., C, C) as (..., C); 0 for 0/0."""
    intersection = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(axis=-2) + counts.sum(axis=-1) - intersection
    return intersection / np.maximum(union, 1)


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else 0.0
