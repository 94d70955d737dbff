"""Check everything an experiment needs before hours go into it.

    python -m util.verify --config FILE [--opts KEY VALUE ...] [--full] [--processes N] [--workers N]
        [--show N]

It checks settings, lists, images and masks, the images of each class against the shots, weights,
disk and memory, and prints a row each: ok, warning or error, with the remedy. All problems come at
once. By default a fixed sample of the images is read, with --full every one. The exit code is 0, or
1 if there is an error; 2 for a wrong command line or configuration.
"""

import shlex
import sys

from util.checks.data import data_rows
from util.checks.resources import resource_rows
from util.checks.rows import ERROR, OK, Row, table
from util.checks.weights import weight_rows
from util.config import OPTS, Config, config_parser, load_config
from util.runtime.errors import UserError, exits_on_user_error

FULL = ("--full", "read every image and mask, not a sample of them")
FOUND_ERRORS = 1


def verify(
    cfg: Config, settings: str, full: bool = False, workers: int | None = None, processes: int = 1
) -> list[Row]:
    """Return all rows of the table; the arguments are those of `data_rows`."""
    described = f"fold {cfg.split} of {cfg.data_set}, {cfg.backbone}, {cfg.shot}-shot"
    return [
        Row(OK, "settings", described),
        *data_rows(cfg, full, workers, settings, processes),
        *weight_rows(cfg, settings),
        *resource_rows(cfg),
    ]


@exits_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Run the command line `argv` (the process's own if None); exits with 1 if there is an error."""
    parser = config_parser("Check everything an experiment needs.", flags=(FULL,))
    parser.add_argument(
        "--processes", type=int, default=1, help="processes (GPUs) that are to train (%(default)s)"
    )
    parser.add_argument("--workers", type=int, help="processes of this check (default: all cores)")
    parser.add_argument(
        "--show", type=int, default=5, help="problems named in a row; 0: all (%(default)s)"
    )
    args = parser.parse_args(argv)
    for option, least in (("processes", 1), ("workers", 1), ("show", 0)):
        value = getattr(args, option)
        if value is not None and value < least:
            raise UserError(f"--{option} = {value}: must be {least} or more")
    cfg = load_config(args.config, args.opts)
    words = ["--config", args.config, *([OPTS, *args.opts] if args.opts else [])]
    rows = verify(cfg, shlex.join(words), args.full, args.workers, args.processes)
    # File names may hold bytes that are no text.
    print(table(rows, args.show).encode(errors="backslashreplace").decode())
    if any(row.status == ERROR for row in rows):
        sys.exit(FOUND_ERRORS)


if __name__ == "__main__":
    main()
