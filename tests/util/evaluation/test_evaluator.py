import logging
from functools import cached_property, partial

import numpy as np
import pytest
import torch

from tests.small_model import SIZE, plain_output, small_episodes, small_net
from util.data.draws import draw_test_episodes
from util.evaluation.counts import Counts
from util.evaluation.evaluator import evaluate_episodes
from util.evaluation.journal import Journal
from util.evaluation.metrics import BASE_SCORE, confusion
from util.evaluation.predictor import Predictor, resize_logits
from util.evaluation.prior_baseline import Threshold, best_threshold, threshold_miou
from util.runtime.distributed import Processes
from util.runtime.log import LOGGER_NAME

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU)
SEEDS, LENGTH = (510, 365), 6
EPISODES = len(SEEDS) * LENGTH
FEW = 4e5  # bytes of the features of a handful of supports


class Small:
    """Episodes, model and two runs, and the evaluation with which others are compared."""

    def __init__(self, tiny_voc, cache, shot=1, **options):
        self.episodes = small_episodes(tiny_voc, cache, shot, **options)
        self.net = small_net(self.episodes)
        lists = self.episodes.lists
        self.runs = [draw_test_episodes(lists, shot, LENGTH, seed, 2) for seed in SEEDS]
        self.draws = [draw for run in self.runs for draw in run]

    @cached_property
    def expected(self):
        return self.evaluate()

    def predictor(self, **options):
        return Predictor(self.net, self.episodes, CPU, **{"cache_bytes": 2**30} | options)

    def evaluate(self, processes=ALONE, threshold=None, **options):
        return evaluate_episodes(self.predictor(**options), self.runs, processes, threshold)


@pytest.fixture(scope="module")
def small(tiny_voc, tmp_path_factory):
    """The different kinds of episodes, by name."""
    make = partial(Small, tiny_voc, tmp_path_factory.mktemp("lists"))
    return {
        "1 shot": make(),
        "2 shots": make(2),
        "base": make(part="train"),
        "padded": make(resized=False),
    }


def fitted(episodes, logits, item):
    """Logits at the size of the label, as the published code resizes them."""
    height, width = episodes.transform.fitted_size(*item["label"].shape)
    return resize_logits(logits[..., :height, :width], item["label"].shape)[0]


def plain_counts(case, net, original_size, threshold):
    """The counts of one episode after the other, nothing shared."""
    counts = Counts(EPISODES, len(SEEDS), 15 if net is case.net else 0)
    for position, draw in enumerate(case.draws):
        item = case.episodes.load(*draw, rng=None)
        label, base_label = item["label"], item["base_label"]
        if not original_size:
            label, base_label = item["query_mask"], item["base_mask"]
        if net is not case.net:
            item.pop("class_index", None)  # Its base learner does not know the classes.
        out = plain_output(net, item)
        maps = [out.final, out.meta, out.base, resize_logits(out.prior, (SIZE, SIZE))]
        maps = [fitted(case.episodes, m, item) if original_size else m[0] for m in maps]
        final, meta, base = (m.argmax(0) for m in maps[:3])
        record = counts.records[position]
        record["final"], record["meta"] = confusion(final, label, 2), confusion(meta, label, 2)
        record["prior"] = confusion(threshold.foreground(maps[3]), label, 2)
        record["pixels"] = label.numel()
        if net is case.net:
            counts.base[position // LENGTH] += confusion(base, base_label, 16)
    return counts


def assert_equal(found, expected):
    assert (found.counts.numbers == expected.counts.numbers).all()
    assert (found.counts.sums == expected.counts.sums).all()
    assert found.runs == expected.runs


@pytest.mark.parametrize(
    ("kind", "original_size", "base_classes"),
    [
        *(("1 shot", True, 15), ("2 shots", True, 15), ("base", True, 15), ("padded", True, 15)),
        ("1 shot", False, 15),  # compared at the size of the network
        # Weights of another number of base classes are tested without base scores.
        ("base", True, 4),
    ],
)
def test_counts_are_those_of_one_episode_after_the_other(small, kind, original_size, base_classes):
    case, threshold = small[kind], Threshold(0, 250)
    net = case.net if base_classes == 15 else small_net(case.episodes, base_classes)
    predictor = Predictor(net, case.episodes, CPU, original_size, cache_bytes=2**30, prior=True)
    evaluation = evaluate_episodes(predictor, case.runs, ALONE, threshold)
    found, expected = evaluation.counts, plain_counts(case, net, original_size, threshold)
    assert (found.records["pixels"] == expected.records["pixels"]).all()
    # The plain pass computes query and supports in one batch: equal but for rounding.
    for name in ("final", "meta", "prior"):
        moved = np.abs(found.records[name] - expected.records[name]).sum((1, 2))
        assert moved.max() <= 4 and moved.sum() <= 2e-4 * expected.records["pixels"].sum(), name
    assert np.abs(found.sums - expected.sums).sum() <= 2e-4 * expected.sums.sum()
    assert expected.records["final"].sum(0).min() > 500, "the predictions hold one label only"
    assert all((BASE_SCORE in run) == (base_classes == 15) for run in evaluation.runs)


def test_a_base_learner_of_another_dataset_is_not_scored(small):
    case = small["1 shot"]
    (run,) = evaluate_episodes(case.predictor(own_classes=False), case.runs[:1], ALONE).runs
    expected = dict(case.expected.runs[0])
    del expected[BASE_SCORE]
    assert run == expected


# not one; a handful, so that what the loader left out is dropped meanwhile
@pytest.mark.parametrize(("cache_bytes", "workers"), [(0, 0), (FEW, 0), (FEW, 2)])
def test_the_cache_changes_nothing(small, cache_bytes, workers):
    case = small["2 shots"]
    drawn = EPISODES * 2
    distinct = len({(draw.class_id, s) for draw in case.draws for s in draw.supports})
    everything = case.expected.work
    assert (everything.hits, everything.misses) == (drawn - distinct, distinct)
    found = case.evaluate(cache_bytes=cache_bytes, workers=workers)
    assert found.work.hits + found.work.misses == drawn
    assert (found.work.hits == 0) == (cache_bytes == 0) and found.work.misses > distinct
    assert_equal(found, case.expected)


def test_batches_give_the_counts_of_single_episodes(small):
    case = small["2 shots"]
    single, batched = case.expected.counts.records, case.evaluate(batch_size=3).counts.records
    # A product of another shape rounds differently: a pixel on the fence may fall to the other side.
    moved = sum(np.abs(single[key] - batched[key]).sum() for key in ("final", "meta"))
    assert moved <= 1e-5 * single["pixels"].sum()
    assert (single[["pixels", "classes"]] == batched[["pixels", "classes"]]).all()


def test_each_query_is_encoded_once_for_all_runs(small, monkeypatch):
    case = small["1 shot"]
    encoded, encode = [], case.net.encode_query
    monkeypatch.setattr(case.net, "encode_query", lambda x: encoded.append(x) or encode(x))
    case.evaluate(batch_size=2)
    assert len(encoded) == len({draw.index for draw in case.draws}) < EPISODES
    assert all(image.shape == (1, 3, SIZE, SIZE) for image in encoded)


def test_the_meta_learner_alone(small):
    case = small["1 shot"]
    for expected, found in zip(case.expected.runs, case.evaluate(ensemble=False).runs, strict=True):
        assert found["mIoU"] == found["mIoU_m"] == expected["mIoU_m"] != expected["mIoU"]
        assert found["mIoU_b"] == expected["mIoU_b"]


def test_histograms_of_the_prior_agree_with_the_baselines(small):
    case = small["base"]
    histograms = case.evaluate(prior=True).counts.prior[0]
    best, miou = best_threshold(histograms), threshold_miou(histograms)
    baselines = case.evaluate(prior=True, threshold=best).runs[0]["baselines"]
    assert baselines["prior"] == pytest.approx(miou[best])
    assert baselines["all_foreground"] == pytest.approx(miou[0, 0])


def test_annotations_reach_the_model(small):
    case = small["1 shot"]
    records = [case.expected.counts.records]
    records += [
        case.evaluate(ann_type=word).counts.records for word in ("bbox", "scribble", "point")
    ]
    assert len({one["final"].tobytes() for one in records}) == 4
    # Only the supports are annotated: the truth is the same.
    assert all((one["final"].sum(2) == records[0]["final"].sum(2)).all() for one in records)


class Rank(Processes):
    """One of several processes that run one after the other: sums over those that came before."""

    def __init__(self, rank, world_size, sums):
        super().__init__(rank, world_size, CPU)
        object.__setattr__(self, "sums", sums)
        object.__setattr__(self, "calls", [])

    def sum(self, counts):
        number = len(self.calls)
        self.calls.append(counts)
        if number == 0:
            return counts  # nothing was done before
        self.sums.setdefault(number, np.zeros_like(counts))
        self.sums[number] += counts
        return self.sums[number].copy()


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 1), (3, 3)])
def test_processes_share_the_episodes(small, world_size, batch_size):
    case, sums = small["1 shot"], {}
    options = {"batch_size": batch_size, "cache_bytes": FEW}
    several = [case.evaluate(Rank(rank, world_size, sums), **options) for rank in range(world_size)]
    assert all(evaluation.work.misses for evaluation in several)
    expected = case.evaluate(**options)
    assert_equal(several[-1], expected)
    assert (several[0].counts.numbers != expected.counts.numbers).any()


class KilledError(Exception):
    pass


def dying_after(units, predictor):
    """The predictor, until it has predicted some units."""
    predict = predictor.predict

    def some(draws, all_units):
        for number, predictions in enumerate(predict(draws, all_units)):
            if number == units:
                raise KilledError
            yield predictions

    predictor.predict = some
    return predictor


def test_a_journal_goes_on_where_processes_died(small, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(logging.getLogger(LOGGER_NAME), "info", said.append)
    case, threshold = small["1 shot"], Threshold(1, 200)
    whole = case.evaluate(prior=True, threshold=threshold)
    journal = Journal(tmp_path, ["this test"])
    for rank, units in ((0, 2), (1, 1)):
        with pytest.raises(KilledError):
            predictor = dying_after(units, case.predictor(prior=True))
            evaluate_episodes(predictor, case.runs, Rank(rank, 2, {}), threshold, journal)
    files = sorted(tmp_path.iterdir())
    assert [len(path.read_bytes().split(b"\n")) - 2 for path in files] == [2, 1]
    files[0].write_bytes(files[0].read_bytes()[:-9])  # torn while it was written

    def go_on(progress):
        predictor = case.predictor(prior=True)
        return evaluate_episodes(predictor, case.runs, ALONE, threshold, journal, progress)

    rest = go_on("testing")
    left = EPISODES - rest.work.episodes
    assert said == [f"testing: {left} of {EPISODES} episodes were counted before and are kept"]
    assert 4 <= left < EPISODES
    assert_equal(rest, whole)

    again = go_on(None)
    assert len(said) == 1
    assert again.work.episodes == 0 and again.work.misses == 0
    assert 0 <= again.work.seconds < rest.work.seconds < 600
    assert_equal(again, whole)
    journal.remove()
    assert not list(tmp_path.iterdir())
