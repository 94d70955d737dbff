"""Where the repository is, and writing files so that a reader never sees half of one."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parents[2]  # of this repository


def write_atomically(
    path: str | os.PathLike[str], data: bytes | str | Callable[[BinaryIO], object]
) -> None:
    """Write under a temporary name beside `path`, then rename.

    `data`: bytes, str (as UTF-8), or a function that writes to the open binary file it is given.
    Missing folders on the way to `path` are made. Several processes may write the same path.
    """
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
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
