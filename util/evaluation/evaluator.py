"""Evaluation on episodes, which validation and the test share, and that of the base learner."""

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Subset
from tqdm import tqdm

from model import PSPNet
from util.data.dataset import BaseDataset
from util.data.draws import Draw
from util.data.loaders import evaluation_loader
from util.evaluation.counts import Counts
from util.evaluation.journal import Journal
from util.evaluation.metrics import base_miou, confusion, episode_scores
from util.evaluation.plan import plan_units, share_units
from util.evaluation.predictor import Predictor, resize_logits
from util.evaluation.prior_baseline import Threshold, baseline_scores
from util.runtime.distributed import Processes
from util.runtime.log import LOGGER_NAME


class Work(NamedTuple):
    """The work of an evaluation, over all processes."""

    episodes: int  # that were executed, without those that a journal held
    seconds: float
    hits: int  # how often the features of a support were still in memory
    misses: int  # how often they were computed


class Evaluation(NamedTuple):
    """The result of an evaluation, over all processes."""

    runs: list[dict[str, Any]]  # `episode_scores` and, with a threshold, "baselines"
    counts: Counts  # what they were computed from
    work: Work


def evaluate_episodes(
    predictor: Predictor,
    runs: Sequence[Sequence[Draw]],
    processes: Processes,
    threshold: Threshold | None = None,
    journal: Journal | None = None,
    progress: str | None = None,
    skip_absent: bool = False,
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
        skip_absent: See `util.evaluation.metrics.episode_scores`.

    Raises:
        UserError: An image cannot be read, or the journal cannot be written.
    """
    draws = [draw for run in runs for draw in run]
    run_of = np.repeat(np.arange(len(runs)), [len(run) for run in runs])
    classes, num_base = predictor.episodes.classes, predictor.scored_base_classes
    with_histograms = predictor.prior and threshold is None
    sizes = len(runs), num_base, len(classes) if with_histograms else 0
    counts = Counts(len(draws), *sizes)
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
            unit = Counts(len(predictions), *sizes)
            for row, prediction in enumerate(predictions):
                rank = classes.index(draws[prediction.position].class_id)
                unit.count(row, run_of[prediction.position], rank, prediction, threshold)
            positions = [prediction.position for prediction in predictions]
            counts.numbers[positions] = unit.numbers
            counts.sums += unit.sums
            if append is not None:
                append(positions, unit)
            bar.update(len(predictions))
    counts.numbers[...] = processes.sum(counts.numbers)
    counts.sums[...] = processes.sum(counts.sums)
    hits, misses = processes.sum(np.array([predictor.cache.hits, predictor.cache.misses])).tolist()
    work = Work(int((~done).sum()), time.monotonic() - start, hits, misses)

    class_ids, results = np.array([draw.class_id for draw in draws]), []
    for run in range(len(runs)):
        episodes = counts.records[run_of == run], class_ids[run_of == run], classes
        scores = episode_scores(*episodes, counts.base[run] if num_base else None, skip_absent)
        if threshold is not None:
            scores["baselines"] = baseline_scores(*episodes, skip_absent)
        results.append(scores)
    return Evaluation(results, counts, work)


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
