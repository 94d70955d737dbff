"""Errors that are the user's to mend: one line, no stack trace."""

import errno
import functools
import json
import os
import shlex
import sys
import time
from contextlib import contextmanager

from util.runtime.files import write_atomically

EXIT_CODE = 2
# The words of CUDA, of its libraries (CUBLAS_STATUS_ALLOC_FAILED), and of torch on the CPU.
_OUT_OF_MEMORY = (
    "out of memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "can't allocate memory",
    "not enough memory",
)


class UserError(Exception):
    """Something given by the user is wrong; the message is one line saying what and what to do."""


class DataError(UserError):
    """Something about the data is wrong: one problem, of which there may be more."""


@contextmanager
def data_errors():
    """Turn a `UserError` into a `DataError`; as `@data_errors()`, of a whole function."""
    try:
        yield
    except UserError as error:
        raise DataError(str(error)) from error


def exits_on_user_error(main):
    """Wrap a script's `main` so that a `UserError` prints one line and exits with code 2.

    So does a full disk, and memory that does not suffice, of this process or of one that loads
    data for it.

    That of a `DataError` names the command that finds all problems. Of several processes none
    prints: each leaves the message where torchrun looks for it, and `util.launch` prints the first.
    """

    @functools.wraps(main)
    def wrapper(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except (UserError, RuntimeError, MemoryError, OSError) as error:
            message = str(error) if isinstance(error, UserError) else _advice(error)
            if message is None:
                raise
            if isinstance(error, DataError):
                message += f"; `{_verify_command()}` checks everything"
            reply = os.environ.get("TORCHELASTIC_ERROR_FILE")
            if reply:
                content = {"message": message, "timestamp": int(time.time())}
                write_atomically(reply, json.dumps(content))
            else:
                print(f"error: {message}", file=sys.stderr, flush=True)
            sys.exit(EXIT_CODE)

    return wrapper


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory did not suffice, of the GPU or of the host."""
    return isinstance(error, MemoryError) or any(word in str(error) for word in _OUT_OF_MEMORY)


def _advice(error):
    """What to say of a disk or memory that did not suffice; None of any other error."""
    if isinstance(error, OSError):
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return None
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}; make room, what was saved before is untouched"
    first = str(error).strip().partition("\n")[0].rstrip(". ")
    if "DataLoader worker" in first:
        # torch raises it wherever the process happens to be when a worker dies.
        return f"{first} (out of memory?); lower workers, or free memory"
    if not is_out_of_memory(error):
        return None
    return (
        f"out of memory ({first}); the global batch stays with a lower batch_size and a higher "
        "grad_accum (stage 1: grad_accum alone); checkpoint_activations True (stage 2) and amp bf16 "
        "take less memory too"
    )


def _verify_command():
    """`util.verify` with the settings that this process was started with."""
    words, kept = [], False
    for word in sys.argv[1:]:
        if word.startswith("--"):
            kept = word.partition("=")[0] in ("--config", "--opts")
        if kept:
            words.append(word)
    processes = os.environ.get("WORLD_SIZE", "1")
    words = [*(words or ["--config", "FILE"]), *(["--processes", processes] * (processes != "1"))]
    return shlex.join(["python", "-m", "util.verify", *words])
