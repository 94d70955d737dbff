"""Write the labels of the base learner as files: python -m util.get_mulway_base_data --config FILE

Held-out classes are background, base classes numbered from 1 by rank. The files go to
<base_data_root>/<train|val>/<split>/<mask name>.png, where BAM's tool of this name puts them.
Training needs them only if base_data_root is set: without it the same labels are computed on
the fly.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import cv2
import numpy as np
from tqdm import tqdm

from util.config import load_config, parse_args
from util.data.dataset import base_label_dir, base_label_path, check_distinct_names
from util.data.folds import base_label_table
from util.data.images import check_labels, read_mask
from util.data.list_cache import available_cores
from util.data.lists import existing_entries
from util.data.loaders import config_fold, data_paths
from util.runtime.errors import UserError, exits_on_user_error
from util.runtime.files import write_atomically


def write_base_labels(data_root, entries, fold, folder, progress=True):
    """Store the base label of every mask of `entries` in `folder`; returns how many were written.

    Files that hold the right label already are left alone, so an interrupted run goes on where
    it stopped. Raises UserError for an unreadable mask or two masks of one file name.
    """
    check_distinct_names(entries)
    store = partial(_store, data_root, fold.num_classes, base_label_table(fold), folder)
    with ThreadPoolExecutor(available_cores()) as pool:
        try:
            masks = [mask for _, mask in entries]
            written = pool.map(store, masks)
            bar = tqdm(written, total=len(masks), desc=folder, disable=None if progress else True)
            return sum(bar)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _store(data_root, num_classes, table, folder, mask_name):
    mask_path = os.path.join(data_root, mask_name)
    mask = read_mask(mask_path)
    check_labels(mask, num_classes, mask_path)
    label = table[mask]
    path = base_label_path(folder, mask_name)
    if os.path.isfile(path):
        stored = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        if stored is not None and np.array_equal(stored, label):
            return False
    write_atomically(path, cv2.imencode(".png", label)[1].tobytes())
    return True


@exits_on_user_error
def main(argv=None):
    args = parse_args("Write the base learner's labels of one fold as files.", argv=argv)
    cfg = load_config(args.config, args.opts)
    if not cfg.base_data_root:
        raise UserError("base_data_root is not set; it is the folder the labels are written to")
    for part in ("train", "val"):
        data_root, list_file = data_paths(cfg, part)
        entries = existing_entries(data_root, list_file)
        folder = base_label_dir(cfg.base_data_root, part, cfg.split)
        written = write_base_labels(data_root, entries, config_fold(cfg), folder)
        print(f"{folder}: {len(entries)} labels, {written} of them written now")


if __name__ == "__main__":
    main()
