"""Console and file log, scalars for TensorBoard, and the estimate of the remaining time."""

import logging
import sys
import time
from pathlib import Path

from util.errors import UserError

LOGGER_NAME = "hdmnet"


def get_logger(folder: str | Path | None, is_main: bool) -> logging.Logger:
    """A logger to the console and, with a folder, to FOLDER/log.txt (appended).

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
    """TensorBoard scalars under a folder; does nothing when not enabled."""

    def __init__(self, folder: str | Path, enabled: bool):
        self.writer = None
        if enabled:
            # Imported here: it takes a second and most runs do not want it.
            from tensorboardX import SummaryWriter

            self.writer = SummaryWriter(str(folder))

    def add(self, prefix: str, values: dict[str, float], step: int) -> None:
        """Write each value as PREFIX/NAME at a step."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{prefix}/{name}", value, step)

    def close(self) -> None:
        """Flush what was written."""
        if self.writer is not None:
            self.writer.close()


class Means:
    """Running means of named values since the last reset."""

    def __init__(self):
        self.sums: dict[str, float] = {}
        self.count = 0

    def update(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def pop(self) -> dict[str, float]:
        """The means, starting anew."""
        means = {name: total / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


class RemainingTime:
    """Extrapolates from the steps done since it was made."""

    def __init__(self, total: int, done: int = 0):
        self.total, self.first, self.start = total, done, time.monotonic()

    def __call__(self, done: int) -> str:
        """Time left after `done` steps, as H:MM:SS."""
        per_step = (time.monotonic() - self.start) / max(done - self.first, 1)
        seconds = round(per_step * (self.total - done))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
