"""Console and file log, scalars for TensorBoard, and the estimate of the remaining time."""

import json
import logging
import os
import sys
import time
from pathlib import Path

from torch import Tensor

from util.runtime.errors import UserError

LOGGER_NAME = "hdmnet"


def get_logger(folder: str | Path | None, is_main: bool) -> logging.Logger:
    """Return a logger to the console and, with a folder, to FOLDER/log.txt (appended).

    Processes other than the main one log errors only. Raises UserError if the folder cannot be
    written.
    """
    logger = logging.getLogger(LOGGER_NAME)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.INFO if is_main else logging.ERROR)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if folder is not None and is_main:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            handlers.append(logging.FileHandler(Path(folder) / "log.txt", encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot write in {folder}: {error.strerror}; set exp_dir") from error
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%m-%d %H:%M:%S"))
        logger.addHandler(handler)
    return logger


class Scalars:
    """Scalars of a run: FOLDER/scalars.jsonl always, TensorBoard's files where wanted.

    A run that was interrupted repeats some iterations; the later line of two counts.

    Args:
        folder: of the run; None writes nothing.
        tensorboard: whether to write TensorBoard's files too.
    """

    def __init__(self, folder: str | Path | None, tensorboard: bool = False):
        self._lines = self._writer = None
        if folder is None:
            return
        self._lines = (Path(folder) / "scalars.jsonl").open("a+b")
        if self._lines.tell():
            self._lines.seek(-1, os.SEEK_END)
            if self._lines.read() != b"\n":  # killed while it wrote a line
                self._lines.write(b"\n")
        if tensorboard:
            # Imported here, as it takes a second and most runs do not use it.
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(folder))

    def add(self, prefix: str, values: dict[str, float], step: int) -> None:
        """Write each value as PREFIX/NAME at a step."""
        if self._lines is not None:
            named = {f"{prefix}/{name}": value for name, value in values.items()}
            self._lines.write(json.dumps({"step": step, **named}).encode() + b"\n")
            self._lines.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{prefix}/{name}", value, step)

    def close(self) -> None:
        """Flush what was written."""
        for sink in (self._lines, self._writer):
            if sink is not None:
                sink.close()


class Meter:
    """What happened since the last report: means of the losses, speed, and waiting for data."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._added: dict[str, int] = {}
        self._items = self._skipped = 0
        self._waited = 0.0
        self._start = time.monotonic()

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the scalars of one iteration."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value
            self._added[name] = self._added.get(name, 0) + 1

    def skip(self) -> None:
        """Count an iteration that changed nothing, as its loss or gradient is not finite."""
        self._skipped += 1

    def waited(self, seconds: float) -> None:
        """Add time in which the training waited for data."""
        self._waited += seconds

    def count(self, items: int) -> None:
        """Add items that all processes have trained on."""
        self._items += items

    def pop(self) -> dict[str, float]:
        """Return the means, `samples_per_s`, `data_wait` (a share) and `skipped`, and reset all."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        values = {name: float(total) / self._added[name] for name, total in self._sums.items()}
        values |= {
            "samples_per_s": self._items / elapsed,
            "data_wait": self._waited / elapsed,
            "skipped": self._skipped,
        }
        self._restart()
        return values


class RemainingTime:
    """Extrapolates the remaining time from the steps done since it was created."""

    def __init__(self, total: int, done: int = 0) -> None:
        self.total, self.first, self.start = total, done, time.monotonic()

    def __call__(self, done: int) -> str:
        """Return the time left after `done` steps, as H:MM:SS."""
        per_step = (time.monotonic() - self.start) / max(done - self.first, 1)
        seconds = round(per_step * (self.total - done))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
