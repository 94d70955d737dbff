"""Index masks from the user's own masks, of either form that `util.preparation.custom_pairs` tells of."""

from functools import partial

import numpy as np

from util.data.images import require_same_size
from util.preparation.custom_pairs import Pair
from util.preparation.masks import prepare_pair, read_png
from util.runtime.errors import UserError

_BITS = 8  # of a colour channel


def place_pair(out: str, copy: bool, pair: Pair) -> tuple[str, bool] | str:
    """Check a pair and put it under the data root `out`, its mask as an index mask.

    copy: copy the image instead of linking it. Returns what `prepare_pair` does, or the message of
    what is wrong, so that one run finds all that is.
    """
    image, mask = pair.entry
    if isinstance(pair.mask, str):
        data = _content(pair.mask)
        sources, make_mask = [data], partial(index_mask, pair.mask, data)
    else:
        files = [(class_id, path, _content(path)) for class_id, path in pair.mask.items()]
        sources = [source for class_id, _, data in files for source in (class_id, data)]
        make_mask = partial(merged_mask, files)
    try:
        return prepare_pair(out, pair.image, image, mask, sources, make_mask, copy)
    except UserError as error:
        return str(error)


def index_mask(path: str, data: bytes) -> np.ndarray:
    """The class ids, (H, W) uint8, of the index mask file `path` with content `data`.

    Raises:
        UserError: it is damaged, or holds colours or 16 bits.
    """
    image = read_png(path, data)
    if image.mode not in ("L", "P", "1"):
        raise UserError(
            f"mask {path} holds colours or more than 8 bits ({image.mode}); an index mask is gray "
            "or has a palette, and its values are class ids"
        )
    return np.asarray(image).astype(np.uint8)


def merged_mask(files: list[tuple[int, str, bytes]]) -> np.ndarray:
    """One index mask, (H, W) uint8, of binary masks (class id, path, content).

    Where two overlap, the one of fewer pixels is on top: a ring on a hand stays a ring.

    Raises:
        UserError: a mask is damaged or not binary, or two differ in size.
    """
    layers = [(class_id, path, _foreground(path, data)) for class_id, path, data in files]
    _, first_path, first = layers[0]
    merged = np.zeros(first.shape, np.uint8)
    for class_id, path, layer in sorted(layers, key=lambda found: -np.count_nonzero(found[2])):
        require_same_size(first, first_path, layer, path)
        merged[layer] = class_id
    return merged


def _foreground(path: str, data: bytes) -> np.ndarray:
    """Where a binary mask is not 0, bool (H, W)."""
    image = read_png(path, data)
    if len(image.getbands()) > 1:
        channels = np.asarray(image.convert("RGB")).astype(np.int32)
        values = channels @ (1 << _BITS * np.arange(3))
    else:
        values = np.asarray(image)
    found = np.unique(values[values != 0])
    if len(found) > 1:
        raise UserError(
            f"mask {path} holds {len(found)} values besides 0; a binary mask holds one "
            "(0 and 1, or 0 and 255), without soft edges"
        )
    return values != 0


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
