import pytest
import torch

from util.errors import EXIT_CODE, UserError, exits_on_user_error


def message_of(action, capsys):
    with pytest.raises(SystemExit) as end:
        exits_on_user_error(action)()
    assert end.value.code == EXIT_CODE
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


def fails(error):
    def action():
        raise error

    return action


def test_a_user_error_is_one_line(capsys):
    assert message_of(fails(UserError("no such file")), capsys) == "error: no such file\n"


@pytest.mark.parametrize(
    "action",
    [
        lambda: torch.empty(2**60),
        fails(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")),
        fails(MemoryError()),
    ],
)
def test_memory_that_does_not_suffice_names_the_settings_that_help(action, capsys):
    text = message_of(action, capsys)
    for setting in ("grad_accum", "batch_size", "checkpoint_activations True", "amp bf16"):
        assert setting in text


def test_any_other_error_keeps_its_trace():
    with pytest.raises(RuntimeError, match="shapes differ"):
        exits_on_user_error(fails(RuntimeError("shapes differ")))()
