"""Being told to stop in a test: it ends at once, since its journal holds what was counted."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 20  # seconds for ending in order


class _Stopped(KeyboardInterrupt):
    """A signal has come; the argument is its number."""


@contextmanager
def ends_on_signals() -> Iterator[None]:
    """While entered, Ctrl-C and SIGTERM end the process with one line.

    Of several processes on a machine the first one prints it.

    Raises:
        SystemExit: with 130 after SIGINT and 143 after SIGTERM, as shells report such an end.
    """
    owner = os.getpid()

    def stop(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a process that loads data, not yet one that ignores signals
            os._exit(_exit_code(number))
        # Another one would break what ends in order.
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        # What is raised within a destructor is lost, and a library may wait for ever.
        last_resort = threading.Timer(_PATIENCE, os._exit, [_exit_code(number)])
        last_resort.daemon = True
        last_resort.start()
        raise _Stopped(number)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    except _Stopped as stopped:
        # Here and not above: what shows progress has ended its line.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print("interrupted; the same command goes on from here", file=sys.stderr, flush=True)
        sys.exit(_exit_code(*stopped.args))
    finally:
        # Once told, a process that is about to end ignores what is still to come.
        if signal.getsignal(signal.SIGINT) is stop:
            for number, handler in before.items():
                signal.signal(number, handler)


def _exit_code(number: int) -> int:
    return 128 + number
