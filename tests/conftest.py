"""Fixtures that several test files share, and the option that runs the slow tests of faults."""

import os
import signal

import pytest

from tests.tiny_voc import make


def pytest_addoption(parser):
    parser.addoption(
        "--faults",
        action="store_true",
        help="run the tests of faults and other slow ones too; minutes",
    )
    parser.addoption(
        "--fuzz",
        type=int,
        default=2000,
        metavar="CASES",
        help="damaged inputs of tests/test_fuzz.py (%(default)s)",
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--faults"):
        return
    slow = [item for item in items if {"faults", "slow"} & {m.name for m in item.iter_markers()}]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


@pytest.fixture(scope="session", autouse=True)
def process():
    """Set up the process of the tests.

    A shell starts what runs in its background with SIGINT ignored, but tests send it. Tests write
    many checkpoints, and a power cut during the tests loses nothing: they do not wait for the disk.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.fsync = lambda _: None


@pytest.fixture(scope="session")
def tiny_voc(tmp_path_factory):
    """Folder of the tiny dataset that the golden numbers were computed on. Read only."""
    folder = tmp_path_factory.mktemp("tiny voc")
    make(str(folder))
    return folder
