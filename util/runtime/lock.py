"""Locks that keep two commands from writing the same files."""

import contextlib
import datetime
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from util.runtime.errors import UserError


@contextlib.contextmanager
def exclusive(path: Path, is_main: bool = True) -> Iterator[None]:
    """Hold the lock file `path` while entered; the lock ends with its process, however that ends.

    Args:
        path: the lock file, which stays; missing folders on the way to it are made.
        is_main: whether this process takes the lock; of several processes the main one does.

    Raises:
        UserError: another process holds the lock, or the file cannot be written.
    """
    if not is_main:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write in {path.parent}: {error.strerror}; set exp_dir") from error
    with handle:
        try:
            # Unlike flock, loader processes do not inherit it: they may outlive this process.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            raise UserError(
                f"{path.parent} is in use by {holder}; wait for it or end it, or choose "
                "another folder by exp_name or exp_dir"
            ) from None
        except OSError:
            pass  # A file system without locks.
        handle.truncate(0)
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        handle.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")
        handle.flush()
        yield


@contextlib.contextmanager
def in_turn(path: str | os.PathLike[str]) -> Iterator[None]:
    """Wait for the lock file `path` and hold it while entered; it ends with its process.

    On a file system without locks all processes enter at once.
    """
    with open(path, "w") as handle:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
