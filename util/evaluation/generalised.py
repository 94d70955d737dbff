"""Generalised few-shot testing: base classes and the episode's novel class in one prediction.

Labels of the joint task: 0 background, 1..N the base classes by rank (as the base learner's), then
N + 1.. the held-out classes by rank. The published HDMNet code reads `merge` and `merge_tau` and
uses neither; what they mean here is stated in `merge_prediction`.
"""

import numpy as np

from util.data.folds import IGNORE
from util.evaluation.metrics import SegmentationMetrics, as_array


def merge_prediction(final, base, novel_index, merge, tau):
    """One labelling of an episode's query by both learners, int64 (H, W) on the logits' device.

    The base learner is sure of a pixel where its most likely class is a base class of probability
    `tau` or more; such a pixel is of that class. Of the others, with `merge`

    "final": those where `final` says foreground are of the novel class, the rest are what the base
        learner says, a base class or background.
    "base": those where `final` says foreground are of the novel class, the rest are background.

    Args:
        final: (2, H, W) logits or probabilities of background and foreground; equal is background.
        base: (N + 1, H, W) logits of the base learner at the same size.
        novel_index: rank of the episode's class among the held-out classes.
        merge: "final" or "base"; raises ValueError otherwise.
        tau: in [0, 1]; at 0 the base learner is sure of every base class it predicts.
    """
    if merge not in ("final", "base"):
        raise ValueError(f"merge {merge!r} is neither final nor base")
    confidence, predicted = base.float().softmax(0).max(0)
    sure = (predicted > 0) & (confidence >= tau)
    novel = (final[1] > final[0]) & ~sure
    kept = predicted if merge == "final" else predicted.where(sure, 0)
    return kept.where(~novel, len(base) + novel_index)


class GeneralisedMetrics:
    """Scores of `merge_prediction` over episodes, from integer pixel counts.

    `base` and `novel` are the class ids of the fold, ascending. Raises ValueError if they share one:
    then a pixel would have two labels.
    """

    def __init__(self, base, novel):
        self.base, self.novel = (tuple(int(class_id) for class_id in ids) for ids in (base, novel))
        if shared := set(self.base) & set(self.novel):
            raise ValueError(f"class {min(shared)} is both base and novel")
        self._counts = SegmentationMetrics(1 + len(self.base) + len(self.novel))

    def update(self, class_id, prediction, label, base_label):
        """Count one episode of the class `class_id`; integer (H, W) maps, arrays or tensors.

        `prediction`: as `merge_prediction` gives it. `label`: 0, 1, 255 = ignore; `base_label`:
        0..N, 255 = ignore. The truth is the novel class where `label` is 1, else `base_label`, and
        ignored where either is. Other held-out classes in the image are background in it, as they
        are in both tasks alone: the model has been shown neither mask nor name of them. Raises
        ValueError for a class that is not held out and for maps of different shapes.
        """
        if int(class_id) not in self.novel:
            raise ValueError(f"class {int(class_id)} is not one of {self.novel}")
        label, base_label = (as_array(values) for values in (label, base_label))
        if label.shape != base_label.shape:
            raise ValueError(f"labels {label.shape} and {base_label.shape} differ in shape")
        novel_label = 1 + len(self.base) + self.novel.index(int(class_id))
        truth = np.where(label == 1, novel_label, base_label)
        truth[(label == IGNORE) | (base_label == IGNORE)] = IGNORE
        self._counts.update(prediction, truth)

    def state(self):
        """All counts as one int64 array, to be summed over processes."""
        return self._counts.state()

    def load_state(self, state):
        """Replace the counts by those of `state`."""
        self._counts.load_state(state)

    def results(self):
        """mIoU_base, mIoU_novel, mIoU_both as floats, and "class_iou": {class id: IoU}.

        Base: mean over the base classes that occur in the labels, as mIoU_b of `EpisodeMetrics`.
        Novel: mean over all held-out classes, 0 for one that never came, as mIoU there. Both: mean
        over the classes of both means together. Background has no part in any. A class's IoU is
        that of its pixels over all episodes, where a held-out class can be predicted only in its
        own.
        """
        iou = self._counts.iou()[1:].tolist()
        occurs = self._counts.occurs()[1:]
        scored = {
            "base": [i for i in range(len(self.base)) if occurs[i]],
            "novel": [len(self.base) + i for i in range(len(self.novel))],
        }
        scored["both"] = scored["base"] + scored["novel"]
        means = {
            f"mIoU_{name}": float(np.mean([iou[i] for i in ranks])) if ranks else 0.0
            for name, ranks in scored.items()
        }
        return {**means, "class_iou": dict(zip((*self.base, *self.novel), iou, strict=True))}
