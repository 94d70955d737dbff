"""Writing files so that a reader sees the old content or the new, never half of it."""

import os


def write_atomically(path, data):
    """Write `data` (bytes or str, text as UTF-8) under a temporary name beside `path`, then rename.

    Missing folders on the way to `path` are made. Several processes may write the same path.
    """
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as handle:
            handle.write(data.encode("utf-8") if isinstance(data, str) else data)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
