"""Errors that are the user's to mend: one line, no stack trace."""

import functools
import sys


class UserError(Exception):
    """Something given by the user is wrong; the message is one line saying what and what to do."""


def exits_on_user_error(main):
    """Wrap a script's `main` so that a `UserError` prints one line and exits with code 2."""

    @functools.wraps(main)
    def wrapper(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(2)

    return wrapper
