"""Stopping by Ctrl-C, or by the SIGTERM that clusters send before they kill a process."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPED = 75  # exit code of a training that saved its state after a signal (EX_TEMPFAIL)


class StopRequest:
    """While entered, SIGTERM and SIGINT are noted instead of ending the process at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._at_once = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        if self._at_once:
            sys.exit(STOPPED)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal, also one noted before, exit with `STOPPED`: nothing is lost while entered."""
        self._at_once = True
        if self.signal is not None:
            sys.exit(STOPPED)
        try:
            yield
        finally:
            self._at_once = False
