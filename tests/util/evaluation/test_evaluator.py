import logging
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.small_model import SIZE, plain_output, small_episodes, small_net
from util.data.draws import draw_test_episodes
from util.evaluation.evaluator import evaluate_episodes
from util.evaluation.journal import Journal
from util.evaluation.metrics import BASE_SCORE, EpisodeMetrics, confusion
from util.evaluation.predictor import Predictor
from util.evaluation.prior_baseline import PriorBaselines, PriorHistograms, Threshold
from util.runtime.distributed import Processes
from util.runtime.log import LOGGER_NAME

CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU)
SEEDS = (510, 365)


@pytest.fixture(scope="module")
def small(tiny_voc, tmp_path_factory):
    """Episodes, model and two runs, by shot."""
    cache = tmp_path_factory.mktemp("lists")

    def make(shot, **options):
        episodes = small_episodes(tiny_voc, cache, shot, **options)
        runs = [draw_test_episodes(episodes.lists, shot, 12, seed, 2) for seed in SEEDS]
        return episodes, small_net(episodes), runs

    return {
        1: make(1),
        2: make(2),
        "base": make(1, part="train"),
        "padded": make(1, resized=False),
    }


def count(metrics, draw, maps, label, base_label):
    """Count the predictions of final, meta and base learner for an episode."""
    final, meta, base = maps
    counts = confusion(final, label, 2), confusion(meta, label, 2), confusion(base, base_label, 16)
    metrics.add(draw.class_id, *counts)


def fitted(episodes, logits, item):
    """Logits at the size of the label, as the published code resizes them."""
    height, width = episodes.transform.fitted_size(*item["label"].shape)
    logits = logits[..., :height, :width]
    return F.interpolate(logits, size=item["label"].shape, mode="bilinear", align_corners=True)[0]


@pytest.mark.parametrize("key", [1, 2, "base", "padded"])
def test_counts_are_those_of_one_episode_after_the_other(small, key):
    episodes, net, runs = small[key]
    predictor = Predictor(net, episodes, CPU, cache_bytes=2**30, prior=True)
    threshold = Threshold(0, 250)
    evaluation = evaluate_episodes(predictor, runs, ALONE, threshold)
    records = iter(evaluation.records)
    for run, counted in zip(runs, evaluation.runs, strict=True):
        metrics = EpisodeMetrics(episodes.classes, 15)
        prior = PriorBaselines(episodes.classes, threshold)
        for draw in run:
            item = episodes.load(*draw, rng=None)
            out = plain_output(net, item)
            maps = [fitted(episodes, x, item).argmax(0) for x in (out.final, out.meta, out.base)]
            count(metrics, draw, maps, item["label"], item["base_label"])
            enlarged = F.interpolate(
                out.prior, size=(SIZE, SIZE), mode="bilinear", align_corners=True
            )
            prior.update(draw.class_id, fitted(episodes, enlarged, item), item["label"].numpy())
            record = next(records)
            expected = confusion(maps[0], item["label"], 2).ravel()
            # The plain pass computes query and supports in one batch: equal but for rounding.
            assert np.abs(record[:4] - expected).sum() <= 4
            assert record[8] == item["label"].numel()
        found, expected = counted.metrics.state(), metrics.state()
        assert np.abs(found - expected).sum() <= 2e-4 * expected.sum()
        assert np.abs(counted.prior.state() - prior.state()).sum() <= 2e-4 * prior.state().sum()
        final = confusion_of(metrics)
        assert final.min() > 1000, "the predictions hold one label only: nothing was tested"


def confusion_of(metrics):
    state = metrics.state()
    return state[: 4 * len(metrics.classes)].reshape(-1, 2, 2).sum(0)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_changes_nothing(small, workers):
    episodes, net, runs = small[2]
    evaluations = [
        evaluate_episodes(
            Predictor(net, episodes, CPU, cache_bytes=cache_bytes, workers=workers), runs, ALONE
        )
        # everything; not one; a handful, so that what the loader left out is dropped meanwhile
        for cache_bytes in (2**30, 0, 8e5)
    ]
    everything, nothing, few = (evaluation.work for evaluation in evaluations)
    drawn = 2 * 12 * 2
    distinct = len({(draw.class_id, s) for run in runs for draw in run for s in draw.supports})
    assert (everything.hits, everything.misses) == (drawn - distinct, distinct)
    assert (nothing.hits, nothing.misses) == (0, drawn)
    assert distinct < few.misses < drawn
    for other in evaluations[1:]:
        assert (other.records == evaluations[0].records).all()
        for counts, expected in zip(other.runs, evaluations[0].runs, strict=True):
            assert (counts.state() == expected.state()).all()


def test_batches_give_the_counts_of_single_episodes(small):
    episodes, net, runs = small[2]
    single, batched = (
        evaluate_episodes(Predictor(net, episodes, CPU, batch_size=size), runs, ALONE)
        for size in (1, 3)
    )
    # A product of another shape rounds differently: a pixel on the fence may fall to the other side.
    moved = np.abs(single.records[:, :8] - batched.records[:, :8]).sum()
    assert moved <= 1e-5 * single.records[:, 8].sum()
    assert (single.records[:, 8:] == batched.records[:, 8:]).all()


def test_each_query_is_encoded_once_for_all_runs(small, monkeypatch):
    episodes, net, runs = small[1]
    encoded = []
    encode = net.encode_query
    monkeypatch.setattr(net, "encode_query", lambda image: encoded.append(image) or encode(image))
    evaluate_episodes(Predictor(net, episodes, CPU, batch_size=2), runs, ALONE)
    assert len(encoded) == len({draw.index for run in runs for draw in run}) < 2 * 12
    assert all(image.shape == (1, 3, SIZE, SIZE) for image in encoded)


def test_the_meta_learner_alone(small):
    episodes, net, runs = small[1]
    both, alone = (
        evaluate_episodes(Predictor(net, episodes, CPU, ensemble=ensemble), runs, ALONE)
        for ensemble in (True, False)
    )
    for with_base, meta in zip(both.runs, alone.runs, strict=True):
        expected, found = with_base.metrics.results(), meta.metrics.results()
        assert found["mIoU"] == found["mIoU_m"] == expected["mIoU_m"] != expected["mIoU"]
        assert found["mIoU_b"] == expected["mIoU_b"]


def test_the_size_of_the_network_can_be_compared(small):
    episodes, net, runs = small[1]
    evaluation = evaluate_episodes(
        Predictor(net, episodes, CPU, original_size=False), runs[:1], ALONE
    )
    metrics = EpisodeMetrics(episodes.classes, 15)
    for draw in runs[0]:
        item = episodes.load(*draw, rng=None)
        out = plain_output(net, item)
        maps = [logits[0].argmax(0) for logits in (out.final, out.meta, out.base)]
        count(metrics, draw, maps, item["query_mask"], item["base_mask"])
    found, expected = evaluation.runs[0].metrics.state(), metrics.state()
    assert np.abs(found - expected).sum() <= 2e-4 * expected.sum()
    assert (evaluation.records[:, 8] == SIZE**2).all()


@pytest.mark.parametrize("key", [1, "base"])
def test_weights_of_another_number_of_base_classes_are_tested_without_base_scores(small, key):
    episodes, _, runs = small[key]
    net = small_net(episodes, base_classes=4)
    found = evaluate_episodes(Predictor(net, episodes, CPU), runs[:1], ALONE).runs[0].metrics
    metrics = EpisodeMetrics(episodes.classes)
    for draw in runs[0]:
        item = episodes.load(*draw, rng=None)
        # The base learner does not know the classes: none is left out of its map.
        item.pop("class_index", None)
        out = plain_output(net, item)
        maps = [fitted(episodes, logits, item).argmax(0) for logits in (out.final, out.meta)]
        metrics.add(draw.class_id, *(confusion(one, item["label"], 2) for one in maps))
    expected = metrics.state()
    assert np.abs(found.state() - expected).sum() <= 2e-4 * expected.sum()
    assert BASE_SCORE not in found.results()


def test_histograms_of_the_prior_agree_with_the_baselines(small):
    episodes, net, runs = small["base"]
    predictor = Predictor(net, episodes, CPU, prior=True)
    histograms = evaluate_episodes(predictor, runs[:1], ALONE).runs[0].prior
    assert isinstance(histograms, PriorHistograms)
    best = histograms.best()
    baselines = evaluate_episodes(predictor, runs[:1], ALONE, best).runs[0].prior.results()
    assert baselines["prior"] == pytest.approx(histograms.miou()[best])
    assert baselines["all_foreground"] == pytest.approx(histograms.miou()[0, 0])


def test_annotations_reach_the_model(small):
    episodes, net, runs = small[1]
    counts = {
        ann_type: evaluate_episodes(
            Predictor(net, episodes, CPU, cache_bytes=2**30, ann_type=ann_type), runs, ALONE
        ).records
        for ann_type in ("mask", "bbox", "scribble", "point")
    }
    assert len({records[:, :4].tobytes() for records in counts.values()}) == 4
    # Only the supports are annotated: the truth is the same.
    for records in counts.values():
        assert (records[:, 4:].sum() - counts["mask"][:, 4:].sum()) == 0
        assert (records[:, 2] + records[:, 3] == counts["mask"][:, 2:4].sum(1)).all()


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


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_processes_share_the_episodes(small, world_size, batch_size):
    episodes, net, runs = small[1]
    make = partial(Predictor, net, episodes, CPU, batch_size=batch_size, cache_bytes=8e5)
    one = evaluate_episodes(make(), runs, ALONE)
    sums = {}
    several = [
        evaluate_episodes(make(), runs, Rank(rank, world_size, sums)) for rank in range(world_size)
    ]
    assert all(evaluation.work.misses for evaluation in several)
    assert (several[-1].records == one.records).all()
    assert (several[0].records != one.records).any()
    for counts, expected in zip(several[-1].runs, one.runs, strict=True):
        assert (counts.state() == expected.state()).all()


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
    episodes, net, runs = small[1]
    make = partial(Predictor, net, episodes, CPU, cache_bytes=2**30, prior=True)
    threshold = Threshold(1, 200)
    whole = evaluate_episodes(make(), runs, ALONE, threshold, progress="testing")
    assert not said
    journal = Journal(tmp_path, ["this test"])
    for rank, units in ((0, 4), (1, 3)):
        with pytest.raises(KilledError):
            predictor = dying_after(units, make())
            evaluate_episodes(predictor, runs, Rank(rank, 2, {}), threshold, journal)
    files = sorted(tmp_path.iterdir())
    assert [len(path.read_bytes().splitlines()) for path in files] == [4, 3]
    files[0].write_bytes(files[0].read_bytes()[:-9])  # torn while it was written

    rest = evaluate_episodes(make(), runs, ALONE, threshold, journal, "testing")
    left = whole.work.episodes - rest.work.episodes
    kept = f"testing: {left} of {whole.work.episodes} episodes were counted before and are kept"
    assert said == [kept]
    assert 6 <= left < whole.work.episodes
    assert (rest.records == whole.records).all()
    for counts, expected in zip(rest.runs, whole.runs, strict=True):
        assert (counts.state() == expected.state()).all()

    again = evaluate_episodes(make(), runs, ALONE, threshold, journal)
    assert again.work.episodes == 0 and again.work.misses == 0
    assert (again.records == whole.records).all()
    journal.remove()
    assert not list(tmp_path.iterdir())
