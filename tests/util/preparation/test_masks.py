from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.util.prepare_files import noise
from util.data.images import read_whole_image
from util.data.list_cache import count_labels
from util.data.masks import MaskFile
from util.preparation.masks import fingerprint, prepare_pair
from util.preparation.shared import DataRoot
from util.runtime.errors import UserError

LABEL = np.arange(48, dtype=np.uint8).reshape(6, 8)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "source" / "a.jpg"
    path.parent.mkdir()
    Image.fromarray(noise((6, 8))).save(path)
    return path


@pytest.fixture
def prepare(image, tmp_path):
    """prepare_pair of the image and a mask; `made` counts how often the mask was made."""

    def run(label=LABEL, sources=(b"source",)):
        def make_mask():
            run.made += 1
            return label

        root = DataRoot(tmp_path / "out", tmp_path / "lists")
        placed = prepare_pair(root, image, ("images/a.jpg", "masks/a.png"), sources, make_mask)
        # What was made need not be read again to be counted.
        assert placed.counts is None or placed.counts == count_labels(label)
        run.counted = placed.counts is not None
        return placed[:2]

    run.made = run.counted = 0
    return run


@pytest.fixture
def mask(tmp_path):
    return tmp_path / "out" / "masks" / "a.png"


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_fingerprints_tell_sources_apart():
    prints = [fingerprint(*s) for s in [(), (b"ab",), (b"a", b"b"), (b"", b"ab"), (1, 2), (12,)]]
    assert len(set(prints)) == len(prints)
    assert fingerprint(b"ab", 3) == fingerprint(b"ab", 3)


def test_a_pair_is_made_once_and_a_missing_image_comes_back(prepare, mask, tmp_path):
    assert prepare() == ("linked", True)
    np.testing.assert_array_equal(read(mask), LABEL)
    assert prepare.counted
    with Image.open(mask) as written:  # The fingerprint is a chunk of the format, not only bytes.
        assert len(written.text["made from"]) == 32
    for _ in range(2):
        (tmp_path / "out" / "images" / "a.jpg").unlink()
        assert prepare() == ("linked", False)
        assert (tmp_path / "out" / "images" / "a.jpg").exists()
    assert prepare.made == 1


def test_other_sources_or_another_image_make_it_again(prepare, mask, image):
    prepare()
    assert prepare(LABEL + 1, [b"other"]) == ("linked", True)
    np.testing.assert_array_equal(read(mask), LABEL + 1)
    image.write_bytes(image.read_bytes() + b"\0")
    assert prepare(LABEL + 1, [b"other"]) == ("linked", True)
    assert prepare.made == 3


@pytest.mark.parametrize("kept", [-1, 90])
def test_a_truncated_mask_is_made_again(prepare, mask, kept):
    prepare()
    whole = mask.read_bytes()
    assert len(whole) > 90
    mask.write_bytes(whole[:kept])
    assert prepare() == ("linked", True)
    assert mask.read_bytes() == whole


def test_a_mask_of_the_user_stays(prepare, mask):
    mask.parent.mkdir(parents=True)
    cv2.imwrite(str(mask), LABEL)
    before = mask.read_bytes()
    assert prepare() == ("linked", False)
    cv2.imwrite(str(mask), LABEL + 1)
    for present in (mask.read_bytes(), b"no picture"):
        mask.write_bytes(present)
        with pytest.raises(UserError, match=r"masks/a\.png exists, but this command neither wrote"):
            prepare()
        assert mask.read_bytes() == present != before


def test_sizes_that_disagree_and_a_damaged_image_leave_nothing(prepare, image, tmp_path):
    with pytest.raises(UserError, match=r"a\.jpg is 8×6 pixels but its mask 6×8"):
        prepare(LABEL.reshape(8, 6))
    image.write_bytes(image.read_bytes()[:-40])
    with pytest.raises(UserError, match="damaged or truncated"):
        prepare()
    assert not (tmp_path / "out").exists()


def cut(path, kind, bytes_kept):
    buffer = BytesIO()
    Image.fromarray(noise((100, 120))).save(buffer, kind)
    path.write_bytes(buffer.getvalue()[:bytes_kept])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("bytes_kept", [0, 20, 4000, -200])
def test_truncated_images_are_named(tmp_path, kind, bytes_kept):
    path = tmp_path / "é a.jpg"
    cut(path, kind, None)
    assert read_whole_image(path).shape == (100, 120, 3)
    cut(path, kind, bytes_kept)
    for pixels in (True, False):
        with pytest.raises(UserError, match=r"image .*é a\.jpg is damaged or truncated"):
            read_whole_image(path, pixels=pixels)
    with pytest.raises(UserError, match=r"mask .*é a\.jpg is damaged or truncated"):
        MaskFile(path, path.read_bytes())
