"""The laboratory, which the tests of faults share."""

import pytest

from tests.faults.laboratory import Laboratory


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    laboratory = Laboratory(tmp_path_factory.mktemp("faults"))
    yield laboratory
    print(laboratory.table())
