"""What the tests of the page share."""

import pytest

from segmenter import FewShotSegmenter
from tests.small_model import SIZE, small_episodes, small_net


@pytest.fixture(scope="package")
def seg(tiny_voc, tmp_path_factory):
    net = small_net(small_episodes(tiny_voc, tmp_path_factory.mktemp("lists")))
    return FewShotSegmenter(net, SIZE, "resnet18", "cpu")
