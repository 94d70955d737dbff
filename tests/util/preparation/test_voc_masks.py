import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tests.util.pascal_files import write_palette_png
from util.preparation.voc_masks import sbd_mask, voc_colour, voc_mask
from util.runtime.errors import UserError


def png(tmp_path, image):
    image.save(tmp_path / "a.png")
    return tmp_path / "a.png", (tmp_path / "a.png").read_bytes()


def test_voc_colours():
    assert [voc_colour(class_id) for class_id in (0, 1, 2, 3, 8, 20, 255)] == [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (64, 0, 0),
        (0, 64, 128),
        (224, 224, 192),
    ]
    assert len({voc_colour(class_id) for class_id in range(256)}) == 256


@pytest.mark.parametrize("values", [[0], [*range(21), 255]])
def test_every_class_is_read_by_index_and_by_colour(tmp_path, values):
    mask = np.resize(np.array(values, np.uint8), (5, 7))
    for mode in ("P", "RGB"):
        write_palette_png(tmp_path / "a.png", mask, mode)
        found = voc_mask("a.png", (tmp_path / "a.png").read_bytes())
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, mask)
    np.testing.assert_array_equal(voc_mask(*png(tmp_path, Image.fromarray(mask))), mask)


def test_a_colour_or_kind_that_voc_does_not_have_is_named(tmp_path):
    image = Image.new("RGB", (4, 3), voc_colour(5))
    image.putpixel((1, 1), (128, 0, 1))
    with pytest.raises(
        UserError, match=r"a\.png holds the colour \(128, 0, 1\), which the VOC colour map"
    ):
        voc_mask(*png(tmp_path, image))
    with pytest.raises(UserError, match=r"a\.png holds colours or more than 8 bits \(LA\)"):
        voc_mask(*png(tmp_path, image.convert("LA")))


@pytest.mark.parametrize("mask", [np.zeros((4, 5)), np.zeros((2, 3, 4), np.uint8), "text"])
def test_a_field_that_is_no_mask_is_named(tmp_path, mask):
    path = tmp_path / "a.mat"
    savemat(path, {"GTcls": {"Segmentation": mask}})
    with pytest.raises(UserError, match=r"a\.mat: GTcls\.Segmentation is no array"):
        sbd_mask(path, path.read_bytes())
