"""Evaluation on episodes, which validation and the test share, and that of the base learner."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Subset
from tqdm import tqdm

from model import PSPNet
from util.data.dataset import BaseDataset
from util.data.draws import Draw
from util.data.loaders import evaluation_loader
from util.evaluation.counts import Counts, RunCounts, UnitCounts
from util.evaluation.journal import Journal
from util.evaluation.metrics import base_miou, confusion
from util.evaluation.plan import plan_units, share_units
from util.evaluation.predictor import Prediction, Predictor, resize_logits
from util.evaluation.prior_baseline import PriorBaselines, PriorHistograms, Threshold
from util.runtime.distributed import Processes
from util.runtime.log import LOGGER_NAME


class Work(NamedTuple):
    """The work of an evaluation, over all processes.

    Attributes:
        episodes: The number of episodes that were executed, without those that a journal held.
        seconds: The time from the first to the last.
        hits: How often the features of a support were still in memory.
        misses: How often they were computed.
    """

    episodes: int
    seconds: float
    hits: int
    misses: int


class Evaluation(NamedTuple):
    """The counts of an evaluation, over all processes.

    Attributes:
        runs: The counts of each run.
        records: The `episode_counts` of all episodes, int64 (episodes, RECORD), run after run.
        work: What the evaluation took.
    """

    runs: list[RunCounts]
    records: np.ndarray
    work: Work


def evaluate_episodes(
    predictor: Predictor,
    runs: Sequence[Sequence[Draw]],
    processes: Processes,
    threshold: Threshold | None = None,
    journal: Journal | None = None,
    progress: str | None = None,
) -> Evaluation:
    """Run a model on the drawn episodes of some runs, each process its share.

    The integers it counts do not depend on the number of processes or on what the journal held.

    Args:
        predictor: The model, put in eval mode and left so.
        runs: The episodes of each run.
        processes: This process among all.
        threshold: The threshold of the prior's baseline. None: histograms of the prior are counted
            if `predictor` gives it.
        journal: Where to read what was counted before, and to write what is counted now; None for
            neither.
        progress: Label of a progress bar and of what the journal held in the log, None for neither.

    Raises:
        UserError: An image cannot be read, or the journal cannot be written.
    """
    draws = [draw for run in runs for draw in run]
    run_of = np.repeat(np.arange(len(runs)), [len(run) for run in runs])

    def new_counts() -> RunCounts:
        classes = predictor.episodes.classes
        prior: PriorHistograms | PriorBaselines | None = None
        if predictor.prior and threshold is not None:
            prior = PriorBaselines(classes, threshold)
        elif predictor.prior:
            prior = PriorHistograms(classes)
        return RunCounts(classes, predictor.scored_base_classes, prior)

    totals = [new_counts() for _ in runs]
    counts = Counts([len(run) for run in runs], totals[0].state().size)
    if journal is not None and processes.is_main:
        journal.read(counts)
    # What the main process has read holds for all: nobody writes before everybody knows it.
    done = processes.sum(counts.done().astype(np.int64)) > 0
    units = plan_units(draws, predictor.batch_size, np.flatnonzero(~done).tolist())
    mine = share_units(draws, units, processes.world_size)[processes.rank]

    hidden = progress is None or not processes.is_main
    if done.any() and not hidden:
        kept = f"{done.sum()} of {done.size} episodes were counted before and are kept"
        logging.getLogger(LOGGER_NAME).info(f"{progress}: {kept}")
    start = time.monotonic()
    with (
        nullcontext() if journal is None else journal.writing(processes.rank) as append,
        # None: a bar on a terminal, nothing in a file.
        tqdm(
            total=sum(len(batch) for unit in mine for batch in unit),
            desc=progress,
            unit="episode",
            disable=True if hidden else None,
        ) as bar,
    ):
        for predictions in predictor.predict(draws, mine):
            unit = _count(predictions, draws, run_of, new_counts)
            counts.add(unit)
            if append is not None:
                append(unit)
            bar.update(len(predictions))
    counts.records[...] = processes.sum(counts.records)
    states = processes.sum(counts.states)
    for total, state in zip(totals, states, strict=True):
        total.load_state(state)
    cache = predictor.cache
    hits, misses = processes.sum(np.array([cache.hits, cache.misses])).tolist()
    work = Work(int((~done).sum()), time.monotonic() - start, hits, misses)
    return Evaluation(totals, counts.records, work)


def _count(
    predictions: Sequence[Prediction],
    draws: Sequence[Draw],
    run_of: np.ndarray,
    new_counts: Callable[[], RunCounts],
) -> UnitCounts:
    runs: dict[int, RunCounts] = defaultdict(new_counts)
    records = []
    for prediction in predictions:
        position = prediction.position
        run = int(run_of[position])
        records.append(runs[run].update(draws[position].class_id, prediction))
    states = {run: counts.state() for run, counts in runs.items()}
    return UnitCounts([p.position for p in predictions], np.stack(records), states)


@torch.no_grad()
def evaluate_base(
    net: PSPNet, dataset: BaseDataset, processes: Processes, workers: int = 0
) -> float:
    """Return the mIoU of the base learner over its base classes, on images at their original size.

    Args:
        net: The base learner, put in eval mode and left so.
        dataset: The images of the val list.
        processes: This process among all.
        workers: Loader workers of this process.
    """
    net.eval()
    classes = net.base_classes + 1
    counts = np.zeros((classes, classes), np.int64)
    share = Subset(dataset, range(processes.rank, len(dataset), processes.world_size))
    for batch in evaluation_loader(share, workers):
        logits = net(batch["image"].to(processes.device))
        label = batch["label"][0]
        counts += confusion(resize_logits(logits, label.shape)[0].argmax(0), label, classes)
    return base_miou(processes.sum(counts))
