"""Being told to stop: by Ctrl-C, or by the SIGTERM that clusters send before they kill."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = 75  # exit code of a training that was told to stop and saved where it was (EX_TEMPFAIL)


class StopRequest:
    """While entered, SIGTERM and SIGINT are noted instead of ending the process at once."""

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._at_once = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        if self._at_once:
            sys.exit(STOPPED)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Where nothing is lost by leaving: a signal, also one noted before, exits with `STOPPED`."""
        self._at_once = True
        if self.signal is not None:
            sys.exit(STOPPED)
        try:
            yield
        finally:
            self._at_once = False
