"""What the preparation of every dataset shares: links, lists, work over processes, plain errors.

A preparation puts images and index masks under one data root and writes lists of them. Whatever
it makes appears under its final name when it is whole, so the same command goes on after an
interruption.
"""

import argparse
import contextlib
import filecmp
import functools
import multiprocessing
import multiprocessing.connection
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from util.config import load_config
from util.data.list_cache import available_cores
from util.runtime.errors import UserError, exits_on_user_error
from util.runtime.files import ROOT, write_atomically

INTERRUPTED = 130  # what shells report of a command ended by Ctrl-C
_LEFTOVER = re.compile(
    r".+\.\w+\.(\d+)\.tmp"
)  # the temporary names of util.runtime.files and below


def resumable(main):
    """Wrap a preparation's `main`: every `UserError`, failed write and Ctrl-C is one line."""

    @exits_on_user_error
    @functools.wraps(main)
    def wrapper(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except OSError as error:
            raise UserError(f"{error}; when that is mended, the same command goes on") from error
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr, flush=True)
            sys.exit(INTERRUPTED)

    return wrapper


def add_shared_options(parser, lists):
    """Add --out, --lists (default `lists`), --copy and --workers to an argparse `parser`."""
    parser.add_argument("--out", required=True, help="data root to make, or to go on with")
    parser.add_argument("--lists", default=lists, help="folder of the lists (%(default)s)")
    parser.add_argument("--copy", action="store_true", help="copy images instead of linking them")
    parser.add_argument("--workers", type=_count, help="processes (default: all cores)")


def _count(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number, 1 or more")
    return int(text)


def require_folder(path, what):
    """Raise UserError unless `path` is a folder; `what` says what to give there."""
    if not os.path.isdir(path):
        raise UserError(f"{path} is not a folder: {what}")


def require_files(paths, what):
    """Raise UserError naming the first of `paths` that is no file; `what` says what to do."""
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise UserError(f"{missing[0]}{more} does not exist: {what}")


def open_folder(path, option):
    """Make the folder `path` if need be, see that it can be written, clear what a kill left there.

    option: the option that chose the folder, for the message. Raises UserError.
    """
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write in {path}: {error.strerror}; give a writable folder as {option}"
        ) from error
    for entry in os.scandir(path):
        leftover = _LEFTOVER.fullmatch(entry.name)
        if leftover and not _is_running(int(leftover[1])):
            # another run may be clearing the same folder
            with contextlib.suppress(FileNotFoundError):
                os.remove(entry.path)


def _is_running(process):
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def link_or_copy(source, target, copy=False):
    """Make the file `source` appear as `target`; returns how: "in place", "linked" or "copied".

    Hard links, since they outlive the source's folder and travel with the data root; where the
    file system has none (another disk, a foreign owner) symbolic ones, relative; else, or with
    `copy`, copies. What is there already stays. Raises UserError if `target` is another file:
    nothing of the user's is overwritten.
    """
    source, target = os.path.realpath(source), os.path.abspath(target)
    folder = os.path.realpath(os.path.dirname(target))
    if os.path.join(folder, os.path.basename(target)) == source:
        return "in place"
    if os.path.exists(target):
        if os.path.samefile(source, target):
            if not copy:
                return "linked"
        elif filecmp.cmp(source, target):
            return "copied"
        else:
            raise UserError(
                f"{target} exists and differs from {source}: delete it or give a new --out"
            )
    os.makedirs(folder, exist_ok=True)
    ways = {
        "hard": lambda path: os.link(source, path),
        "symbolic": lambda path: os.symlink(os.path.relpath(source, folder), path),
        "copy": lambda path: shutil.copy2(source, path),
    }
    temporary = f"{target}.{os.getpid()}.tmp"
    for way in ["copy"] if copy else ways:
        try:
            ways[way](temporary)
            os.replace(temporary, target)
            return "copied" if way == "copy" else "linked"
        except OSError:
            if way == "copy":
                raise
        finally:
            if os.path.lexists(temporary):
                os.remove(temporary)


def check_names(pairs):
    """Raise UserError for a name that no list can hold; arguments as of `write_list`."""
    for name in (name for pair in pairs for name in pair):
        if name != name.strip() or "\t" in name or "\n" in name:
            raise UserError(
                f"{name!r}: a list cannot hold a name with a tab, a line break or blanks at an end"
            )


def write_list(path, pairs):
    """Write the list file `path` of (image, mask) pairs, as `util.data.lists.read_entries` reads it.

    pairs: paths relative to the data root. A tab parts names that hold blanks. A list of other
    content that was there is kept as PATH.bak; returns whether there was one. Raises UserError
    for a name that no list can hold.
    """
    pairs = list(pairs)
    check_names(pairs)
    lines = [("\t" if " " in "".join(pair) else " ").join(pair) + "\n" for pair in pairs]
    # surrogateescape: a file name may be any bytes
    data = "".join(lines).encode("utf-8", errors="surrogateescape")
    before = Path(path).read_bytes() if os.path.exists(path) else data
    if before != data:
        write_atomically(f"{path}.bak", before)
    write_atomically(path, data)
    return before != data


def count_line(name, found, expected):
    """ "NAME: FOUND", with a warning where FOUND is not the number `expected`."""
    warning = "" if found == expected else f" (warning: {expected:,} expected; is all of it there?)"
    return f"{name}: {found:,}{warning}"


def next_commands(dataset, data_root, lists):
    """The lines that say how to go on: the check of the data, then stage 1.

    lists: folder of train.txt and val.txt. Settings are added where config/datasets/DATASET.yaml
    names other places.
    """
    file, chosen = f"config/{dataset}/{dataset}_split0_resnet50.yaml", []
    if not (ROOT / file).is_file():
        # as the scripts do for a dataset that has a description alone
        file, chosen = "config/base/resnet50.yaml", ["data_set", dataset, "split", "0"]
    cfg = load_config(ROOT / file, chosen)
    places = {
        "data_root": data_root,
        "train_list": os.path.join(lists, "train.txt"),
        "val_list": os.path.join(lists, "val.txt"),
    }
    settings = [
        word
        for key, place in places.items()
        if os.path.realpath(getattr(cfg, key)) != os.path.realpath(place)
        for word in (key, place)
    ]
    options = ["--opts", *chosen, *settings] if chosen or settings else []
    verify = ["python", "-m", "util.verify", "--config", file, *options]
    train = ["sh", "train_base.sh", "split0", dataset, "1", *settings]
    return [f"next: {shlex.join(map(str, verify))}", f"then: {shlex.join(map(str, train))}"]


def run_parallel(function, items, workers=None, description=""):
    """[function(item) for item in items], over `workers` processes, with a progress bar.

    function: of a module's top level, or a partial of one; items and results travel between
    processes, a few at a time. workers: default all cores; with 1 the work is done here. The
    first exception, or Ctrl-C, ends the work after the items then in hand. Raises what
    `function` raises, and UserError if a process is killed.
    """
    items = list(items)
    workers = min(workers or available_cores(), len(items))
    bar = functools.partial(
        tqdm, total=len(items), desc=description, unit="file", smoothing=0, disable=None
    )
    if workers <= 1:
        return list(bar(map(function, items)))
    size = max(1, min(16, len(items) // (8 * workers)))
    chunks = (items[start : start + size] for start in range(0, len(items), size))
    # A forked worker starts in milliseconds, but on macOS a fork after OpenCV has run may crash.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker)
    results = []
    try:
        waiting = deque(pool.submit(_run, function, chunk) for chunk in islice(chunks, 4 * workers))
        with bar() as progress:
            while waiting:
                done = waiting.popleft().result()
                results += done
                progress.update(len(done))
                waiting.extend(pool.submit(_run, function, chunk) for chunk in islice(chunks, 1))
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed (out of memory?): the same command goes on; "
            "give fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    return results


def _run(function, chunk):
    return [function(item) for item in chunk]


def _start_worker():
    # Ctrl-C reaches every process of the terminal; the main one ends the others in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
