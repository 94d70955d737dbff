"""Work in processes, with a progress bar and an end at the first error, or when the main process ends."""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from util.runtime.errors import UserError
from util.runtime.machine import available_cores

T = TypeVar("T")
Item = TypeVar("Item")


def run_parallel(
    function: Callable[[Item], T],
    items: Iterable[Item],
    workers: int | None = None,
    description: str = "",
    progress: bool = True,
) -> list[T]:
    """Return [function(item) for item in items], computed in processes, with a progress bar.

    The first exception, or Ctrl-C, ends the work after the items that are being computed. The
    function, items and results are pickled. Without a number of `workers`, there is one per core;
    with 1, this process does the work.

    Raises:
        UserError: A worker process was killed.
    """
    items = list(items)
    workers = min(workers or available_cores(), len(items))
    disable = None if progress else True
    bar = functools.partial(
        tqdm, total=len(items), desc=description, unit="file", smoothing=0, disable=disable
    )
    if workers <= 1:
        return list(bar(map(function, items)))
    size = max(1, min(16, len(items) // (8 * workers)))
    # A forked worker starts within milliseconds; outside Linux a fork may crash or does not exist.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker)
    try:
        with _interrupt_postponed():
            results = pool.map(function, items, chunksize=size)
        return list(bar(results))
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed (out of memory?); run the same command again to continue, "
            "with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _interrupt_postponed() -> Iterator[None]:
    """Let Ctrl-C act only at the end.

    Where it ends the main thread in the middle of an executor's work, that may leave a lock behind for
    which a thread of the executor waits for ever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)


def _start_worker() -> None:
    # Ctrl-C reaches every process of the terminal; the main process ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_main_process()


def end_with_main_process() -> None:
    """Let this process end when the one that started it does, even if it is killed."""
    if main_process := multiprocessing.parent_process():
        waiting = threading.Thread(target=_end_after, args=(main_process,), daemon=True)
        waiting.start()


def _end_after(process: Any) -> None:
    process.join()
    os._exit(1)
