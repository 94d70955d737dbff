"""Ending a test by a signal: it ends at once, since its journal holds what was counted."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 20  # seconds for an orderly end


class _Stopped(KeyboardInterrupt):
    """Raised when a signal arrives; the argument is its number."""


@contextmanager
def ends_on_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the process with one line, which the first process of a machine prints.

    Raises:
        SystemExit: With 130 after SIGINT and 143 after SIGTERM, as shells report such an end.
    """
    owner = os.getpid()

    def stop(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:  # This is a new process of the data loader.
            os._exit(128 + number)
        # A second signal would interrupt the orderly end.
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        # An exception within a destructor is lost, and a library may wait for ever.
        last_resort = threading.Timer(_PATIENCE, os._exit, [128 + number])
        last_resort.daemon = True
        last_resort.start()
        raise _Stopped(number)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    except _Stopped as stopped:
        # Printed here, after the progress bar has ended its line.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(
                "interrupted; run the same command again to continue", file=sys.stderr, flush=True
            )
        sys.exit(128 + stopped.args[0])
    finally:
        # After a signal the process is about to end and ignores further ones.
        if signal.getsignal(signal.SIGINT) is stop:
            for number, handler in before.items():
                signal.signal(number, handler)
