import json

import numpy as np
import pytest
import torch

from util.evaluation.counts import RECORD
from util.evaluation.metrics import (
    BASE_SCORE,
    SCORES,
    base_miou,
    confusion,
    episode_scores,
    summarise,
)

NOVEL, NUM_BASE = (3, 7, 9), 4


def episodes(seed, count, classes=NOVEL):
    """Random episodes of varying size: class, predictions of final, meta and base, both labels."""
    rng = np.random.RandomState(seed)
    drawn = []
    for _ in range(count):
        shape = tuple(rng.randint(5, 12, 2))
        label = rng.choice([0, 1, 255], shape, p=[0.5, 0.4, 0.1]).astype(np.uint8)
        # class 4 never occurs in the base labels, though it is predicted
        base_label = rng.choice([0, 1, 2, 3, 255], shape).astype(np.uint8)
        final, meta = rng.randint(0, 2, shape), rng.randint(0, 2, shape)
        base = rng.randint(0, NUM_BASE + 1, shape)
        drawn.append((int(rng.choice(classes)), final, meta, base, label, base_label))
    return drawn


def slow_iou(pairs, cls):
    """IoU of a class over (prediction, label) pairs; 0 where it never occurs."""
    intersection = union = 0
    for prediction, label in pairs:
        valid = label != 255
        intersection += ((prediction == cls) & (label == cls) & valid).sum()
        union += (((prediction == cls) | (label == cls)) & valid).sum()
    return intersection / union if union else 0.0


def slow_base_miou(pairs):
    classes = [c for c in range(1, NUM_BASE + 1) if any((label == c).any() for _, label in pairs)]
    return np.mean([slow_iou(pairs, c) for c in classes])


def slow_scores(drawn):
    def per_class(which):
        return [slow_iou([(e[which], e[4]) for e in drawn if e[0] == c], 1) for c in NOVEL]

    def two_way(which):
        return [slow_iou([(e[which], e[4]) for e in drawn], cls) for cls in (0, 1)]

    return {
        "mIoU": np.mean(per_class(1)),
        "mIoU_m": np.mean(per_class(2)),
        "mIoU_b": slow_base_miou([(e[3], e[5]) for e in drawn]),
        "FBIoU": np.mean(two_way(1)),
        "FBIoU_m": np.mean(two_way(2)),
        "pIoU": two_way(1)[1],
        "class_iou": dict(zip(NOVEL, per_class(1), strict=True)),
    }


def scores_of(drawn, classes=NOVEL, with_base=True, **options):
    records = np.zeros(len(drawn), RECORD)
    base_counts = np.zeros((NUM_BASE + 1, NUM_BASE + 1), np.int64)
    for record, (_, final, meta, base, label, base_label) in zip(records, drawn, strict=True):
        record["final"], record["meta"] = confusion(final, label, 2), confusion(meta, label, 2)
        base_counts += confusion(base, base_label, NUM_BASE + 1)
    class_ids = np.array([episode[0] for episode in drawn])
    base = base_counts if with_base else None
    return episode_scores(records, class_ids, classes, base, **options)


@pytest.mark.parametrize("classes", [NOVEL, (3, 7)])  # A class that never came counts zero.
def test_episode_scores_match_the_naive_twin(classes):
    drawn = episodes(0, 12, classes)
    found, expected = scores_of(drawn), slow_scores(drawn)
    assert {e[0] for e in drawn} == set(classes) and (found["class_iou"][9] > 0) == (9 in classes)
    assert set(found) == {*SCORES, "class_iou"}
    assert found.pop("class_iou") == pytest.approx(expected.pop("class_iou"), abs=1e-12)
    assert found == pytest.approx(expected, abs=1e-12)
    # Without the base learner its score is absent and the others are the same.
    del found[BASE_SCORE]
    without = scores_of(drawn, with_base=False)
    assert found.items() <= without.items() and BASE_SCORE not in without
    assert set(summarise([without])["mean"]) == {*SCORES} - {BASE_SCORE}


def test_a_class_without_episodes_can_be_left_out():
    drawn = episodes(0, 12, (3, 7))
    zero, skipped = scores_of(drawn), scores_of(drawn, skip_absent=True)
    assert skipped["class_iou"] == zero["class_iou"] | {9: None}
    for score in ("mIoU", "mIoU_m"):
        assert skipped[score] == pytest.approx(zero[score] * 3 / 2)
    others = [score for score in SCORES if score not in ("mIoU", "mIoU_m")]
    assert [skipped[score] for score in others] == [zero[score] for score in others]
    assert scores_of(drawn, (3, 7), skip_absent=True) == scores_of(drawn, (3, 7))
    alone = scores_of(drawn[:1], skip_absent=True)  # One episode is enough.
    assert alone["mIoU"] == alone["class_iou"][drawn[0][0]] > 0


def test_known_numbers():
    final = np.array([[1, 1, 0, 0], [1, 1, 0, 0]])
    meta = np.zeros((2, 4), int)
    label = np.array([[1, 0, 0, 255], [1, 255, 1, 0]])
    base = np.array([[1, 1, 2, 2], [0, 0, 0, 0]])
    base_label = np.array([[1, 0, 255, 255], [0, 0, 0, 2]])
    results = scores_of([(5, final, meta, base, label, base_label)], [5])
    assert results["mIoU"] == results["pIoU"] == pytest.approx(2 / 4)
    assert results["FBIoU"] == pytest.approx((2 / 4 + 2 / 4) / 2)
    assert results["mIoU_m"] == 0.0
    assert results["FBIoU_m"] == pytest.approx((3 / 6) / 2)
    assert results["mIoU_b"] == pytest.approx((1 / 2 + 0) / 2)  # classes 3 and 4 do not occur


def test_tensors_count_like_arrays_and_nothing_is_written_to():
    _, final, _, _, label, _ = episodes(2, 1)[0]
    copies = final.copy(), label.copy()
    expected = confusion(final, label, 2)
    assert (confusion(torch.from_numpy(final), torch.from_numpy(label), 2) == expected).all()
    assert expected.dtype == np.int64
    assert (final == copies[0]).all() and (label == copies[1]).all()
    with pytest.raises(ValueError, match="prediction holds"):
        confusion(final + 1, label, 2)
    with pytest.raises(ValueError, match="label holds"):
        confusion(final, final + 1, 2)


def test_the_base_miou_matches_the_naive_twin():
    rng = np.random.RandomState(6)
    pairs = [
        (rng.randint(0, 4, (2, 7, 6)), rng.choice([0, 1, 2, 255], (2, 7, 6))) for _ in range(4)
    ]
    counts = sum(confusion(*pair, 6) for pair in pairs)
    # 3 is predicted but never in the labels, 4 and 5 are in neither
    assert base_miou(counts) == pytest.approx(slow_base_miou(pairs))
    assert base_miou(np.diag([9, 0, 0])) == 0


def test_summary_takes_each_score_by_itself():
    runs = [scores_of(episodes(seed, 5)) for seed in range(3)]
    summary = summarise(runs)
    for score in SCORES:
        values = [run[score] for run in runs]
        assert summary["best"][score] == max(values)
        assert summary["mean"][score] == pytest.approx(sum(values) / 3)
        assert summary["std"][score] == pytest.approx(np.std(values, ddof=1))
        # Student's t of two degrees of freedom: 4.3027
        half_width = 4.30265 * np.std(values, ddof=1) / 3**0.5
        assert summary["ci95"][score] == pytest.approx(half_width, rel=1e-5)
    json.dumps(summary)
    single = summarise(runs[:1])
    assert set(single["std"].values()) == set(single["ci95"].values()) == {None}
    assert single["mean"] == single["best"]
