"""Data loaders with errors of one line and with passes that can be resumed in the middle.

`TrainLoader` has the order and the episodes of a plain DataLoader with the same seed and number of
workers. With every batch, each worker sends the states of its random streams. Together with the
state of torch's generator at the start of the pass, they determine the rest of the pass.
"""

import atexit
import copy
import multiprocessing
import multiprocessing.context
import signal
import sys
from collections.abc import Iterator
from itertools import islice
from types import TracebackType
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
from util.runtime.parallel import end_with_main_process

_STREAMS = "streams"
# Python's exit kills the workers of a pass that an error ended, and torch would report that as a fault
# of theirs. This runs before, because what was registered last runs first.
atexit.register(signal.signal, signal.SIGCHLD, signal.SIG_DFL)


def prepare_worker(_worker: int) -> None:
    """Set up a loader process; this is a `worker_init_fn`."""
    # The workers run in parallel already, so OpenCV's own threads would only compete with them.
    cv2.setNumThreads(0)
    # A training that is stopped finishes its iteration and needs its workers for that, but a
    # terminal or a cluster sends the signal to every process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.excepthook = _report_unless_left_alone
    # torch looks only whether the process has another parent, which may be a server of processes.
    end_with_main_process()


def _report_unless_left_alone(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an error of a loader process, but not that the process it loads for is gone.

    The thread that hands over batches meets that where the other one was killed. Whoever started the
    killed process says so.
    """
    if not isinstance(error, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


class _Worker(multiprocessing.Process):
    """A worker process that is ended by SIGKILL, because it ignores SIGTERM."""

    def start(self) -> None:
        """Start the process."""
        super().start()
        # Both torch and Python's own exit call this method.
        self._popen.terminate = self._popen.kill  # type: ignore[attr-defined]


def _worker_context() -> multiprocessing.context.BaseContext:
    """Return this platform's way to start processes, with `_Worker` as the process."""
    context = copy.copy(multiprocessing.get_context(multiprocessing.get_start_method()))
    context.Process = _Worker  # type: ignore[attr-defined]
    return context


class Loader(DataLoader):
    """A DataLoader that turns a worker's UserError into a DataError with the same one line.

    Args:
        dataset: The dataset.
        workers: Number of loader processes; 0 loads in this process.
        options: Further arguments of `DataLoader`.
    """

    def __init__(self, dataset: Dataset, workers: int = 0, **options: Any):
        super().__init__(
            dataset,
            num_workers=workers,
            multiprocessing_context=_worker_context() if workers else None,
            **{"worker_init_fn": prepare_worker} | options,
        )

    def check_worker_number_rationality(self) -> None:
        """Do not warn: the number of workers is part of the protocol, whatever the machine."""

    def __iter__(self) -> Iterator:  # type: ignore[override]
        return _plain_errors(super().__iter__())


def _plain_errors(batches: Iterator) -> Iterator:
    try:
        yield from batches
    except UserError as error:
        # The message that torch passes on is the worker's whole stack trace.
        line = error.args[0].rstrip().rpartition("\n")[2]
        raise DataError(line.removeprefix(f"{UserError.__module__}.UserError: ")) from None


class TrainLoader(Loader):
    """Complete batches in the order of a sampler; an incomplete last batch is dropped.

    Args:
        dataset: The dataset, whose items are dicts.
        sampler: The order of the items.
        batch_size: Items of a batch.
        workers: See `Loader`, as for `options`.
    """

    def __init__(
        self, dataset: Dataset, sampler: Sampler[int], batch_size: int, workers: int, **options: Any
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
        """Choose the order of the epoch where several processes share it."""
        if isinstance(self._batches.sampler, DistributedSampler):
            self._batches.sampler.set_epoch(epoch)

    def position(self) -> dict[str, Any]:
        """Return the position in the current epoch as plain values for `resume_at`."""
        return {
            "epoch_start": self._epoch_start,
            "done": self._done,
            "workers": list(self._worker_streams),
            "process": get_streams(),
        }

    def resume_at(self, position: dict[str, Any]) -> None:
        """Make the next pass the rest of an epoch, from a value that `position` returned.

        When the pass begins, this process's global streams are set to those of the position as well.
        """
        self._epoch_start = position["epoch_start"]
        self._worker_streams = list(position["workers"])
        self._worker_start.streams = position["workers"]
        self._batches.skip = position["done"]
        self._batches.streams = position["process"]

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        if self._epoch_start is not None and self._batches.skip:
            torch.set_rng_state(self._epoch_start)
        else:
            self._epoch_start = torch.get_rng_state()
            self._worker_streams = [None] * self.num_workers
        self._done = self._batches.skip
        return self._recorded(super().__iter__())

    def _recorded(self, batches: Iterator) -> Iterator[dict[str, Any]]:
        for batch in batches:
            if not batch:
                continue  # It takes the turn of a worker that had loaded before the interruption.
            self._batches.skip, self._worker_start.streams = 0, []
            streams = batch.pop(_STREAMS)
            if self.num_workers:
                self._worker_streams[self._done % self.num_workers] = streams
            self._done += 1
            yield batch


class _RestOfEpoch(BatchSampler):
    """The complete batches of an epoch after the first `skip` ones."""

    def __init__(self, sampler: Sampler[int], batch_size: int, workers: int):
        super().__init__(sampler, batch_size, drop_last=True)
        self.workers = workers
        self.skip = 0
        self.streams: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[list[int]]:
        batches = islice(super().__iter__(), self.skip, None)
        first = next(batches, None)
        if self.skip and self.streams is not None:
            # At this point the order of the epoch has been drawn, and nothing else.
            set_streams(self.streams)
            # Empty batches take the turns before, so that each worker continues its own streams.
            yield from ([] for _ in range(self.skip % self.workers))
        if first is not None:
            yield first
        yield from batches


class _WorkerStart:
    """The set-up of a worker, which continues the streams of the worker that it replaces."""

    def __init__(self) -> None:
        self.streams: list[dict[str, Any] | None] = []

    def __call__(self, worker: int) -> None:
        prepare_worker(worker)
        streams = self.streams[worker] if self.streams else None
        if streams is not None:
            set_streams(streams)


def _collate_with_streams(items: list[dict[str, Any]]) -> dict[str, Any]:
    if not items:
        return {}
    streams = get_streams() if get_worker_info() is not None else None
    return default_collate(items) | {_STREAMS: streams}
