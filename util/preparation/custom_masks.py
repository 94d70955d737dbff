"""Reading the user's own masks, of either form in `util.preparation.custom_pairs`, as index masks."""

from collections.abc import Sequence

import numpy as np

from util.data.images import require_same_size
from util.preparation.masks import read_png
from util.runtime.errors import UserError


def index_mask(path: str, data: bytes) -> np.ndarray:
    """Return the class ids, uint8 (H, W), of an index mask.

    Args:
        path: The file, for messages.
        data: Its content.

    Raises:
        UserError: It is damaged, or holds colours or 16 bits.
    """
    image = read_png(path, data)
    if image.mode not in ("L", "P", "1"):
        raise UserError(
            f"mask {path} holds colours or more than 8 bits ({image.mode}); an index mask is gray "
            "or has a palette, and its values are class ids"
        )
    return np.asarray(image).astype(np.uint8)


def merged_mask(files: Sequence[tuple[int, str, bytes]]) -> np.ndarray:
    """Return one index mask, uint8 (H, W), of the binary masks of an image.

    Where two overlap, the one of fewer pixels is on top, so that a ring on a hand stays a ring.

    Args:
        files: Class id, path and content of each binary mask.

    Raises:
        UserError: A mask is damaged or not binary, or two differ in size.
    """
    layers = [(class_id, path, _foreground(path, data)) for class_id, path, data in files]
    _, first_path, first = layers[0]
    merged = np.zeros(first.shape, np.uint8)
    for class_id, path, layer in sorted(layers, key=lambda found: -np.count_nonzero(found[2])):
        require_same_size(first, first_path, layer, path)
        merged[layer] = class_id
    return merged


def _foreground(path: str, data: bytes) -> np.ndarray:
    """Return where a binary mask is not 0, bool (H, W)."""
    image = read_png(path, data)
    if len(image.getbands()) > 1:
        values = np.asarray(image.convert("RGB")).astype(np.uint32) @ np.array([1, 256, 65536])
    else:
        values = np.asarray(image)
    found = np.unique(values[values != 0])
    if len(found) > 1:
        raise UserError(
            f"mask {path} holds {len(found)} values besides 0; a binary mask holds one "
            "(0 and 1, or 0 and 255), without soft edges"
        )
    return values != 0
