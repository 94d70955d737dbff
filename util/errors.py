"""Errors that are the user's to mend: one line, no stack trace."""

import functools
import json
import os
import shlex
import sys
import time
from contextlib import contextmanager

from util.files import write_atomically

EXIT_CODE = 2


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

    That of a `DataError` names the command that finds all problems. Of several processes none
    prints: each leaves the message where torchrun looks for it, and `util.launch` prints the first.
    """

    @functools.wraps(main)
    def wrapper(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            message = str(error)
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


def _verify_command():
    """`util.verify` with the settings that this process was started with."""
    words, kept = [], False
    for word in sys.argv[1:]:
        if word.startswith("--"):
            kept = word.partition("=")[0] in ("--config", "--opts")
        if kept:
            words.append(word)
    return shlex.join(["python", "-m", "util.verify", *words])
