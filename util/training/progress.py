"""The table that a training logs: a row for each report, the header again for every epoch."""

from typing import NamedTuple

_NOT_LOSSES = ("gradient", "rate", "samples_per_s", "data_wait", "peak_gb", "skipped")


class Progress(NamedTuple):
    """How far a training is when it reports.

    Attributes:
        epoch: the running one, from 1.
        iteration: number of iterations done in all epochs.
        best: mIoU of the best validation, negative before the first.
        left: time to the end.
    """

    epoch: int
    iteration: int
    best: float
    left: str


class ProgressTable:
    """Formats the rows of one run.

    Args:
        epochs, total: epochs and iterations of the whole training.
    """

    def __init__(self, epochs: int, total: int):
        self.epochs, self.total = epochs, total
        self._epoch = 0

    def lines(self, progress: Progress, values: dict[str, float]) -> list[str]:
        """Return the row of a report, after the header where a new epoch has begun.

        Args:
            progress: how far the training is.
            values: of the report: the rate, samples_per_s, data_wait (a share of the time), peak_gb,
                skipped (iterations), and the losses, none where all iterations were skipped.
        """
        columns = self._columns(progress, values)
        row = "  ".join(text.rjust(max(width, len(title))) for title, text, width in columns)
        if values["skipped"]:
            row += f"  {values['skipped']} skipped: not finite"
        if progress.epoch == self._epoch:
            return [row]
        self._epoch = progress.epoch
        return ["  ".join(title.rjust(max(width, len(title))) for title, _, width in columns), row]

    def _columns(self, progress: Progress, values: dict[str, float]) -> list[tuple[str, str, int]]:
        """Return title, text and least width of each column."""
        epoch, iteration = f"{progress.epoch}/{self.epochs}", f"{progress.iteration}/{self.total}"
        return [
            ("epoch", epoch, 2 * len(str(self.epochs)) + 1),
            ("iteration", iteration, 2 * len(str(self.total)) + 1),
            *(
                (name[:7], f"{value:.4f}", 7)
                for name, value in values.items()
                if name not in _NOT_LOSSES
            ),
            ("best mIoU", f"{progress.best:.4f}" if progress.best >= 0 else "-", 9),
            ("rate", f"{values['rate']:.1e}", 7),
            ("items/s", f"{values['samples_per_s']:.1f}", 7),
            ("data", f"{values['data_wait']:.0%}", 4),
            ("GB", f"{values['peak_gb']:.1f}", 5),
            ("left", progress.left, 8),
        ]
