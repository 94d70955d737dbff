"""What the numbers of a mask file mean: class ids, or where the object of a binary mask is.

Training, verify, test, predict and the preparations all read masks by these rules.
"""

import contextlib
import os
import re
from io import BytesIO
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from util.runtime.errors import UserError

HALF = 128  # of 255: from here on a pixel of a soft edge belongs to the object
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # raised by Pillow
JPEG = ("JPEG", "MPO")  # An MPO file holds several JPEGs, of which the first counts.
_ORIENTATION = 0x0112  # the EXIF tag
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_LEVELS = 4  # so many shades with black are levels of gray, more can be a soft edge
_BRIGHTEST = 240
_HUES = 0.25  # by how much the channels of one colour differ, as shares of the brightest
_SOFT = 0.1  # greatest share of an image that lies between the quarters of a soft edge
_WHITE = (255, 1023, 4095, 16383, 65535)  # of 8 to 16 bits


class Region(NamedTuple):
    """Where the object of a binary mask is."""

    pixels: np.ndarray  # bool (H, W)
    marked_by: str  # "nothing", "one" (the value 1), "white", "value", "transparency", "threshold"


class MaskFile:
    """A mask file, before it is decided whether it holds class ids or one object.

    Args:
        path: The name of the file, for messages.
        source: Its content, or an image of Pillow.

    Raises:
        UserError: The file is no image, or a damaged or truncated one.
    """

    def __init__(self, path: str | os.PathLike[str], source: bytes | Image.Image):
        self.path = path
        data = source if isinstance(source, bytes) else b""
        try:
            image = Image.open(BytesIO(source)) if isinstance(source, bytes) else source
            # WebP has a lossy and a lossless kind of chunk.
            self.lossy = image.format in JPEG or (image.format == "WEBP" and b"VP8 " in data)
            tile = getattr(image, "tile", None)
            packing = str(tile[0][3]) if tile else ""
            image.load()
            self.orientation = orientation_of(image, data)
        except UNREADABLE as error:
            unknown = isinstance(error, UnidentifiedImageError)
            reason = "it has no type of image" if unknown else error
            raise UserError(
                f"mask {path} is damaged or truncated ({reason}): replace it"
            ) from error
        self.image = image
        self.stretched = image.mode == "L" and ("L;2" in packing or "L;4" in packing)

    def class_ids(self, kind: type[np.integer] = np.uint8) -> np.ndarray:
        """Return the class ids, (H, W) of a type: indices of a palette, or values of one channel.

        Raises:
            UserError: The file is lossy, transparent, coloured, or holds other numbers.
        """
        if self.lossy:
            raise self._wrong(
                "is a JPEG or lossy WebP, whose values are not exact; class ids need PNG, BMP or TIFF"
            )
        image = self.image
        if "A" in image.getbands():
            colours = np.asarray(image.convert("RGBA"))
            if colours[colours[..., 3] < HALF, :3].any():
                raise self._wrong(
                    "has values where it is transparent, so it is not clear which pixels count: save "
                    "class ids without transparency"
                )
        if image.mode not in ("1", "L", "P", "I", "F") and not image.mode.startswith("I;16"):
            image = image.convert("RGB")
        values = np.asarray(image)
        if values.ndim == 3:
            if (values != values[..., :1]).any():
                raise self._wrong(
                    "holds colours, and nothing says which colour is which class: add a "
                    "labelmap.txt, or save class ids, as gray values or as indices of a palette"
                )
            values = values[..., 0]
        if self.stretched and values.any():
            raise self._wrong(
                "has less than 8 bits, where the class 1 may be stored as 1 or as a gray level: save "
                "it with 8 bits"
            )
        with np.errstate(invalid="ignore"):
            ids = values.astype(kind)
        if (wrong := ids != values).any():
            most = np.iinfo(kind).max
            raise self._wrong(f"holds the value {values[wrong][0]}; class ids are 0..{most}")
        return turn(ids, self.orientation)

    def region(self) -> Region:
        """Return where the one object is: what is opaque, else what is not black.

        Colours decide, also those of a palette. Values of a soft edge or a JPEG count from `HALF` on.

        Raises:
            UserError: The file marks several things.
        """
        image, values = self.image, np.asarray(self.image)
        if image.mode == "P" or values.ndim == 3:
            colours = np.asarray(image.convert("RGBA"))
            alike = not (colours[..., :3] != colours[:1, :1, :3]).any()
            opaque = colours[..., 3] >= HALF
            # Colours of a palette decide, unless they look alike.
            if not opaque.all() and (image.mode != "P" or alike):
                shades = _codes(colours[opaque] if opaque.any() else colours)
                if np.unique(shades).tolist() == [0, 0xFFFFFF]:
                    raise self._wrong(
                        "has transparent, black and white pixels, so it is not clear which mark the "
                        "object: save it with two of them"
                    )
                return Region(turn(opaque, self.orientation), "transparency")
            if image.mode != "P" or not alike:
                values = colours[..., :3]
        codes = values if values.ndim == 2 else _codes(values)
        found = np.unique(codes[codes != 0]).tolist()
        if not found or (len(found) == 1 and not self.lossy):
            white: tuple[int, ...] = (0xFFFFFF,) if values.ndim == 3 else _WHITE
            how = "one" if found == [1] and values.ndim == 2 else "value"
            how = "white" if image.mode == "1" or (found[:1] and found[0] in white) else how
            return Region(turn(codes != 0, self.orientation), how if found else "nothing")
        bright = _soft_object(values, self.lossy)
        if bright is None:
            raise self._wrong(
                f"holds {len(found)} values besides 0; a binary mask holds one (0 and 1, or 0 and "
                "255), or shades between black and white at edges only"
            )
        return Region(turn(bright, self.orientation), "threshold")

    def marked_by(self) -> str:
        """Return how the file marks an object, as in `Region`; "ids" if its values may be class ids."""
        try:
            how = self.region().marked_by
        except UserError:
            return "ids"
        if how == "value":
            return "ids"
        if how == "transparency":
            with contextlib.suppress(UserError):
                return how if np.isin(self.class_ids(), (0, 255)).all() else "ids"
        return how

    def _wrong(self, what: str) -> UserError:
        return UserError(f"mask {self.path} {what}")


def _codes(colours: np.ndarray) -> np.ndarray:
    """Return one number for each colour of (…, 3 or 4)."""
    return colours[..., :3].astype(np.uint32) @ np.array([1, 256, 65536], np.uint32)


def _soft_object(values: np.ndarray, lossy: bool) -> np.ndarray | None:
    """Return the bright pixels, bool (H, W), of one colour on black; None if there are other shades.

    Between the two lie the pixels of edges: they are few, and no block of them has one value.
    """
    if values.dtype.kind == "f":
        return None
    level = values.max(axis=2) if values.ndim == 3 else eight_bits(values)[0]
    bright = level >= HALF
    shades = np.unique(level)
    # A few shades are class ids or levels, unless two of them are nearly white.
    if not bright.any() or not (lossy or len(shades) > _LEVELS or (shades >= _BRIGHTEST).sum() > 1):
        return None
    if values.ndim == 3 and np.ptp(values[bright] / level[bright, None], axis=0).max() > _HUES:
        return None
    between = (level >= HALF // 2) & (level < HALF + HALF // 2)
    block = np.ones((3, 3), np.uint8)
    plain = between & (cv2.erode(level, block) == cv2.dilate(level, block))
    return None if plain.any() or between.mean() > _SOFT else bright


def eight_bits(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Return integers as uint8 of the same shape, and how many bits they hold.

    A file of 16 bits often holds 10, 12 or 14. The smallest even number of bits that holds the
    greatest value decides, and the upper 8 of them are kept.
    """
    bits = max(8, int(values.max(initial=0)).bit_length())
    bits += bits % 2
    return (values >> (bits - 8)).astype(np.uint8), bits


def orientation_of(image: Image.Image, data: bytes = b"") -> int:
    """Return the orientation 1..8 that the camera stored, of EXIF or else of XMP in the file's `data`.

    For TIFF, Pillow turns the image when it loads it, and the orientation is 1 afterwards.
    """
    found: Any = image.getexif().get(_ORIENTATION)
    if found is None and image.format != "TIFF" and (match := _XMP_ORIENTATION.search(data)):
        found = int(match[1])
    return found if found in range(2, 9) else 1


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """Return stored pixels (H, W, …) the way round in which a viewer shows them."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)
