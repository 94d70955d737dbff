"""What the numbers of a mask file mean, in every common form of file."""

import struct
import zlib
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.util.voc_files import write_dataset
from util.data.dataset import BaseLabels, read_pair
from util.data.folds import Fold
from util.data.images import as_shown, read_image, read_mask, read_whole_image
from util.data.list_cache import load_counts
from util.data.lists import read_entries
from util.data.masks import MaskFile, eight_bits, turn
from util.get_mulway_base_data import write_base_labels
from util.preparation.pascal import voc_colour
from util.runtime.errors import UserError

OBJECT = np.zeros((48, 60), np.uint8)
OBJECT[10:30, 10:40] = 1
WHITE = np.full((48, 60, 3), 255, np.uint8)
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (48, 60, 3), dtype=np.uint8)
VOC = [value for class_id in range(256) for value in voc_colour(class_id)]
XMP = '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def encode(pixels, kind="PNG", palette=None, **options):
    """The content of a file that holds pixels (H, W) or (H, W, C), or indices of a palette."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if palette is not None:
        image = Image.fromarray(pixels, "P")
        image.putpalette(palette)
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grays(*layers):
    return np.dstack(layers)


def soft(scale=255):
    shades = RNG.integers(-7, 8, OBJECT.shape)
    return np.clip(scale * OBJECT.astype(int) + shades, 0, 255).astype(np.uint8)


def stripes(*values):
    """A stripe of each value below the object's rows."""
    mask = 255 * OBJECT
    for row, value in enumerate(values):
        mask[32 + 4 * row : 35 + 4 * row] = value
    return mask


IDS = np.where(OBJECT, 2, 0).astype(np.uint8)
IDS[:2], IDS[40:] = 255, 1


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize(
    "content",
    [
        lambda kind: encode(IDS, kind),
        lambda kind: encode(IDS, kind, VOC),
        lambda kind: encode(grays(IDS, IDS, IDS), kind),
        lambda kind: encode(IDS.astype(np.uint16), "PNG" if kind == "BMP" else kind),
        lambda kind: encode(IDS.astype(np.float32), "TIFF"),
        lambda kind: encode(IDS, "PNG", VOC, transparency=0),
        lambda kind: encode(grays(IDS, IDS, IDS, WHITE[..., 0]), "PNG"),
        lambda kind: encode(Image.fromarray(grays(IDS, 255 * np.uint8(IDS > 0)), "LA"), "PNG"),
        lambda kind: encode(grays(IDS, IDS, IDS), "WEBP", lossless=True),
    ],
    ids=["gray", "palette", "rgb", "16", "float", "key", "rgba", "la", "webp"],
)
def test_class_ids_are_read_in_every_exact_form(tmp_path, content, kind):
    path = tmp_path / "a.png"  # The content tells the type of a file, not its name.
    path.write_bytes(content(kind))
    read = read_mask(str(path))
    assert read.dtype == np.uint8 and np.array_equal(read, IDS)
    assert MaskFile(path, path.read_bytes()).marked_by() == "ids"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encode(NOISE), "holds colours, and nothing says which colour is which class: add a"),
        (encode(OBJECT.astype(np.uint16) * 300), "holds the value 300; class ids are 0..255"),
        (encode(OBJECT.astype(np.float32) / 2, "TIFF"), "holds the value 0.5; class ids are"),
        (encode(255 * OBJECT, "JPEG"), "is a JPEG or lossy WebP, whose values are not exact"),
        (encode(WHITE, "WEBP"), "is a JPEG or lossy WebP"),
        (encode(grays(WHITE, 255 * OBJECT)), "has values where it is transparent"),
    ],
)
def test_what_may_be_no_class_id_is_an_error(tmp_path, content, message):
    path = tmp_path / "mask.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"mask .*mask\.png {message}"):
        read_mask(str(path))


@pytest.mark.parametrize(
    ("content", "how"),
    [
        (encode(OBJECT), "one"),
        (encode(OBJECT == 1), "white"),
        (encode(255 * OBJECT, "TIFF"), "white"),
        (encode(OBJECT.astype(np.uint16) * 4095), "white"),
        (encode(grays(*[255 * OBJECT] * 3), "BMP"), "white"),
        (encode(grays(*[255 * OBJECT] * 3, WHITE[..., 0])), "white"),
        (encode(7 * OBJECT), "value"),
        (encode(grays(250 * OBJECT, 0 * OBJECT, 9 * OBJECT)), "value"),
        (encode(1 - OBJECT, "PNG", [255, 255, 255, 0, 0, 0]), "white"),
        (encode(1 - OBJECT, "BMP", [255, 255, 255, 0, 0, 0]), "white"),
        (encode(15 * OBJECT, "PNG", VOC), "value"),
        (encode(15 * OBJECT, "PNG", [0] * 768), "value"),
        (encode(grays(WHITE, 255 * OBJECT)), "transparency"),
        (encode(grays(0 * WHITE, 255 * OBJECT)), "transparency"),
        (encode(grays(NOISE, 255 * OBJECT)), "transparency"),
        (encode(Image.fromarray(grays(WHITE[..., 0], 200 * OBJECT), "LA")), "transparency"),
        (encode(OBJECT, "PNG", [9] * 768, transparency=0), "transparency"),
        (encode(soft()), "threshold"),
        (encode(grays(*[soft()] * 3)), "threshold"),
        (encode(soft().astype(np.uint16) * 16), "threshold"),
        (encode(255 * OBJECT, "JPEG", quality=90), "threshold"),
        (encode(grays(*[255 * OBJECT] * 3), "JPEG", quality=50), "threshold"),
        (encode(grays(*[255 * OBJECT] * 3), "WEBP"), "threshold"),
    ],
)
def test_one_object_is_found_in_every_form_of_a_binary_mask(content, how):
    region = MaskFile("a.png", content).region()
    assert (region.marked_by, region.pixels.dtype) == (how, bool)
    assert np.array_equal(region.pixels, OBJECT == 1)


def test_edges_count_from_half_on():
    blurred = cv2.GaussianBlur(255 * OBJECT, (0, 0), 1.5)
    region = MaskFile("a.png", encode(blurred)).region()
    assert np.array_equal(region.pixels, blurred >= 128) and region.marked_by == "threshold"
    few = MaskFile(
        "a.png", encode((stripes() - OBJECT * (np.arange(60) % 2)).astype(np.uint8))
    ).region()
    assert np.array_equal(few.pixels, OBJECT == 1)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (stripes(1), "holds 2 values besides 0"),  # an object and ignored pixels
        (stripes(1, 2), "holds 3 values besides 0"),
        (stripes(50, 100, 150, 200), "holds 5 values besides 0"),  # levels of gray
        (np.minimum(stripes(1, 2, 3, 4), 5), "holds 5 values besides 0"),  # class ids
        (np.minimum(soft(), 9), "holds 8 values besides 0"),
        (NOISE, "holds 2880 values besides 0"),
        (NOISE[..., 0], "values besides 0; a binary mask holds one"),
        (grays(255 * OBJECT, stripes(), 0 * OBJECT) + NOISE // 64, "values besides 0"),
        (
            grays(*[255 * OBJECT] * 3, np.where(np.arange(60) < 3, 0, 255) + 0 * OBJECT),
            "has transparent, black and white pixels",
        ),
    ],
)
def test_what_may_be_several_objects_is_an_error(pixels, message):
    with pytest.raises(UserError, match=rf"mask a\.png .*{message}"):
        MaskFile("a.png", encode(pixels.astype(np.uint8))).region()


def four_bits(row):
    """A gray PNG of 2×1 pixels of 4 bits, which no library here writes."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def test_a_gray_png_of_4_bits_is_ambiguous_where_it_holds_a_class():
    """Viewers show the value 1 as 17, and tools may write either for the class 1."""
    assert MaskFile("a.png", four_bits(b"\x00")).class_ids().tolist() == [[0, 0]]
    with pytest.raises(UserError, match=r"a\.png has less than 8 bits, where the class 1 may be"):
        MaskFile("a.png", four_bits(b"\x01")).class_ids()
    region = MaskFile("a.png", four_bits(b"\x01")).region()
    assert region.pixels.tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("highest", "bits"), [(200, 8), (1023, 10), (4095, 12), (16383, 14), (65535, 16)]
)
@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_more_than_8_bits_span_the_whole_range(tmp_path, highest, bits, kind, channels):
    ramp = np.linspace(0, highest, 64 * channels).round().astype(np.uint16)
    stored = ramp.reshape(8, 8, channels)[..., ::-1]  # OpenCV writes BGR.
    path = tmp_path / f"a.{kind}"
    path.write_bytes(cv2.imencode(path.suffix, stored)[1].tobytes())
    notes: list[str] = []
    image = read_image(str(path), notes)
    assert notes == [f"images of {bits} bits, of which the upper 8 are used"]
    expected = (ramp >> (bits - 8)).reshape(8, 8, channels)
    assert image.dtype == np.uint8 and np.array_equal(image, np.broadcast_to(expected, (8, 8, 3)))
    assert image.max() >= min(highest, 255)
    assert np.array_equal(eight_bits(np.asarray(ramp))[0].reshape(expected.shape), expected)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def xmp_of_png():
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP)
    return text


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_images_and_masks_are_read_as_a_viewer_shows_them(tmp_path, kind, orientation):
    lossless = {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / "a"
    path.write_bytes(encode(NOISE, kind, exif=exif(orientation), **lossless))
    shown = turn(NOISE, orientation)
    size = shown.shape[:2]
    image = read_image(str(path))
    assert image.shape == shown.shape
    # The preparations ask for the size alone.
    assert read_whole_image(path, pixels=False).shape == shown.shape
    if kind != "JPEG":
        assert np.array_equal(image, shown)
        path.write_bytes(encode(grays(IDS, IDS, IDS), kind, exif=exif(orientation), **lossless))
        assert np.array_equal(read_mask(str(path)), turn(IDS, orientation))
    # A mask drawn on the stored pixels fits after the same turn; one that fits already stays.
    Image.fromarray(NOISE).save(path, kind, exif=exif(orientation), **lossless)
    assert as_shown(IDS, size, path).shape == size
    if orientation >= 5:
        assert np.array_equal(as_shown(IDS, size, path), turn(IDS, orientation))
    assert as_shown(IDS[:5], size, path).shape == (5, 60)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"xmp": XMP.encode(), "quality": 95, "subsampling": 0}),
        ("WEBP", {"xmp": XMP.encode(), "lossless": True}),
        ("PNG", {"pnginfo": xmp_of_png()}),
    ],
)
def test_the_orientation_may_stand_in_xmp(tmp_path, kind, options):
    """OpenCV knows the orientation of EXIF only."""
    path = tmp_path / "a"
    path.write_bytes(
        encode(cv2.resize(NOISE, (240, 192), interpolation=cv2.INTER_CUBIC), kind, **options)
    )
    shown = turn(cv2.resize(NOISE, (240, 192), interpolation=cv2.INTER_CUBIC), 6).astype(int)
    assert np.abs(read_image(str(path)) - shown).mean() < 9
    region = MaskFile(path, encode(255 * OBJECT, kind, **options)).region()
    assert np.array_equal(region.pixels, turn(OBJECT, 6) == 1)
    # Where both say something, EXIF counts.
    if kind != "PNG":
        path.write_bytes(encode(NOISE, kind, exif=exif(1), **options))
        assert read_image(str(path)).shape == NOISE.shape


def test_training_reads_palettes_and_turned_pairs_without_preparation(tmp_path):
    """PASCAL's own masks, and one drawn on the pixels as the camera stored them."""
    list_file = write_dataset(tmp_path, {"a": IDS, "b": IDS})
    entries = read_entries(str(tmp_path), list_file)
    (tmp_path / entries[0][1]).write_bytes(encode(IDS, "PNG", VOC))
    (tmp_path / entries[1][0]).write_bytes(encode(NOISE, "JPEG", exif=exif(6)))
    counts = load_counts(str(tmp_path), list_file, entries, str(tmp_path / "lists"))
    assert counts == [{1: 8 * 60, 2: 20 * 30}] * 2
    fold, folder = Fold(base=(2,), novel=(1,)), str(tmp_path / "base")
    write_base_labels(str(tmp_path), entries, fold, folder)
    stored, computed = BaseLabels(fold, entries, folder), BaseLabels(fold, entries)
    for entry, expected in zip(entries, (IDS, turn(IDS, 6)), strict=True):
        image, mask = read_pair(str(tmp_path), entry)
        assert image.shape[:2] == mask.shape and np.array_equal(mask, expected)
        labels = [label(mask, str(tmp_path), entry) for label in (stored, computed)]
        assert np.array_equal(*labels) and set(np.unique(labels[0])) == {0, 1, 255}
