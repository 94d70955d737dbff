"""Errors that are the user's to mend: one line, no stack trace."""

import functools
import json
import os
import sys
import time

from util.files import write_atomically

EXIT_CODE = 2


class UserError(Exception):
    """Something given by the user is wrong; the message is one line saying what and what to do."""


def exits_on_user_error(main):
    """Wrap a script's `main` so that a `UserError` prints one line and exits with code 2.

    Of several processes none prints: each leaves the message where torchrun looks for it, and
    `util.launch` prints the first.
    """

    @functools.wraps(main)
    def wrapper(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            reply = os.environ.get("TORCHELASTIC_ERROR_FILE")
            if reply:
                content = {"message": str(error), "timestamp": int(time.time())}
                write_atomically(reply, json.dumps(content))
            else:
                print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(EXIT_CODE)

    return wrapper
