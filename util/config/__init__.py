"""The settings: YAML files and command lines are read into one validated `Config`."""

from util.config.command_line import VIZ, Parser, config_parser
from util.config.loading import DATASETS, OPTS, dump_config, given_values, load_config
from util.config.schema import Config

__all__ = [
    "DATASETS",
    "OPTS",
    "VIZ",
    "Config",
    "Parser",
    "config_parser",
    "dump_config",
    "given_values",
    "load_config",
]
