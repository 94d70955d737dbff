"""The command line that the scripts and commands share."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from util.config.loading import OPTS
from util.runtime.errors import UserError

VIZ = ("--viz", "write curves for tensorboard")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `UserError`s, one line as everywhere."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does; settings may follow other options: `--opts shot 5 --viz split 1`."""
        options, rest = self.parse_known_args(args, namespace)
        if rest and (not hasattr(options, "opts") or any(word.startswith("-") for word in rest)):
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        if rest:
            options.opts = [*options.opts, *rest]
        return options


def config_parser(description: str | None, flags: Sequence[tuple[str, str]] = ()) -> Parser:
    """Return the parser that the commands with settings share.

    Args:
        description: What the command does.
        flags: Pairs (option, help) of further switches, for instance `VIZ`.

    Returns:
        A parser of `config` (path), `opts` (list of words for `load_config`) and one bool per flag.
    """
    parser = Parser(description=description, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", required=True, help="YAML file of the settings")
    parser.add_argument(
        OPTS,
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY VALUE",
        help="settings that win over the file: KEY VALUE or KEY=VALUE, as many as you like",
    )
    for option, text in flags:
        parser.add_argument(option, action="store_true", help=text)
    return parser
