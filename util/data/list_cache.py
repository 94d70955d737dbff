"""Pixels per class of every mask of a list file, scanned in parallel and cached.

The cache, one JSON file per content of a list file, holds no paths, only a record per mask in
list order: its size in bytes, its modification time and its counts. Masks whose size and time
agree are not read again, so a changed mask costs reading that mask, and a cache moves with its
data to another folder or machine (if the copy did not keep the times, the masks are read again).
"""

import contextlib
import fcntl
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from util.data.dataset import read_mask
from util.data.folds import IGNORE
from util.runtime.errors import UserError
from util.runtime.files import write_atomically

VERSION = 1


def load_counts(data_root, list_file, entries, cache_dir, workers=None, progress=True):
    """Pixels per class of the mask of each entry: a list of dicts class id → pixels.

    Background and ignore are left out. Reads masks only where the cache in `cache_dir` does not
    know them as they are now, in `workers` threads; of several processes that ask at once, one
    scans and the others wait for it. Raises UserError for files that are missing (before any
    mask is read) or unreadable, and if the cache cannot be written.
    """
    workers = workers or available_cores()
    stamps = file_stamps(data_root, list_file, entries, workers)
    path = cache_path(cache_dir, list_file, entries)
    counts = _known(path, stamps)
    if None not in counts:
        return counts
    try:
        os.makedirs(cache_dir, exist_ok=True)
        with _locked(path + ".lock"):
            counts = _known(path, stamps)
            if None in counts:
                _scan(data_root, entries, counts, list_file, workers, progress)
                masks = [[*stamp, pixels] for stamp, pixels in zip(stamps, counts, strict=True)]
                write_atomically(path, json.dumps({"version": VERSION, "masks": masks}))
    except OSError as error:
        raise UserError(
            f"cannot write the cache of {list_file} in {cache_dir}: {error.strerror}; "
            "set list_dir to a writable folder"
        ) from error
    return counts


def available_cores():
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_path(cache_dir, list_file, entries):
    """The cache file for a list file with these entries."""
    text = "\n".join("\t".join(entry) for entry in entries)
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]
    stem = os.path.splitext(os.path.basename(list_file))[0]
    return os.path.join(cache_dir, f"{stem}-{digest}.json")


def file_stamps(data_root, list_file, entries, workers=None):
    """[bytes, modification time in ns] of the mask of each entry.

    Raises UserError if images or masks are missing, with the first of them and how many.
    """

    def stamp(entry):
        image, mask = (os.path.join(data_root, name) for name in entry)
        if not os.path.isfile(image):
            return image
        try:
            status = os.stat(mask)
        except OSError:
            return mask
        return [status.st_size, status.st_mtime_ns]

    # threads: on a network file system each answer is a round trip
    with ThreadPoolExecutor(workers or available_cores()) as pool:
        stamps = list(pool.map(stamp, entries))
    missing = [path for path in stamps if isinstance(path, str)]
    if missing:
        raise UserError(
            f"{list_file} names files that do not exist: {missing[0]} "
            f"({len(missing)} of {len(entries)} lines); check data_root and the list"
        )
    return stamps


def _known(path, stamps):
    """Counts per mask from the cache; None where it has none for the mask as it is now."""
    try:
        with open(path, encoding="utf-8") as handle:
            cached = json.load(handle)
        if cached["version"] != VERSION or len(cached["masks"]) != len(stamps):
            return [None] * len(stamps)
        return [
            {int(class_id): pixels for class_id, pixels in counts.items()}
            if stamp == [size, time]
            else None
            for stamp, (size, time, counts) in zip(stamps, cached["masks"], strict=True)
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # no cache yet, or a damaged one: both are made anew
        return [None] * len(stamps)


def _scan(data_root, entries, counts, list_file, workers, progress):
    """Fill the gaps of `counts` from the masks."""
    gaps = [i for i, known in enumerate(counts) if known is None]
    paths = [os.path.join(data_root, entries[i][1]) for i in gaps]
    with ThreadPoolExecutor(workers) as pool:
        try:
            found = tqdm(
                pool.map(_count, paths),
                total=len(paths),
                desc=f"scanning masks of {os.path.basename(list_file)}",
                disable=None if progress else True,
            )
            for i, pixels in zip(gaps, found, strict=True):
                counts[i] = pixels
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _count(path):
    pixels = np.bincount(read_mask(path).ravel(), minlength=256)
    pixels[[0, IGNORE]] = 0
    return {int(class_id): int(pixels[class_id]) for class_id in np.flatnonzero(pixels)}


@contextlib.contextmanager
def _locked(path):
    """Hold an exclusive lock on `path` between processes; free when the holder dies."""
    with open(path, "w") as handle:
        # a file system without locks: every process scans, and writes the same content
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
