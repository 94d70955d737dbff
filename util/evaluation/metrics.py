"""Scores of the test protocol and of the base learner, from integer pixel counts.

Everything is counted in int64, so that counts of several processes can be summed without rounding
and in any order; ratios are taken once, at the end. Values are shares of 1.
"""

import math

import numpy as np
from scipy.special import stdtrit

from util.data.folds import IGNORE

SCORES = ("mIoU", "mIoU_m", "mIoU_b", "FBIoU", "FBIoU_m", "pIoU")


def confusion(prediction, label, num_classes, ignore_label=IGNORE):
    """Pixel counts, int64 (num_classes, num_classes): row = label, column = prediction.

    `prediction` and `label` are integer arrays or tensors (any device) of one shape, which are only
    read; pixels whose label is `ignore_label` count nowhere. Raises ValueError for different shapes
    and for a class outside 0..num_classes-1.
    """
    prediction, label = as_array(prediction), as_array(label)
    if prediction.shape != label.shape:
        raise ValueError(f"prediction {prediction.shape} and label {label.shape} differ in shape")
    valid = label != ignore_label
    rows, columns = label[valid].astype(np.int64), prediction[valid].astype(np.int64)
    for name, classes in (("label", rows), ("prediction", columns)):
        if classes.size and not 0 <= classes.min() <= classes.max() < num_classes:
            raise ValueError(f"{name} holds a class outside 0..{num_classes - 1}")
    counts = np.bincount(rows * num_classes + columns, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


class SegmentationMetrics:
    """IoU per class of a segmentation into `num_classes` classes, background (0) included."""

    def __init__(self, num_classes, ignore_label=IGNORE):
        self._ignore_label = ignore_label
        self._counts = np.zeros((num_classes, num_classes), np.int64)

    def update(self, prediction, label):
        """Count integer maps of one shape, (H, W) or (B, H, W), as `confusion` does."""
        self._counts += confusion(prediction, label, len(self._counts), self._ignore_label)

    def state(self):
        """All counts as one int64 array, to be summed over processes."""
        return self._counts.ravel().copy()

    def load_state(self, state):
        """Replace the counts by those of `state`."""
        self._counts[...] = as_array(state).reshape(self._counts.shape)

    def iou(self):
        """IoU of every class, float64 (num_classes,); 0 for one that is nowhere."""
        return _ratio(*_intersection_union(self._counts))

    def occurs(self):
        """Whether every class has pixels in the labels, bool (num_classes,)."""
        return _occurs(self._counts)

    def miou(self, over=None):
        """Mean IoU over the classes `over` (default: all) that occur in the labels; 0 if none."""
        over = np.arange(len(self._counts)) if over is None else np.asarray(list(over), np.int64)
        return _mean_of_occurring(self._counts, over)


class EpisodeMetrics:
    """Scores of few-shot episodes, by the evaluation protocol of the paper.

    `novel` are the class ids the episodes are about, `num_base` is the number of base classes.
    """

    def __init__(self, novel, num_base):
        self.novel = tuple(int(class_id) for class_id in novel)
        shapes = {
            "final": (len(self.novel), 2, 2),
            "meta": (len(self.novel), 2, 2),
            "base": (num_base + 1, num_base + 1),
        }
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        self._state = np.zeros(sum(sizes), np.int64)
        pieces = np.split(self._state, np.cumsum(sizes)[:-1])  # views: they count into _state
        self._counts = {
            name: piece.reshape(shape)
            for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
        }

    def update(self, class_id, final, meta, base, label, base_label):
        """Count one episode of the class `class_id`; integer (H, W) maps, arrays or tensors.

        `final`, `meta`: predictions 0/1. `label`: 0, 1, 255 = ignore. `base`: prediction 0..num_base.
        `base_label`: 0..num_base, 255 = ignore. Raises ValueError for a class that is not held out,
        for maps of different shapes and for values out of range; nothing is counted then.
        """
        self.add(
            class_id,
            confusion(final, label, 2),
            confusion(meta, label, 2),
            confusion(base, base_label, len(self._counts["base"])),
        )

    def add(self, class_id, final, meta, base):
        """Count one episode of the class `class_id` by its three `confusion` counts.

        Raises ValueError for a class that is not held out; nothing is counted then.
        """
        if int(class_id) not in self.novel:
            raise ValueError(f"class {int(class_id)} is not one of {self.novel}")
        rank = self.novel.index(int(class_id))
        self._counts["final"][rank] += final
        self._counts["meta"][rank] += meta
        self._counts["base"] += base

    def state(self):
        """All counts as one int64 array, to be summed over processes."""
        return self._state.copy()

    def load_state(self, state):
        """Replace the counts by those of `state`."""
        self._state[...] = as_array(state)

    def results(self):
        """The six scores of SCORES as floats, and "class_iou": {class id: IoU}.

        mIoU (final) and mIoU_m (meta) are means over all held-out classes of the foreground's IoU, 0
        for one that never came; FBIoU and FBIoU_m are means of background and foreground IoU over
        all episodes together, pIoU the foreground part of FBIoU; mIoU_b is the base learner's mean
        over the base classes that occur.
        """
        final, meta, base = (self._counts[name] for name in ("final", "meta", "base"))
        class_iou = [foreground_iou(counts) for counts in final]
        both = _ratio(*_intersection_union(final.sum(axis=0)))
        both_meta = _ratio(*_intersection_union(meta.sum(axis=0)))
        return {
            "mIoU": _mean(class_iou),
            "mIoU_m": _mean([foreground_iou(counts) for counts in meta]),
            "mIoU_b": _mean_of_occurring(base, np.arange(1, len(base))),
            "FBIoU": _mean(both),
            "FBIoU_m": _mean(both_meta),
            "pIoU": float(both[1]),
            "class_iou": dict(zip(self.novel, class_iou, strict=True)),
        }


def mean_interval(values):
    """(mean, sample standard deviation, half width of the 95% interval of the mean) of some runs.

    The interval is Student's, mean ± t · deviation / √n with n - 1 degrees of freedom. It covers what
    differs between the runs, the drawn episodes, and not what a second training would change. The
    last two are None for a single run. Raises ValueError for none.
    """
    if not len(values):
        raise ValueError("no runs to summarise")
    count, mean = len(values), _mean(values)
    if count == 1:
        return mean, None, None
    deviation = float(np.std(values, ddof=1))
    return mean, deviation, float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)


def summarise(runs):
    """Over runs, {score: value} for SCORES each: "best", "mean", "std" and "ci95".

    `runs` are results of EpisodeMetrics; best is taken score by score; the last two are those of
    `mean_interval`. Raises ValueError for none.
    """
    columns = {score: [run[score] for run in runs] for score in SCORES}
    spread = {score: mean_interval(values) for score, values in columns.items()}
    return {
        "best": {score: float(max(values)) for score, values in columns.items()},
        "mean": {score: mean for score, (mean, _, _) in spread.items()},
        "std": {score: deviation for score, (_, deviation, _) in spread.items()},
        "ci95": {score: half_width for score, (_, _, half_width) in spread.items()},
    }


def as_array(values):
    """A tensor of any device, an array or a list as an array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values)


def _intersection_union(counts):
    intersection = np.diagonal(counts)
    return intersection, counts.sum(axis=0) + counts.sum(axis=1) - intersection


def _ratio(intersection, union):
    return intersection / np.maximum(union, 1)


def foreground_iou(counts):
    """IoU of the foreground of `confusion` counts (2, 2); 0 where it is nowhere."""
    return float(_ratio(*_intersection_union(counts))[1])


def _mean_of_occurring(counts, classes):
    return _mean(_ratio(*_intersection_union(counts))[classes[_occurs(counts)[classes]]])


def _occurs(counts):
    return counts.sum(axis=1) > 0  # row sums: pixels in the labels


def _mean(values):
    return float(np.mean(values)) if len(values) else 0.0
