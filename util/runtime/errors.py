"""Errors that the user can correct: one line, no traceback."""

import errno
import functools
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

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
# What takes less memory, by the script that runs.
_LESS_MEMORY = {
    "train": "a lower batch_size with a higher grad_accum keeps the global batch; "
    "checkpoint_activations True and amp bf16 take less memory too",
    "train_base": "a higher grad_accum keeps the global batch; amp bf16 takes less memory too",
    "test": "lower batch_size_val, or set ori_resize False, which compares at the size of the "
    "network instead of the image's",
}
# Words of pydantic about values, and ours.
_PLAIN = {
    "Input should": "should",
    "a valid boolean": "True or False",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid list": "a list",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "Field required": "it is missing",
    ", unable to parse string as an integer": "",
    ", unable to parse string as a number": "",
}
# The second is what loader processes say where no file can be opened to hand over a batch.
_TOO_MANY_FILES = ("Too many open files", "received 0 items of ancdata")

P = ParamSpec("P")
T = TypeVar("T")


class UserError(Exception):
    """Something given by the user is wrong; the message is one line saying what and what to do."""

    def __str__(self) -> str:
        """Return the line; line breaks, as in a name that it quotes, become blanks."""
        return " ".join(super().__str__().splitlines())


class DataError(UserError):
    """Something about the data is wrong: one problem, of which there may be more."""


@contextmanager
def errors_as(raised: type[Exception], caught: type[Exception] = UserError) -> Iterator[None]:
    """Raise errors of one type as another with the same message; `@errors_as(…)` for a function.

    Args:
        raised: the type that leaves the context.
        caught: the type that is replaced.
    """
    try:
        yield
    except caught as error:
        raise raised(str(error)) from error


def exits_on_user_error(main: Callable[P, T]) -> Callable[P, T]:
    """Wrap the `main` of a script so that a `UserError` prints one line and exits with code 2.

    The same holds for a disk, memory or number of files that does not suffice, in this process or
    in one that loads data for it. The line for a `DataError` names the command that finds all
    problems. A process that torchrun started prints nothing: it leaves the line, or that it ended
    in order, in the file that torchrun names, and `util.launch` prints the first line.
    """

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            result = main(*args, **kwargs)
        except (UserError, RuntimeError, MemoryError, OSError) as error:
            message = str(error) if isinstance(error, UserError) else _advice(error)
            if message is None:
                raise
            if isinstance(error, DataError):
                message += f"; `{_verify_command()}` checks everything"
            if not _reply(EXIT_CODE, message):
                print(f"error: {message}", file=sys.stderr, flush=True)
            sys.exit(EXIT_CODE)
        except SystemExit as end:
            _reply(end.code)
            raise
        except KeyboardInterrupt:
            _reply(None)
            raise
        _reply(0)
        return result

    return wrapper


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` says that memory did not suffice, of the GPU or of the host."""
    return isinstance(error, MemoryError) or any(word in str(error) for word in _OUT_OF_MEMORY)


def is_full_disk(error: OSError) -> bool:
    """Return whether `error` says that a disk, a quota or the limit of a file's size is exhausted."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _reply(code: object, message: str = "") -> bool:
    """Tell `util.launch` how this process ends; returns False where torchrun did not start it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        content = {"message": message, "exitcode": code, "timestamp": int(time.time())}
        write_atomically(path, json.dumps(content))
    return bool(path)


def _advice(error: Exception) -> str | None:
    """Return what to say of a disk, memory or number of files that did not suffice, else None."""
    first = str(error).strip().partition("\n")[0].rstrip(". ")
    if any(word in str(error) for word in _TOO_MANY_FILES):
        return f"too many open files ({first}); raise the limit (ulimit -n 65536) or lower workers"
    if isinstance(error, OSError):
        if not is_full_disk(error):
            return None
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}; make room, what was saved before is untouched"
    if "DataLoader worker" in first:
        # torch raises it wherever the process happens to be when a worker dies.
        return f"{first} (out of memory?); lower workers, or free memory"
    if not is_out_of_memory(error):
        return None
    advice = _LESS_MEMORY.get(Path(sys.argv[0]).stem)
    return f"out of memory ({first})" + (f"; {advice}" if advice else "")


def _verify_command() -> str:
    """Return the `util.verify` command line with the settings that this process was started with."""
    words, kept = [], False
    for word in sys.argv[1:]:
        if word.startswith("--"):
            kept = word.partition("=")[0] in ("--config", "--opts")
        if kept:
            words.append(word)
    if words[-1:] == ["--opts"]:  # as the scripts call Python where no settings are given
        words.pop()
    processes = os.environ.get("WORLD_SIZE", "1")
    words = [*(words or ["--config", "FILE"]), *(["--processes", processes] * (processes != "1"))]
    return shlex.join(["python", "-m", "util.verify", *words])


def in_plain_words(message: str) -> str:
    """Return what pydantic says of a wrong value in the words of our other messages."""
    for theirs, plain in _PLAIN.items():
        message = message.replace(theirs, plain)
    return message
