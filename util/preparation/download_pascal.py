"""Downloading VOC 2012 and SBD with torchvision."""

import os
import tarfile
import tempfile

from util.preparation.shared import FilePath
from util.runtime.errors import UserError


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
