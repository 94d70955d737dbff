"""The reports of a training: rows of a table in its log, scalars in files, and their curves."""

import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from util.runtime.files import write_atomically


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
        named = {f"{prefix}/{name}": value for name, value in values.items()}
        if self._lines is not None:
            self._lines.write(json.dumps({"step": step, **named}).encode() + b"\n")
            self._lines.flush()
        if self._writer is not None:
            for name, value in named.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush what was written."""
        for sink in (self._lines, self._writer):
            if sink is not None:
                sink.close()


def draw_curves(folder: Path, logger: logging.Logger) -> None:
    """Write FOLDER/curves.png from the scalars of a run; a failure is one line in its log."""
    try:
        # Imported here, as loading matplotlib takes time, and a training can do without it.
        from util.evaluation.charts import as_png, training_curves

        write_atomically(folder / "curves.png", as_png(training_curves(folder / "scalars.jsonl")))
    except Exception as error:  # Whatever it is, a picture is no reason to end a training.
        logger.warning(f"{folder / 'curves.png'} is not written: {error}")


class Progress:
    """Reports the iterations of a training, in an epoch's rows under a header.

    Args:
        logger: gets the rows.
        scalars: get the values.
        epochs, total: epochs and iterations of the whole training.
        done: iterations that were done before.
    """

    def __init__(
        self, logger: logging.Logger, scalars: Scalars, epochs: int, total: int, done: int
    ):
        self.logger, self.scalars = logger, scalars
        self.epochs, self.total = epochs, total
        self._first, self._started = done, time.monotonic()

    def start_epoch(self, epoch: int) -> None:
        """Begin the rows of an epoch, counted from 1."""
        self._epoch, self._needs_header = epoch, True
        self._restart()

    def _restart(self) -> None:
        self._values: dict[str, list[Tensor]] = defaultdict(list)
        self._items = self._skipped = 0
        self._waited = 0.0
        self._last_report = time.monotonic()

    def count(self, items: int, values: Mapping[str, Tensor] | None, waited: float) -> None:
        """Add an iteration.

        Args:
            items: that all processes have trained on.
            values: scalars of the iteration; None where it changed nothing, as not all was finite.
            waited: seconds in which the training waited for data.
        """
        self._items += items
        self._waited += waited
        self._skipped += values is None
        for name, value in (values or {}).items():
            self._values[name].append(value)

    def report(self, iteration: int, rate: float, best: float, peak_memory: int) -> None:
        """Log a row and write the scalars: means of what was counted since the last report.

        Args:
            iteration: the number of iterations done in all epochs.
            rate: of learning.
            best: mIoU of the best validation, negative before the first.
            peak_memory: in bytes.
        """
        elapsed = max(time.monotonic() - self._last_report, 1e-9)
        means = {name: float(sum(values)) / len(values) for name, values in self._values.items()}
        speed, wait = self._items / elapsed, self._waited / elapsed
        columns = [
            ("epoch", f"{self._epoch}/{self.epochs}", 2 * len(str(self.epochs)) + 1),
            ("iteration", f"{iteration}/{self.total}", 2 * len(str(self.total)) + 1),
            *((name[:7], f"{mean:.4f}", 7) for name, mean in means.items() if name != "gradient"),
            ("best mIoU", f"{best:.4f}" if best >= 0 else "-", 9),
            ("rate", f"{rate:.1e}", 7),
            ("items/s", f"{speed:.1f}", 7),
            ("data", f"{wait:.0%}", 4),
            ("GB", f"{peak_memory / 2**30:.1f}", 5),
            ("left", self._time_left(iteration), 8),
        ]
        widths = [max(width, len(title)) for title, _, width in columns]
        if self._needs_header:
            titles = [title for title, _, _ in columns]
            self.logger.info("  ".join(map(str.rjust, titles, widths)))
            self._needs_header = False
        row = "  ".join(map(str.rjust, [text for _, text, _ in columns], widths))
        skipped = f"  {self._skipped} skipped: not finite" if self._skipped else ""
        self.logger.info(row + skipped)
        rest = {"samples_per_s": speed, "data_wait": wait, "skipped": self._skipped}
        rest |= {"rate": rate, "peak_gb": peak_memory / 2**30}
        self.scalars.add("train", means | rest, iteration)
        self._restart()

    def _time_left(self, iteration: int) -> str:
        """Return the time to the end, at the speed since the start, as H:MM:SS."""
        per_step = (time.monotonic() - self._started) / max(iteration - self._first, 1)
        seconds = round(per_step * (self.total - iteration))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
