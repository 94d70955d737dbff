"""Where the repository is, and writing files so that a reader never sees half of one."""

import contextlib
import functools
import os
import platform
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parents[2]  # of this repository
# The folder may be shared with other machines, on which other processes have the same numbers.
_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
_TEMPORARY = re.compile(rf"(.+\.\w+)\.{_MACHINE}-(\d+)\.tmp")


def write_atomically(
    path: str | os.PathLike[str], data: bytes | str | Callable[[BinaryIO], object]
) -> None:
    """Write under a temporary name beside `path`, then rename.

    `data`: bytes, str (as UTF-8), or a function that writes to the open binary file it is given.
    Missing folders on the way to `path` are made. Several processes may write the same path. What
    killed processes left of it is removed.
    """
    path = os.fspath(path)
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", exist_ok=True)
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as handle:
            if callable(data):
                data(handle)
            else:
                handle.write(data.encode("utf-8") if isinstance(data, str) else data)
            # A power cut after the rename must not leave an empty file under the final name.
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    # A folder that cannot be listed can be written.
    with contextlib.suppress(OSError):
        for left in _leftovers_at_first(os.path.abspath(folder)).get(name, ()):
            os.remove(left)


def temporary_path(path: str) -> str:
    """Return what a file is called until it is complete: PATH.MACHINE-PROCESS.tmp."""
    return f"{path}.{_MACHINE}-{os.getpid()}.tmp"


def leftovers(folder: str | os.PathLike[str]) -> Mapping[str, Sequence[str]]:
    """Return what killed processes of this machine left in a folder, by the name it should have got."""
    found = defaultdict(list)
    for name in os.listdir(folder):
        if (match := _TEMPORARY.fullmatch(name)) and not _is_running(int(match[2])):
            found[match[1]].append(os.path.join(folder, name))
    return found


# Once for each folder, which may hold a hundred thousand files.
_leftovers_at_first = functools.cache(leftovers)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # It is another user's.
    return True
