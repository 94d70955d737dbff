"""The faults of `benchmark.faults`, each by the ordinary command; only with `--faults`."""

import pytest

from benchmark.faults import FAULTS
from benchmark.laboratory import SAVE_ITERS, Laboratory

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    return Laboratory(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_that_was_saved_is_lost(name, laboratory):
    outcome = FAULTS[name](laboratory)
    assert not outcome.failure
    assert outcome.same is not False
    # A truncated checkpoint costs what lies between it and the one before.
    assert 0 <= outcome.lost <= SAVE_ITERS
    assert outcome.times >= (10 if name == "killed" else 1)
