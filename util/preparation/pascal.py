"""PASCAL: reading the masks of VOC (PNG) and of SBD (MATLAB), and downloading both.

VOC colours its masks. Most are palette images, whose indices are the class ids. One that an editor
saved in true colour is decoded by the colour map of the VOC development kit.
"""

import os
import tarfile
import tempfile
from collections.abc import Mapping
from io import BytesIO

import numpy as np
from scipy.io import loadmat

from util.data.folds import IGNORE
from util.data.images import FilePath, check_labels
from util.data.masks import MaskFile
from util.runtime.errors import UserError

NUM_CLASSES = 20

Colour = tuple[int, int, int]  # red, green and blue


def voc_colour(class_id: int) -> Colour:
    """Return red, green and blue of a class id 0..255 in the VOC colour map.

    Bit 3k of the id is bit 7-k of red, bit 3k+1 of green and bit 3k+2 of blue (`VOClabelcolormap`
    of the development kit).
    """
    red, green, blue = (
        sum((class_id >> (3 * k + channel) & 1) << (7 - k) for k in range(3))
        for channel in range(3)
    )
    return red, green, blue


VOC_COLOURS = {voc_colour(class_id): class_id for class_id in (*range(NUM_CLASSES + 1), IGNORE)}


def voc_mask(path: FilePath, data: bytes) -> np.ndarray:
    """Return the class ids 0..20 or 255, uint8 (H, W), of the VOC mask `path` with content `data`.

    Raises:
        UserError: It is damaged or no mask of VOC: another kind of image, a colour or a value
            that VOC does not have.
    """
    file = MaskFile(path, data)
    if file.image.mode == "RGB":
        colours = np.asarray(file.image)
        return ids_of_colours(colours, VOC_COLOURS, path, "the VOC colour map does not have")
    mask = file.class_ids()
    check_labels(mask, NUM_CLASSES, str(path))
    return mask


def ids_of_colours(
    mask: np.ndarray, ids: Mapping[Colour, int], path: FilePath, lacks: str
) -> np.ndarray:
    """Return the class ids, uint8 (H, W), of a mask of colours, uint8 (H, W, 3).

    Args:
        mask: The mask.
        ids: Colour → class id.
        path: The file of the mask, for the message.
        lacks: Who does not know other colours, for the message.

    Raises:
        UserError: The mask holds another colour.
    """
    classes = np.zeros(mask.shape[:2], np.uint8)
    unknown = np.ones(mask.shape[:2], bool)
    for colour, class_id in ids.items():
        found = (mask == colour).all(axis=2)
        classes[found] = class_id
        unknown &= ~found
    if unknown.any():
        colour = tuple(mask[unknown][0].tolist())
        raise UserError(
            f"mask {path} holds the colour {colour}, which {lacks}: give the mask as it was exported"
        )
    return classes


def sbd_mask(path: FilePath, data: bytes) -> np.ndarray:
    """Return the class ids 0..20 or 255, uint8 (H, W), of the SBD file `path` with content `data`.

    They are the field Segmentation of the structure GTcls.

    Raises:
        UserError: The file is damaged, lacks that field, or holds a value that is no class.
    """
    try:
        content = loadmat(BytesIO(data), variable_names=["GTcls"])
    except Exception as error:  # scipy raises many kinds of exception for damaged files.
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
    check_labels(mask, NUM_CLASSES, str(path))
    return mask


def download_pascal(voc: FilePath, sbd: FilePath) -> None:
    """Download and unpack VOC 2012 into the folder `voc` (2 GB) and SBD into `sbd` (1.4 GB).

    Archives that are complete are not downloaded again. The host of train_noval.txt often fails;
    then a line says so, and the file is left out.

    Raises:
        UserError: A dataset cannot be downloaded.
    """
    # Imported here because few runs download.
    from torchvision.datasets import SBDataset, VOCSegmentation
    from torchvision.datasets.utils import download_url

    try:
        # VOC is unpacked each time, since nothing shows whether an unpacking was interrupted.
        VOCSegmentation(voc, year="2012", image_set="train", download=True)
        # torchvision moves val.txt into place last.
        if not os.path.isfile(os.path.join(sbd, "val.txt")):
            SBDataset(sbd, image_set="train", mode="segmentation", download=True)
    except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
        raise UserError(
            f"the download failed ({error}): try again, or unpack VOCtrainval_11-May-2012.tar and "
            "benchmark.tgz yourself and leave --download out"
        ) from error
    name = SBDataset.voc_split_filename
    target = os.path.join(sbd, name)
    if os.path.isfile(target):
        return
    try:
        # torchvision leaves a broken download under its final name.
        with tempfile.TemporaryDirectory(dir=sbd) as folder:
            download_url(SBDataset.voc_train_url, folder, name, SBDataset.voc_split_md5)
            os.replace(os.path.join(folder, name), target)
    except (OSError, RuntimeError) as error:
        print(f"{name} cannot be downloaded ({error})")
