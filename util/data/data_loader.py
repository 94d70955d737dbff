"""Data loaders: quiet workers, errors of one line, and passes that can go on in the middle.

`TrainLoader` has the order and the episodes of a plain DataLoader with the same seed and number of
workers. Each worker sends, with every batch, where its random streams then stand; with the state of
torch's generator at the start of the pass, that is all it takes to make the rest of it again.
"""

import copy
import multiprocessing
import multiprocessing.context
import signal
from collections.abc import Iterator
from itertools import islice
from typing import Any

import cv2
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    Sampler,
    default_collate,
    get_worker_info,
)

from util.data.streams import get_streams, set_streams
from util.runtime.errors import DataError, UserError

_STREAMS = "streams"


def prepare_worker(_worker: int) -> None:
    """What every loader process does first; a `worker_init_fn`."""
    # The workers are the parallelism: OpenCV's own threads would only compete.
    cv2.setNumThreads(0)
    # A training that is told to stop finishes its step, and needs its workers for that, though a
    # terminal or a cluster tells every process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Worker(multiprocessing.Process):
    """A process, started as the platform does, that is killed where others get a SIGTERM."""

    def start(self) -> None:
        """Start it."""
        super().start()
        # What both torch and Python's own exit use.
        self._popen.terminate = self._popen.kill


def _context_that_kills() -> multiprocessing.context.BaseContext:
    """How this platform starts processes; torch ends idle workers by SIGTERM, which ours ignore."""
    context = copy.copy(multiprocessing.get_context(multiprocessing.get_start_method()))
    context.Process = _Worker
    return context


class Loader(DataLoader):
    """A DataLoader whose workers' UserErrors arrive as a DataError of the same one line.

    Args:
        dataset: to load from.
        workers: loader processes; 0 loads in this process.
        options: of `DataLoader`.
    """

    def __init__(self, dataset: Dataset, workers: int = 0, **options):
        super().__init__(
            dataset,
            num_workers=workers,
            multiprocessing_context=_context_that_kills() if workers else None,
            **{"worker_init_fn": prepare_worker} | options,
        )

    def check_worker_number_rationality(self):
        """Says nothing: the number of workers names the episodes, whatever the machine."""

    def __iter__(self) -> Iterator:
        return _plain_errors(super().__iter__())


def _plain_errors(batches: Iterator) -> Iterator:
    try:
        yield from batches
    except UserError as error:
        # torch hands a worker's error on with the worker's whole stack trace as its message
        line = str(error).rstrip().rpartition("\n")[2]
        raise DataError(line.removeprefix(f"{UserError.__module__}.UserError: ")) from None


class TrainLoader(Loader):
    """Batches of `batch_size` items in the order of `sampler`; an incomplete last one is dropped.

    Args:
        dataset: items are dicts.
        sampler: of indices.
        batch_size: items.
        workers: loader processes; 0 loads in this process.
        options: of `DataLoader`.
    """

    def __init__(
        self, dataset: Dataset, sampler: Sampler[int], batch_size: int, workers: int, **options
    ):
        self._batches = _RestOfEpoch(sampler, batch_size, max(workers, 1))
        self._worker_start = _WorkerStart()
        super().__init__(
            dataset,
            workers,
            batch_sampler=self._batches,
            collate_fn=_collate_with_streams,
            worker_init_fn=self._worker_start,
            **options,
        )
        self._epoch_start: torch.Tensor | None = None
        self._done = 0
        self._worker_streams: list[dict[str, Any] | None] = [None] * workers

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for this epoch, where several processes share one."""
        if isinstance(self._batches.sampler, DistributedSampler):
            self._batches.sampler.set_epoch(epoch)

    def position(self) -> dict[str, Any]:
        """Where the current epoch stands, for `resume_at`; plain values."""
        return {
            "epoch_start": self._epoch_start,
            "done": self._done,
            "workers": list(self._worker_streams),
            "process": get_streams(),
        }

    def resume_at(self, position: dict[str, Any]) -> None:
        """Make the next pass the rest of the epoch that stood at `position`.

        This process's global streams go on from there as well, as soon as the pass begins.
        """
        self._epoch_start = position["epoch_start"]
        self._worker_streams = list(position["workers"])
        self._worker_start.streams = position["workers"]
        self._batches.skip = position["done"]
        self._batches.streams = position["process"]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self._batches.skip:
            torch.set_rng_state(self._epoch_start)
        else:
            self._epoch_start = torch.get_rng_state()
            self._worker_streams = [None] * self.num_workers
        self._done = self._batches.skip
        return self._recorded(super().__iter__())

    def _recorded(self, batches: Iterator) -> Iterator[dict[str, Any]]:
        for batch in batches:
            if not batch:
                continue  # stands for a batch of before the resume
            self._batches.skip, self._worker_start.streams = 0, []
            streams = batch.pop(_STREAMS)
            if self.num_workers:
                self._worker_streams[self._done % self.num_workers] = streams
            self._done += 1
            yield batch


class _RestOfEpoch(BatchSampler):
    """The batches of an epoch after the first `skip`; in training every batch is complete."""

    def __init__(self, sampler: Sampler[int], batch_size: int, workers: int):
        super().__init__(sampler, batch_size, drop_last=True)
        self.workers = workers
        self.skip = 0
        self.streams: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[list[int]]:
        batches = islice(super().__iter__(), self.skip, None)
        first = next(batches, None)
        if self.skip:
            # Only now: the order of the epoch has been drawn, and nothing else yet.
            set_streams(self.streams)
            # Empty batches for the workers whose turn was before: each goes on with its own streams.
            yield from ([] for _ in range(self.skip % self.workers))
        if first is not None:
            yield first
        yield from batches


class _WorkerStart:
    """What a worker does first: goes on with the streams of the worker whose place it takes."""

    def __init__(self):
        self.streams: list[dict[str, Any] | None] = []

    def __call__(self, worker: int) -> None:
        prepare_worker(worker)
        if self.streams and self.streams[worker] is not None:
            set_streams(self.streams[worker])


def _collate_with_streams(items: list[dict[str, Any]]) -> dict[str, Any]:
    if not items:
        return {}
    streams = get_streams() if get_worker_info() is not None else None
    return default_collate(items) | {_STREAMS: streams}
