"""Putting pairs of an image and its index mask under a data root.

Each mask holds the fingerprint of its sources in a PNG text chunk. A later run reads from the mask
whether it is still right; a record in another file could disagree with it after an interruption.
"""

import hashlib
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from util.data.images import Entry, FilePath, as_shown, read_whole_image, stored_orientation
from util.data.list_cache import Counts, count_labels
from util.data.masks import MaskFile, turn
from util.preparation.shared import DataRoot, link_or_copy
from util.runtime.errors import UserError
from util.runtime.files import write_atomically
from util.runtime.parallel import Item, T, run_parallel

VERSION = 1  # Raise it when the same sources would give other masks.
_KEY = b"made from"
_STAMP = re.compile(rb"tEXt" + _KEY + rb"\0([0-9a-f]{32})")
_HEADER = 33  # bytes of a PNG before the second chunk
_HEAD = 128  # bytes of a PNG that include the fingerprint, which follows the header chunk
_END = bytes.fromhex("0000000049454e44ae426082")  # the last chunk of every complete PNG


class Placed(NamedTuple):
    """How a pair got under the data root: what `link_or_copy` returned; was its mask written?"""

    how: str
    written: bool
    counts: Counts | None = None  # of the mask, where it was made


def fingerprint(*sources: object) -> str:
    """Return 32 hex digits that identify the content of bytes or anything with a repr."""
    digest = hashlib.sha256(str(VERSION).encode())
    for source in sources:
        data = source if isinstance(source, bytes) else repr(source).encode()
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()[:32]


def stack_regions(height: int, width: int, regions: Iterable[tuple[int, np.ndarray]]) -> np.ndarray:
    """Return one index mask, uint8 (height, width), of labels with their regions, bool (H, W).

    Those that cover more are drawn first, so that a ring on a hand stays a ring; of two that cover
    as much, the later is on top.
    """
    mask = np.zeros((height, width), np.uint8)
    for label, region in sorted(regions, key=lambda item: -int(np.count_nonzero(item[1]))):
        mask[region] = label
    return mask


def prepare_pair(
    root: DataRoot,
    image_source: FilePath,
    entry: Entry,
    sources: Iterable[object],
    make_mask: Callable[[], np.ndarray],
    notes: list[str] | None = None,
) -> Placed:
    """Put an image and its index mask under the data root.

    The mask is made only if it is missing or was made from other sources. It is written last, so
    a mask that exists says that its image was checked.

    Args:
        root: The data root.
        image_source: The image file.
        entry: Names of image and mask, relative to the data root.
        sources: What the mask is made from, for `fingerprint`.
        make_mask: Returns the mask, uint8 (H, W).
        notes: Receives what is worth knowing of a pair whose mask is made now.

    Raises:
        UserError: The image is damaged, the sizes differ, or the mask's place holds another file
            that no preparation wrote.
    """
    image, path = (Path(root.folder, name) for name in entry)
    stamp = fingerprint(*sources, os.path.getsize(image_source))
    present = path.read_bytes() if path.exists() else b""
    found = _STAMP.search(present[:_HEAD])
    if found and found[1] == stamp.encode() and present.endswith(_END):
        return Placed(link_or_copy(image_source, image, root.copy), False)
    notes = [] if notes is None else notes
    drawn = make_mask()
    height, width = read_whole_image(image_source, notes, pixels=False).shape[:2]
    mask = as_shown(drawn, (height, width), image_source)
    if mask is not drawn:
        notes.append("masks of the size that the camera stored, which are turned like their images")
    elif (way := stored_orientation(image_source)) > 1 and turn(mask, way).shape == mask.shape:
        notes.append(
            "images that a viewer turns without a change of size, so that their masks are taken as "
            "drawn on what the viewer shows"
        )
    if mask.shape != (height, width):
        raise UserError(
            f"{image_source} is {width}×{height} pixels but its mask {mask.shape[1]}×"
            f"{mask.shape[0]}; they have to be of one size"
        )
    users_own = present and not found
    if users_own and not _holds(present, mask):
        raise UserError(
            f"{path} exists, but this command neither wrote it nor would write the same mask: "
            "delete it or give a new --out"
        )
    how = link_or_copy(image_source, image, root.copy)
    if not users_own:
        write_atomically(path, _stamped_png(mask, stamp))
    return Placed(how, not users_own, count_labels(mask))


def _stamped_png(mask: np.ndarray, stamp: str) -> bytes:
    """Return a PNG with the fingerprint; OpenCV needs a third of Pillow's time, but writes no text."""
    data = cv2.imencode(".png", mask)[1].tobytes()
    text = b"tEXt" + _KEY + b"\0" + stamp.encode()
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    return data[:_HEADER] + chunk + data[_HEADER:]


def place_all(
    place: Callable[[Item], T | str], items: Sequence[Item], root: DataRoot, name: str
) -> list[T]:
    """Put all items under the data root by `place`, which returns what it did or what is wrong.

    Raises:
        UserError: Something is wrong; a file in the data root names all of it.
    """
    results = run_parallel(place, items, root.workers, name)
    path = os.path.join(root.folder, "problems.txt")
    Path(path).unlink(missing_ok=True)
    problems = [result for result in results if isinstance(result, str)]
    if problems:
        text = "".join(f"{problem}\n" for problem in problems)
        write_atomically(path, text.encode(errors="surrogateescape"))
        more = f" ({len(problems)} problems; all: {path})" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    return [result for result in results if not isinstance(result, str)]


def pair_summary(placed: Sequence[Placed]) -> list[str]:
    """Return two lines that count how images and masks got under the data root."""
    ways = Counter(pair.how for pair in placed)
    written = sum(pair.written for pair in placed)
    images = ", ".join(f"{count:,} {how}" for how, count in sorted(ways.items()))
    return [f"images: {images}", f"masks: {len(placed):,}, {written:,} of them written now"]


def _holds(data: bytes, mask: np.ndarray) -> bool:
    """Return whether a mask file with this content would be read as `mask`."""
    try:
        return np.array_equal(MaskFile("", data).class_ids(), mask)
    except UserError:
        return False
