"""Write the labels of the base learner as files: python -m util.get_mulway_base_data --config FILE

Held-out classes are background, base classes numbered from 1 by rank. The files go to
<base_data_root>/<train|val>/<split>/<mask name>.png, where BAM's tool of this name puts them.
Training needs them only if base_data_root is set: without it the same labels are computed on
the fly.
"""

import contextlib
import os
from collections.abc import Sequence
from functools import partial

import cv2
import numpy as np
from tqdm.contrib.concurrent import thread_map

from util.config import config_parser, load_config
from util.data.dataset import base_label_dir, base_label_path, check_distinct_names
from util.data.folds import Fold, base_label_table
from util.data.images import Entry, check_labels, read_mask
from util.data.lists import existing_entries
from util.data.loaders import config_fold, data_paths
from util.runtime.errors import UserError, exits_on_user_error
from util.runtime.files import write_atomically
from util.runtime.machine import available_cores


def write_base_labels(data_root: str, entries: Sequence[Entry], fold: Fold, folder: str) -> int:
    """Store the base labels of all masks of a fold in a folder, and return how many were written.

    Files that already hold the right label are left as they are, so an interrupted run continues
    where it stopped.

    Raises:
        UserError: A mask is unreadable or holds other classes, or two masks have one file name.
    """
    check_distinct_names(entries)
    store = partial(_store, data_root, fold.num_classes, base_label_table(fold), folder)
    masks = [mask for _, mask in entries]
    return sum(thread_map(store, masks, max_workers=available_cores(), desc=folder, disable=None))


def _store(
    data_root: str, num_classes: int, table: np.ndarray, folder: str, mask_name: str
) -> bool:
    mask_path = os.path.join(data_root, mask_name)
    mask = read_mask(mask_path)
    check_labels(mask, num_classes, mask_path)
    label = table[mask]
    path = base_label_path(folder, mask_name)
    # There may be no file, or a damaged one.
    with contextlib.suppress(UserError):
        if np.array_equal(read_mask(path), label):
            return False
    write_atomically(path, cv2.imencode(".png", label)[1].tobytes())
    return True


@exits_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Run the command line `argv` (that of the process if None)."""
    parser = config_parser("Write the base learner's labels of one fold as files.")
    args = parser.parse_args(argv)
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
