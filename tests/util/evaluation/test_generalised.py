import json

import numpy as np
import pytest
import torch

from util.evaluation.generalised import GeneralisedMetrics, merge_prediction

BASE, NOVEL = (1, 2, 6), (3, 4)
N = len(BASE)


def logits(probabilities):
    """(C, 1, W) logits whose softmax are the given distributions, one per pixel."""
    return torch.tensor(probabilities).T[:, None].log()


# Pixels: sure base class, unsure base class, background, each with final foreground and without.
BASE_LOGITS = logits(
    [
        [0.02, 0.03, 0.95, 1e-9],
        [0.02, 0.03, 0.95, 1e-9],
        [0.2, 0.2, 1e-9, 0.6],
        [0.2, 0.2, 1e-9, 0.6],
        [0.97, 0.01, 0.01, 0.01],
        [0.97, 0.01, 0.01, 0.01],
    ]
)
FINAL = torch.tensor([[0.4, 0.6], [0.6, 0.4]] * 3).T[:, None]


@pytest.mark.parametrize(
    ("merge", "tau", "expected"),
    [
        ("final", 0.9, [2, 2, 5, 3, 5, 0]),
        ("base", 0.9, [2, 2, 5, 0, 5, 0]),
        ("final", 1.0, [5, 2, 5, 3, 5, 0]),
        ("base", 1.0, [5, 0, 5, 0, 5, 0]),
        ("final", 0.0, [2, 2, 3, 3, 5, 0]),
        ("base", 0.0, [2, 2, 3, 3, 5, 0]),
    ],
)
def test_who_decides(merge, tau, expected):
    labels = merge_prediction(FINAL, BASE_LOGITS, 1, merge, tau)
    assert labels.dtype == torch.int64 and labels.tolist() == [expected]


def test_the_novel_label_is_the_rank_behind_the_base_classes():
    labels = [merge_prediction(FINAL, BASE_LOGITS, rank, "final", 1.0)[0, 0] for rank in (0, 7)]
    assert labels == [N + 1, N + 8]


def test_equal_logits_are_background_and_half_precision_is_good():
    final = torch.zeros(2, 1, 6, dtype=torch.float16)
    labels = merge_prediction(final, BASE_LOGITS.half(), 0, "base", 0.9)
    assert labels.tolist() == [[2, 2, 0, 0, 0, 0]]


def test_a_probability_of_tau_is_enough():
    base = torch.full((4, 1, 1), -float("inf"))
    base[2] = 0
    final = torch.tensor([0.0, 1.0])[:, None, None]
    assert merge_prediction(final, base, 0, "final", 1.0).item() == 2


def test_an_unknown_merge_is_refused():
    with pytest.raises(ValueError, match="'both' is neither"):
        merge_prediction(FINAL, BASE_LOGITS, 0, "both", 0.9)


def episodes(seed, count, classes=NOVEL):
    """Random arguments of `update`; base class rank 3 never occurs in the labels."""
    rng = np.random.RandomState(seed)
    drawn = []
    for _ in range(count):
        shape = tuple(rng.randint(5, 12, 2))
        class_id = int(rng.choice(classes))
        label = rng.choice([0, 1, 255], shape, p=[0.6, 0.3, 0.1]).astype(np.uint8)
        base_label = rng.choice([0, 1, 2, 255], shape, p=[0.4, 0.3, 0.2, 0.1]).astype(np.uint8)
        prediction = rng.choice([*range(N + 1), N + 1 + NOVEL.index(class_id)], shape)
        drawn.append((class_id, prediction, label, base_label))
    return drawn


def counted(drawn):
    metrics = GeneralisedMetrics(BASE, NOVEL)
    for episode in drawn:
        metrics.update(*episode)
    return metrics


def slow_ious(drawn):
    """IoU of base and novel classes, pixel by pixel, by the definition of the truth."""
    label_of = {class_id: rank for rank, class_id in enumerate((*BASE, *NOVEL), 1)}
    both, either = dict.fromkeys(label_of, 0), dict.fromkeys(label_of, 0)
    for class_id, prediction, label, base_label in drawn:
        for p, novel, base in zip(prediction.flat, label.flat, base_label.flat, strict=True):
            if 255 in (novel, base):
                continue
            truth = label_of[class_id] if novel == 1 else base
            for wanted, value in label_of.items():
                both[wanted] += p == value and truth == value
                either[wanted] += p == value or truth == value
    return {class_id: both[class_id] / max(either[class_id], 1) for class_id in label_of}


def test_scores_match_the_naive_twin():
    drawn = episodes(0, 12)
    results = counted(drawn).results()
    expected = slow_ious(drawn)
    assert results["class_iou"] == pytest.approx(expected)
    assert results["mIoU_base"] == pytest.approx((expected[1] + expected[2]) / 2)
    assert results["mIoU_novel"] == pytest.approx((expected[3] + expected[4]) / 2)
    assert results["mIoU_both"] == pytest.approx(sum(expected[c] for c in (1, 2, 3, 4)) / 4)
    assert 0 < results["mIoU_novel"] != results["mIoU_base"] > 0
    json.dumps(results)


def test_a_held_out_class_that_never_came_counts_zero():
    drawn = episodes(1, 6, classes=(4,))
    results = counted(drawn).results()
    assert results["class_iou"][3] == 0
    assert results["class_iou"][4] > 0
    assert results["mIoU_novel"] == pytest.approx(results["class_iou"][4] / 2)
    assert GeneralisedMetrics(BASE, NOVEL).results()["mIoU_both"] == 0


def test_known_numbers():
    metrics = GeneralisedMetrics(BASE, NOVEL)
    label = torch.tensor([[1, 1, 0, 0, 0, 255]])
    base_label = torch.tensor([[0, 0, 2, 2, 0, 0]])
    prediction = torch.tensor([[5, 0, 2, 5, 0, 5]])
    metrics.update(4, prediction, label, base_label)
    results = metrics.results()
    assert results["class_iou"] == pytest.approx({1: 0, 2: 1 / 2, 6: 0, 3: 0, 4: 1 / 3})
    assert results["mIoU_base"] == pytest.approx(1 / 2)
    assert results["mIoU_novel"] == pytest.approx(1 / 6)
    assert results["mIoU_both"] == pytest.approx((1 / 2 + 1 / 3) / 3)


def test_counts_of_two_processes_add_up():
    drawn = episodes(2, 9)
    states = [counted(part).state() for part in (drawn[::2], drawn[1::2])]
    joined = GeneralisedMetrics(BASE, NOVEL)
    joined.load_state(torch.from_numpy(states[0] + states[1]))
    assert states[0].dtype == np.int64 and joined.results() == counted(drawn).results()


def test_wrong_use_is_refused_and_counts_nothing():
    with pytest.raises(ValueError, match="class 2 is both base and novel"):
        GeneralisedMetrics((1, 2), (2, 3))
    metrics = GeneralisedMetrics(BASE, NOVEL)
    zeros = np.zeros((2, 3), int)
    with pytest.raises(ValueError, match="class 6 is not one of"):
        metrics.update(6, zeros, zeros, zeros)
    with pytest.raises(ValueError, match="differ in shape"):
        metrics.update(3, zeros, zeros, zeros[:1])
    with pytest.raises(ValueError, match="differ in shape"):
        metrics.update(3, zeros[:1], zeros, zeros)
    assert metrics.state().sum() == 0
