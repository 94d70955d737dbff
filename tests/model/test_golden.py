"""The model gives the published model's outputs, losses, gradients and training steps."""

import pytest

from tests.golden import FILES, check_outputs, check_training_steps


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_outputs_in_eval_mode(name):
    check_outputs(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_three_training_steps(name):
    check_training_steps(name)
