"""Index masks that say what they were made from, and the check of an image against its mask.

The fingerprint of its sources is stored in every mask as a PNG text chunk. A later run asks the
mask itself whether it is still right: there is no record beside it that an interruption could
part from it.
"""

import hashlib
import os
import re
from collections import Counter
from io import BytesIO

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from util.data.images import read_image
from util.preparation.shared import link_or_copy
from util.runtime.errors import UserError
from util.runtime.files import write_atomically

VERSION = 1  # raise it when the same sources would give other masks
_KEY = "made from"
_STAMP = re.compile(rb"tEXt" + _KEY.encode() + rb"\0([0-9a-f]{32})")
_HEAD = 128  # bytes of a PNG with the stamp in them: it follows the header chunk
_END = bytes.fromhex("0000000049454e44ae426082")  # the last chunk of every whole PNG
_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # EXIF tag, and its values for 90° and 270°
_JPEG = ("JPEG", "MPO")  # MPO: several JPEGs in a file, of which the first counts
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def fingerprint(*sources):
    """32 hex digits that stand for the content of `sources`: bytes or anything with a repr."""
    digest = hashlib.sha256(str(VERSION).encode())
    for source in sources:
        data = source if isinstance(source, bytes) else repr(source).encode()
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()[:32]


def image_size(path):
    """(height, width) in pixels of the image `path` as OpenCV reads it, all of it decoded.

    Raises UserError if it is no image, a damaged or truncated one, or one that OpenCV, which
    training reads with, cannot decode.
    """
    try:
        with Image.open(path) as image:
            if image.format in _JPEG:
                return _jpeg_size(image)
            kind = f"{image.format}, mode {image.mode}"
    except _UNREADABLE as error:
        raise UserError(f"image {path} is damaged or truncated ({error}): replace it") from error
    try:
        return read_image(path).shape[:2]
    except (UserError, cv2.error) as error:
        raise UserError(
            f"image {path} is damaged or truncated, or of a kind that OpenCV cannot decode "
            f"({kind}): save it as an 8-bit PNG or JPEG"
        ) from error


def _jpeg_size(image):
    """By Pillow: OpenCV fills what a truncated JPEG lacks with gray."""
    width, height = image.size
    turned = image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
    # It is read to its end, but only an eighth of its size is computed.
    image.draft("L", (1, 1))
    image.load()
    return (width, height) if turned else (height, width)


def read_png(path, data):
    """The mask file `path` with content `data` (bytes), as a PIL image, decoded.

    Raises UserError if it is no image or a damaged or truncated one.
    """
    try:
        image = Image.open(BytesIO(data))
        image.load()
    except _UNREADABLE as error:
        raise UserError(f"mask {path} is damaged or truncated ({error}): replace it") from error
    return image


def prepare_pair(out, image_source, image, mask, sources, make_mask, copy=False):
    """Put one image and its mask under `out`; returns (how the image is there, mask written).

    image_source: file; image, mask: names relative to `out`; sources: what the mask is made from,
    for `fingerprint`; make_mask: function of no arguments that returns it, (H, W) uint8. The mask
    is made only where it is not there as these sources give it, and it is written last: where it
    is, the image was checked. Raises UserError for a damaged image, for sizes that disagree, and
    for a file in the way that is not a preparation's.
    """
    path = os.path.join(out, mask)
    stamp = fingerprint(*sources, os.path.getsize(image_source))
    present = _content(path)
    found = _STAMP.search(present[:_HEAD])
    if found and found[1] == stamp.encode() and present.endswith(_END):
        return link_or_copy(image_source, os.path.join(out, image), copy), False
    label = make_mask()
    size = image_size(image_source)
    if label.shape != size:
        raise UserError(
            f"{image_source} is {size[1]}×{size[0]} pixels but its mask {label.shape[1]}×"
            f"{label.shape[0]}; they have to be of one size"
        )
    if present and not found:
        _require_same_mask(path, present, label)
    how = link_or_copy(image_source, os.path.join(out, image), copy)
    if present and not found:
        return how, False
    text = PngInfo()
    text.add_text(_KEY, stamp)
    write_atomically(path, lambda file: Image.fromarray(label).save(file, "PNG", pnginfo=text))
    return how, True


def pair_summary(results):
    """Lines that say what `prepare_pair` did, from all it returned."""
    ways = Counter(how for how, _ in results)
    written = sum(written for _, written in results)
    images = ", ".join(f"{count:,} {how}" for how, count in sorted(ways.items()))
    return [f"images: {images}", f"masks: {len(results):,}, {written:,} of them written now"]


def _content(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _require_same_mask(path, present, label):
    try:
        image = read_png(path, present)
    except UserError:
        image = None
    if image is None or image.mode != "L" or not np.array_equal(np.asarray(image), label):
        raise UserError(
            f"{path} is there, not from this command and not the mask it would write: delete it "
            "or give a new --out"
        )
