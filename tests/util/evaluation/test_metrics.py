import json

import numpy as np
import pytest
import torch

from util.evaluation.metrics import (
    BASE_SCORE,
    SCORES,
    EpisodeMetrics,
    base_miou,
    confusion,
    mean_interval,
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


def slow_counts(pairs, cls):
    """Intersection, union and target of a class over (prediction, label) pairs, pixel by pixel."""
    intersection = union = target = 0
    for prediction, label in pairs:
        for p, t in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True):
            if t == 255:
                continue
            intersection += p == cls and t == cls
            union += p == cls or t == cls
            target += t == cls
    return intersection, union, target


def slow_iou(pairs, cls):
    intersection, union, _ = slow_counts(pairs, cls)
    return intersection / union if union else 0.0


def slow_results(drawn):
    def per_class(which):
        return [slow_iou([(e[which], e[4]) for e in drawn if e[0] == c], 1) for c in NOVEL]

    def two_way(which):
        return [slow_iou([(e[which], e[4]) for e in drawn], cls) for cls in (0, 1)]

    base_pairs = [(e[3], e[5]) for e in drawn]
    base = [
        slow_iou(base_pairs, cls)
        for cls in range(1, NUM_BASE + 1)
        if slow_counts(base_pairs, cls)[2] > 0
    ]
    return {
        "mIoU": np.mean(per_class(1)),
        "mIoU_m": np.mean(per_class(2)),
        "mIoU_b": np.mean(base),
        "FBIoU": np.mean(two_way(1)),
        "FBIoU_m": np.mean(two_way(2)),
        "pIoU": two_way(1)[1],
        "class_iou": dict(zip(NOVEL, per_class(1), strict=True)),
    }


def counts_of(final, meta, base, label, base_label):
    pairs = ((final, label, 2), (meta, label, 2), (base, base_label, NUM_BASE + 1))
    return [confusion(*pair) for pair in pairs]


def counted(drawn):
    metrics = EpisodeMetrics(NOVEL, NUM_BASE)
    for class_id, *maps in drawn:
        metrics.add(class_id, *counts_of(*maps))
    return metrics


def assert_same(found, expected):
    assert set(found) == set(expected) == {*SCORES, "class_iou"}
    for score in SCORES:
        assert found[score] == pytest.approx(expected[score], abs=1e-12)
    assert found["class_iou"] == pytest.approx(expected["class_iou"], abs=1e-12)


def test_episode_scores_match_the_naive_twin():
    drawn = episodes(0, 12)
    assert {e[0] for e in drawn} == set(NOVEL)
    assert_same(counted(drawn).results(), slow_results(drawn))


def test_a_class_that_never_came_counts_zero():
    drawn = episodes(1, 8, classes=(3, 7))
    results = counted(drawn).results()
    assert results["class_iou"][9] == 0.0
    assert results["mIoU"] == pytest.approx(
        (results["class_iou"][3] + results["class_iou"][7]) / 3, abs=1e-12
    )
    assert_same(results, slow_results(drawn))


def test_known_numbers():
    final = np.array([[1, 1, 0, 0], [1, 1, 0, 0]])
    meta = np.zeros((2, 4), int)
    label = np.array([[1, 0, 0, 255], [1, 255, 1, 0]])
    base = np.array([[1, 1, 2, 2], [0, 0, 0, 0]])
    base_label = np.array([[1, 0, 255, 255], [0, 0, 0, 2]])
    metrics = EpisodeMetrics([5], NUM_BASE)
    metrics.add(5, *counts_of(final, meta, base, label, base_label))
    results = metrics.results()
    assert results["mIoU"] == results["pIoU"] == pytest.approx(2 / 4)
    assert results["FBIoU"] == pytest.approx((2 / 4 + 2 / 4) / 2)
    assert results["mIoU_m"] == 0.0
    assert results["FBIoU_m"] == pytest.approx((3 / 6) / 2)
    assert results["mIoU_b"] == pytest.approx((1 / 2 + 0) / 2)  # classes 3 and 4 do not occur


def test_nothing_counted_gives_zeros():
    results = EpisodeMetrics(NOVEL, NUM_BASE).results()
    assert [results[score] for score in SCORES] == [0.0] * len(SCORES)


def test_tensors_count_like_arrays_and_nothing_is_written_to():
    drawn = episodes(2, 6)
    copies = [tuple(np.copy(value) for value in episode) for episode in drawn]
    tensors = [(class_id, *map(torch.from_numpy, maps)) for class_id, *maps in drawn]
    assert (counted(tensors).state() == counted(drawn).state()).all()
    for episode, copy in zip(drawn, copies, strict=True):
        assert all((a == b).all() for a, b in zip(episode, copy, strict=True))


def test_states_of_two_processes_sum_to_that_of_one():
    drawn = episodes(3, 9)
    one, other, whole = counted(drawn[:4]), counted(drawn[4:]), counted(drawn)
    assert one.state().dtype == np.int64
    one.load_state(one.state() + other.state())
    assert (one.state() == whole.state()).all()
    assert_same(one.results(), whole.results())


def test_state_is_a_copy():
    metrics = counted(episodes(4, 2))
    before = metrics.state()
    metrics.state()[:] = 0
    assert before.any() and (metrics.state() == before).all()


def test_wrong_maps_are_refused_and_not_counted():
    label = np.zeros((3, 4), int)
    with pytest.raises(ValueError, match="differ in shape"):
        confusion(label, label[:-1], 2)
    with pytest.raises(ValueError, match="prediction holds"):
        confusion(label + 2, label, 2)
    with pytest.raises(ValueError, match="label holds"):
        confusion(label, label + 2, 2)
    metrics = EpisodeMetrics(NOVEL)
    with pytest.raises(ValueError, match="class 4"):
        metrics.add(4, *[confusion(label, label, 2)] * 2)
    assert not metrics.state().any()


def test_without_the_base_learner_its_score_is_absent_and_the_others_are_the_same():
    drawn = episodes(5, 6)
    metrics = EpisodeMetrics(NOVEL)
    for class_id, *maps in drawn:
        metrics.add(class_id, *counts_of(*maps)[:2])
    expected = counted(drawn).results()
    del expected[BASE_SCORE]
    assert metrics.results() == expected
    assert set(summarise([metrics.results()])["mean"]) == {*SCORES} - {BASE_SCORE}


def test_the_base_miou_matches_the_naive_twin():
    rng = np.random.RandomState(6)
    pairs = [
        (rng.randint(0, 5, (2, 7, 6)), rng.choice([0, 1, 2, 4, 255], (2, 7, 6))) for _ in range(4)
    ]
    counts = sum(confusion(*pair, 6) for pair in pairs)
    # 3 is predicted but never in the labels, 5 is in neither
    assert base_miou(counts) == pytest.approx(np.mean([slow_iou(pairs, c) for c in (1, 2, 4)]))
    assert base_miou(np.diag([9, 0, 0])) == 0


def test_summary_takes_each_score_by_itself():
    runs = [counted(episodes(seed, 5)).results() for seed in range(3)]
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
    with pytest.raises(ValueError, match="no runs"):
        mean_interval([])


def test_a_single_run_has_no_spread():
    summary = summarise([counted(episodes(0, 5)).results()])
    assert set(summary["std"].values()) == set(summary["ci95"].values()) == {None}
    assert summary["mean"] == summary["best"]


def test_intervals_hold_the_mean_of_the_population_as_often_as_they_say():
    rng = np.random.RandomState(0)
    held = 0
    for values in rng.normal(5, 2, (4000, 10)):
        mean, _, half_width = mean_interval(values)
        held += abs(mean - 5) <= half_width
    assert held / 4000 == pytest.approx(0.95, abs=0.012)
