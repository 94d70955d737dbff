"""Fixtures that several test files share, the order of the files, and the option --faults."""

import os
import signal

import pytest

import util  # noqa: F401  # Before torch, since it says how threads wait.
from tests.tiny_voc import make
from tests.util.hub import Hub


def pytest_addoption(parser):
    parser.addoption(
        "--faults",
        action="store_true",
        help="run the tests of faults and other long ones, too; minutes",
    )
    parser.addoption(
        "--fuzz",
        type=int,
        default=2000,
        metavar="CASES",
        help="damaged inputs of tests/test_fuzz.py (%(default)s)",
    )
    parser.addoption(
        "--soak",
        type=int,
        default=0,
        metavar="EPOCHS",
        help="with --faults: train the demo's stage 2 so long under kills; hours",
    )


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--faults"):
        left_out = [item for item in items if item.get_closest_marker("faults")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    # Files that take long come first, so that no process of several is left with one at the end.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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


@pytest.fixture(scope="session")
def list_cache(tmp_path_factory):
    """The folder that keeps the scan of the masks of the tiny dataset."""
    return str(tmp_path_factory.mktemp("lists"))


@pytest.fixture(scope="session")
def tiny_settings(tiny_voc, list_cache):
    """The settings that describe the tiny dataset."""
    return {
        "data_root": str(tiny_voc),
        "train_list": str(tiny_voc / "train.txt"),
        "val_list": str(tiny_voc / "val.txt"),
        "list_dir": list_cache,
        "num_classes": 20,
        "data_set": "tiny",
        "workers": 0,
    }


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the hub, and an empty cache of what comes from it."""
    with Hub() as hub:
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


@pytest.fixture
def run_command(capsys):
    """Runs a command in this process; returns its exit code, what it printed, and its errors."""

    def run_command(command, *arguments, **options):
        capsys.readouterr()
        code = 0
        try:
            command(*arguments, **options)
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run_command


@pytest.fixture
def error_line(run_command):
    """A function that runs a command which has to end with one line, and returns this line."""

    def error_line(command, *arguments, code=2, **options):
        found, _, line = run_command(command, *arguments, **options)
        assert found == code and line.count("\n") == 1, line
        assert line.startswith(("error: ", "interrupted")), line
        return line

    return error_line
