"""The laboratory, which the tests of faults share."""

import multiprocessing

import pytest

from tests.faults.laboratory import Laboratory
from tests.processes import COMMANDS, LATER

# So that a command that is killed was at work, and not still loading these tests.
multiprocessing.set_forkserver_preload([*COMMANDS, *LATER, "tests.faults.commands"])


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    laboratory = Laboratory(tmp_path_factory.mktemp("faults"))
    yield laboratory
    print(laboratory.table())
