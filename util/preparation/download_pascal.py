"""Getting VOC 2012 and SBD from their homes, by torchvision."""

import os
import tarfile
import tempfile

from util.runtime.errors import UserError


def download_pascal(voc, sbd):
    """Download and unpack VOC 2012 into the folder `voc` (2 GB) and SBD into `sbd` (1.4 GB).

    Archives that are there whole are not fetched again. train_noval.txt is a download of its
    own, from a host that often fails: then it is left out, with a line saying so. Raises
    UserError if a dataset cannot be had.
    """
    # Imported here: few runs download.
    from torchvision.datasets import SBDataset, VOCSegmentation

    try:
        # VOC is unpacked each time: an interrupted unpacking leaves nothing to know it by.
        VOCSegmentation(voc, year="2012", image_set="train", download=True)
        # val.txt is what torchvision moves into place last.
        if not os.path.isfile(os.path.join(sbd, "val.txt")):
            SBDataset(sbd, image_set="train", mode="segmentation", download=True)
    except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
        raise UserError(
            f"the download failed ({error}): try again, or unpack VOCtrainval_11-May-2012.tar and "
            "benchmark.tgz yourself and leave --download out"
        ) from error
    _download_train_noval(sbd)


def _download_train_noval(sbd):
    from torchvision.datasets import SBDataset
    from torchvision.datasets.utils import download_url

    name = SBDataset.voc_split_filename
    target = os.path.join(sbd, name)
    if os.path.isfile(target):
        return
    try:
        # torchvision leaves a broken download under its final name
        with tempfile.TemporaryDirectory(dir=sbd) as folder:
            download_url(SBDataset.voc_train_url, folder, name, SBDataset.voc_split_md5)
            os.replace(os.path.join(folder, name), target)
    except (OSError, RuntimeError) as error:
        print(f"{name} cannot be downloaded ({error})")
