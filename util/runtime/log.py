"""The log of a run, on the console and in a file."""

import logging
import sys
from pathlib import Path

from util.runtime.errors import UserError

LOGGER_NAME = "hdmnet"


def get_logger(folder: str | Path | None, is_main: bool) -> logging.Logger:
    """Return a logger to the console and, with a folder, to FOLDER/log.txt (appended).

    Processes other than the main one log errors only. Raises UserError if the folder cannot be
    written.
    """
    logger = logging.getLogger(LOGGER_NAME)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.INFO if is_main else logging.ERROR)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if folder is not None and is_main:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            handlers.append(logging.FileHandler(Path(folder) / "log.txt", encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot write in {folder}: {error.strerror}; set exp_dir") from error
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%m-%d %H:%M:%S"))
        logger.addHandler(handler)
    return logger
