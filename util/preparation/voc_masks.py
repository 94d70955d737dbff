"""Reading the masks of PASCAL VOC (PNG) and of SBD (MATLAB), as class ids.

VOC colours its masks. Most are palette images, whose indices are the class ids; one that an
editor saved in true colour is decoded by the colour map of the VOC development kit.
"""

from io import BytesIO

import numpy as np
from scipy.io import loadmat

from util.data.folds import IGNORE
from util.data.images import check_labels
from util.preparation.masks import read_png
from util.runtime.errors import UserError

NUM_CLASSES = 20


def voc_colour(class_id):
    """(red, green, blue) of a class id 0..255 in the VOC colour map.

    Bit 3k of the id is bit 7-k of red, bit 3k+1 of green and bit 3k+2 of blue (`VOClabelcolormap`
    of the development kit).
    """
    return tuple(
        sum((class_id >> (3 * k + channel) & 1) << (7 - k) for k in range(3))
        for channel in range(3)
    )


def voc_mask(path, data):
    """The VOC mask file `path` with content `data` (bytes): (H, W) uint8, 0..20 or 255.

    Raises UserError for a damaged file, another kind of image, a colour or a value that is none
    of VOC's.
    """
    image = read_png(path, data)
    if image.mode == "RGB":
        return _ids_of_colours(np.asarray(image), path)
    if image.mode not in ("P", "L"):
        raise UserError(
            f"mask {path} is a {image.mode} image; VOC masks are palette, RGB or 8-bit grey PNGs"
        )
    mask = np.asarray(image)
    check_labels(mask, NUM_CLASSES, path)
    return mask


def _ids_of_colours(colours, path):
    packed = colours.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    found, places = np.unique(packed, return_inverse=True)
    ids = {
        red << 16 | green << 8 | blue: class_id
        for class_id in (*range(NUM_CLASSES + 1), IGNORE)
        for red, green, blue in [voc_colour(class_id)]
    }
    for colour in found.tolist():
        if colour not in ids:
            red, green, blue = colour >> 16, colour >> 8 & 255, colour & 255
            raise UserError(
                f"mask {path} holds the colour ({red}, {green}, {blue}), which is none of the VOC "
                "colour map: give the mask as VOC has it"
            )
    table = np.array([ids[colour] for colour in found.tolist()], np.uint8)
    return table[places].reshape(packed.shape)


def sbd_mask(path, data):
    """The SBD annotation `path` with content `data` (bytes): (H, W) uint8, 0..20 or 255.

    It is the field Segmentation of the structure GTcls. Raises UserError for a damaged file, one
    without that field, and a value that is no class.
    """
    try:
        content = loadmat(BytesIO(data), variable_names=["GTcls"])
    # scipy answers damaged files with many kinds of exception
    except Exception as error:
        raise UserError(
            f"{path} is damaged or no MATLAB file ({error}): unpack SBD's benchmark.tgz again"
        ) from error
    try:
        mask = content["GTcls"][0]["Segmentation"][0]
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise UserError(
            f"{path} has no field GTcls.Segmentation: give the folder dataset/cls of SBD's "
            "benchmark.tgz"
        ) from error
    if getattr(mask, "ndim", 0) != 2 or mask.dtype != np.uint8:
        raise UserError(f"{path}: GTcls.Segmentation is no array (H, W) of 8-bit class ids")
    check_labels(mask, NUM_CLASSES, path)
    return mask
