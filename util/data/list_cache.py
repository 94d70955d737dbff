"""Pixels per class of every mask of a list file, scanned in parallel and cached.

The cache is one JSON file per content of a list file. It holds no paths, only a record per mask in
list order: its size in bytes, its modification time and its counts. A mask whose size and time
agree is not read again, so the cache can be copied with its data to another folder or machine. Cells
of a grid are counted like pixels, and each grid has a file of its own.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import cast

import numpy as np
from PIL import Image

from util.data.cells import Grid
from util.data.folds import ignore_value
from util.data.images import Entry, MarkedEntry, read_labels
from util.runtime.errors import UserError
from util.runtime.files import write_atomically
from util.runtime.lock import in_turn
from util.runtime.machine import available_cores
from util.runtime.parallel import run_parallel

VERSION = 1
MASKS_OF_PROCESS = 100  # Fewer are read sooner than another process starts.
_STAMPS_OF_TASK = 32

Counts = dict[int, int]  # class id → pixels
Stamp = list[int]  # bytes, modification time in ns


def load_counts(
    data_root: str,
    list_file: str,
    entries: Sequence[Entry],
    cache_dir: str,
    workers: int | None = None,
    grid: Grid | None = None,
    known: Mapping[str, Counts] | None = None,
) -> list[Counts]:
    """Return the pixels per class of the mask of each entry, background and ignore left out.

    Masks that the cache knows are not read. Of several processes that ask at once, one scans and
    the others wait for it.

    Args:
        data_root: The folder that the entries' paths are relative to.
        list_file: The list file, which names the cache.
        entries: All entries of the list file.
        cache_dir: The folder of the cache.
        workers: Number of processes; None is all cores.
        grid: A grid whose cells are counted instead of the pixels.
        known: Mask → its counts, where the caller has them.

    Raises:
        UserError: Files are missing (which is found out before any mask is read) or unreadable, or
            the cache cannot be written.
    """
    workers = workers or available_cores()
    stamps = file_stamps(data_root, list_file, entries, workers)
    # The same masks may be read in another way.
    text = "\n".join("\t".join([*entry, *_reading(entry)]) for entry in entries)
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]
    name = os.path.basename(list_file)
    of_grid = "-{}-{}x{}".format(*grid) if grid else ""
    path = os.path.join(cache_dir, f"{os.path.splitext(name)[0]}-{digest}{of_grid}.json")
    counts = _known(path, stamps)
    try:
        if None in counts:
            os.makedirs(cache_dir, exist_ok=True)
            with in_turn(path + ".lock"):
                counts = _known(path, stamps)
                if gaps := [i for i, pixels in enumerate(counts) if pixels is None]:
                    known = dict(known or {})
                    unread = [entries[i] for i in gaps if entries[i][1] not in known]
                    found = run_parallel(
                        partial(count_mask, data_root, grid=grid),
                        unread,
                        # Processes, since most of the time Python's lock would let one thread work.
                        min(workers, 1 + len(unread) // MASKS_OF_PROCESS),
                        f"scanning masks of {name}",
                    )
                    known |= {mask: n for (_, mask), n in zip(unread, found, strict=True)}
                    for i in gaps:
                        counts[i] = known[entries[i][1]]
                    records = [
                        [*stamp, pixels] for stamp, pixels in zip(stamps, counts, strict=True)
                    ]
                    write_atomically(path, json.dumps({"version": VERSION, "masks": records}))
    except OSError as error:
        raise UserError(
            f"cannot write the cache of {list_file} in {cache_dir}: {error.strerror}; "
            "set list_dir to a writable folder"
        ) from error
    return cast(list[Counts], counts)


def file_stamps(
    data_root: str, list_file: str, entries: Sequence[Entry], workers: int | None = None
) -> list[Stamp]:
    """Return size and modification time of the mask of each entry.

    Raises:
        UserError: Images or masks are missing; the message names the first one and their number.
    """

    def stamp(entry: Entry) -> Stamp | str:
        image, mask = (os.path.join(data_root, name) for name in entry)
        if not os.path.isfile(image):
            return image
        try:
            status = os.stat(mask)
        except OSError:
            return mask
        return [status.st_size, status.st_mtime_ns]

    # Threads, because on a network file system each answer is a round trip; a task has its price.
    tasks = [entries[i : i + _STAMPS_OF_TASK] for i in range(0, len(entries), _STAMPS_OF_TASK)]
    with ThreadPoolExecutor(workers or available_cores()) as pool:
        answers = [
            one for part in pool.map(lambda some: [*map(stamp, some)], tasks) for one in part
        ]
    missing = [answer for answer in answers if isinstance(answer, str)]
    if missing:
        raise UserError(
            f"{list_file} names files that do not exist: {missing[0]} "
            f"({len(missing)} of {len(entries)} lines); check data_root and the list"
        )
    return [answer for answer in answers if isinstance(answer, list)]


def _known(path: str, stamps: list[Stamp]) -> list[Counts | None]:
    """Return the counts per mask from the cache; None for masks that it does not know or that changed."""
    try:
        with open(path, encoding="utf-8") as handle:
            cached = json.load(handle)
        if cached["version"] == VERSION:
            return [
                {int(class_id): pixels for class_id, pixels in counts.items()}
                if stamp == [size, time]
                else None
                for stamp, (size, time, counts) in zip(stamps, cached["masks"], strict=True)
            ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # There is no cache yet, or a damaged one: both are written afterwards.
    return [None] * len(stamps)


def count_mask(data_root: str, entry: Entry, grid: Grid | None = None) -> Counts:
    """Return the counts of the mask of an entry; see `load_counts`."""
    mask = read_labels(data_root, entry, alone=True)
    return count_labels(grid.cells(mask) if grid else mask)


def count_labels(mask: np.ndarray) -> Counts:
    """Return the pixels of each class in a mask (H, W)."""
    ignored = ignore_value(mask.dtype)
    if mask.dtype == np.uint8:
        # A third of the time of bincount, which makes integers of 64 bits first.
        pixels = np.array(Image.fromarray(mask).histogram())
    else:
        pixels = np.bincount(mask.ravel(), minlength=ignored + 1)
    pixels[[0, ignored]] = 0
    return {int(class_id): int(pixels[class_id]) for class_id in np.flatnonzero(pixels)}


def _reading(entry: Entry) -> list[str]:
    return [str(entry.class_id)] if isinstance(entry, MarkedEntry) else []
