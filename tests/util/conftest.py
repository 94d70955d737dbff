"""Fixtures that several test files of util/ share."""

import pytest

from tests.util.pascal_files import write_voc_and_sbd


@pytest.fixture(scope="session")
def voc_and_sbd(tmp_path_factory):
    """Folder of the stand-ins of VOC and SBD. Read only."""
    folder = tmp_path_factory.mktemp("my data é")
    write_voc_and_sbd(folder)
    return folder
