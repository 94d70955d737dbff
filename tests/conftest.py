"""Fixtures that several test files share."""

import pytest

from tests.tiny_voc import make


@pytest.fixture(scope="session")
def tiny_voc(tmp_path_factory):
    """Folder of the tiny dataset that the golden numbers were computed on. Read only."""
    folder = tmp_path_factory.mktemp("tiny voc")
    make(str(folder))
    return folder
