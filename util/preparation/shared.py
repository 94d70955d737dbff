"""What the preparations of all datasets share: links, lists, work in processes, one-line errors.

A preparation puts images and index masks under one data root and writes lists of them. A file gets
its final name only when it is complete, so the same command continues after an interruption.
"""

import argparse
import contextlib
import filecmp
import functools
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pydantic import PositiveInt, TypeAdapter, ValidationError

from util.config import given_values
from util.data.images import Entry, FilePath
from util.runtime.errors import UserError, exits_on_user_error, in_plain_words
from util.runtime.files import ROOT, leftovers, temporary_path, write_atomically
from util.runtime.machine import require_writable

INTERRUPTED = 130  # the exit code of a command that Ctrl-C ended

P = ParamSpec("P")
T = TypeVar("T")


def resumable(main: Callable[P, T]) -> Callable[P, T]:
    """Wrap the `main` of a command so that a `UserError`, a failed write and Ctrl-C are one line."""

    @exits_on_user_error
    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return main(*args, **kwargs)
        except OSError as error:
            advice = "correct this and run the same command again to continue"
            raise UserError(f"{error}; {advice}") from error
        except KeyboardInterrupt:
            message = "interrupted; run the same command again to continue"
            print(message, file=sys.stderr, flush=True)
            sys.exit(INTERRUPTED)

    return wrapper


def argument_type(kind: Any) -> Callable[[str], Any]:
    """Return an argparse type that reads a word of the command line as the pydantic type `kind`."""
    adapter = TypeAdapter(kind)

    def read(word: str) -> Any:
        try:
            return adapter.validate_python(word)
        except ValidationError as error:
            reasons = " or ".join(in_plain_words(reason["msg"]) for reason in error.errors())
            raise argparse.ArgumentTypeError(f"{word}: {reasons}") from None

    return read


def add_shared_options(parser: argparse.ArgumentParser, name: str = "NAME") -> None:
    """Add --out, --lists (default lists/NAME), --copy and --workers to a parser."""
    parser.add_argument("--out", required=True, help="data root; an incomplete one is completed")
    parser.add_argument("--lists", help=f"folder of the lists (lists/{name})")
    parser.add_argument("--copy", action="store_true", help="copy images instead of linking them")
    parser.add_argument(
        "--workers", type=argument_type(PositiveInt), help="processes (default: all cores)"
    )


def require_folder(path: FilePath, advice: str) -> None:
    """Raise a UserError that ends with `advice` unless `path` is a folder."""
    if not os.path.isdir(path):
        raise UserError(f"{path} is not a folder: {advice}")


def require_files(paths: Iterable[FilePath], advice: str) -> None:
    """Raise a UserError that names the first missing file of `paths` and ends with `advice`."""
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise UserError(f"{missing[0]}{more} does not exist: {advice}")


def require_text(*words: str) -> None:
    """Raise a UserError for a word that is not UTF-8, as a file name may be."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"{word!r} is no text in UTF-8: rename it") from None


def open_folder(path: FilePath, option: str) -> None:
    """Make a folder if it is missing, test that it is writable, and remove what killed runs left.

    Raises:
        UserError: The folder cannot be written, or settings could not hold its name. The message
            names `option`, which chose the folder.
    """
    require_text(str(path))
    require_writable(path, f"give a writable folder as {option}")
    for left in chain.from_iterable(leftovers(path).values()):
        # Another run may remove it at the same time.
        Path(left).unlink(missing_ok=True)


def link_or_copy(source: FilePath, target: FilePath, copy: bool = False) -> str:
    """Make the file `source` appear as `target` too, as a link unless `copy` is set.

    The link is a hard one, which remains when the folder of the source is removed. Where the file
    system refuses it (another disk, another owner), the link is symbolic and relative; where that
    is refused too, the file is copied. A target with the content of the source stays as it is.

    Returns:
        "in place" if both names are the same, else "linked" or "copied".

    Raises:
        UserError: The target is another file; nothing of the user's is overwritten.
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
    temporary = temporary_path(target)
    links = ((os.link, source), (os.symlink, os.path.relpath(source, folder)))
    try:
        for make, origin in () if copy else links:
            with contextlib.suppress(OSError):
                make(origin, temporary)
                how = "linked"
                break
        else:
            shutil.copy2(source, temporary)
            how = "copied"
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return how


@dataclass(frozen=True)
class DataRoot:
    """The data root and the lists that a preparation makes."""

    folder: FilePath
    lists: FilePath  # the folder of train.txt and val.txt
    copy: bool = False  # whether images are copied instead of linked
    workers: int | None = None  # number of processes; None is all cores

    @classmethod
    def of(cls, options: argparse.Namespace, name: str) -> "DataRoot":
        """Return what the options of `add_shared_options` say for the dataset `name`."""
        lists = options.lists or f"lists/{name}"
        return cls(options.out, lists, options.copy, options.workers)

    def open(self, *folders: str) -> None:
        """Open the folders, which are relative to the root, and that of the lists."""
        for folder in folders:
            open_folder(Path(self.folder, folder), "--out")
        open_folder(self.lists, "--lists")

    def list_file(self, part: str) -> str:
        """Return the path of the list of a part ("train" or "val")."""
        return os.path.join(self.lists, f"{part}.txt")

    @property
    def places(self) -> dict[str, str]:
        """The settings that say where a dataset is: its root and its lists."""
        return {
            "data_root": str(self.folder),
            "train_list": self.list_file("train"),
            "val_list": self.list_file("val"),
        }

    def write_list(self, part: str, entries: Iterable[Entry], expected: int | None = None) -> str:
        """Write the list of a part ("train" or "val"), as `util.data.lists.read_entries` reads it.

        An existing list of other content is kept as PATH.bak.

        Returns:
            A line with the number of entries, compared with that of the published list,
            `expected`. It names the list that was kept.

        Raises:
            UserError: No list can hold one of the names.
        """
        entries = list(entries)
        check_names(entries)
        path = Path(self.list_file(part))
        # A tab separates names that hold blanks.
        lines = [("\t" if " " in "".join(entry) else " ").join(entry) + "\n" for entry in entries]
        # surrogateescape, because a file name may be any bytes.
        data = "".join(lines).encode("utf-8", errors="surrogateescape")
        before = path.read_bytes() if path.exists() else data
        if before != data:
            write_atomically(f"{path}.bak", before)
        write_atomically(path, data)
        kept = f"; the former list is {path}.bak" if before != data else ""
        return count_line(str(path), len(entries), expected) + kept

    def next_commands(self, dataset: str) -> list[str]:
        """Return the lines of the commands that follow: the check of the data, and the training.

        They set the places for which the configuration of the dataset names others.
        """
        file = f"config/{dataset}/{dataset}_split0_resnet50.yaml"
        chosen: list[str] = []
        if not (ROOT / file).is_file():
            # So do the scripts with a dataset that has only a description.
            file, chosen = "config/base/resnet50.yaml", ["data_set", dataset, "split", "0"]
        values = given_values(str(ROOT / file), chosen)
        settings: list[str] = []
        for key, place in self.places.items():
            known = os.path.realpath(str(values[key].value)) if key in values else None
            if known != os.path.realpath(place):
                settings += [key, place]
        options = ["--opts", *chosen, *settings] if chosen or settings else []
        verify = ["python", "-m", "util.verify", "--config", file, *options]
        train = ["sh", "train.sh", "split0", dataset, "1", *settings]
        return [f"next: {shlex.join(verify)}", f"then: {shlex.join(train)}"]


def check_names(entries: Iterable[Entry]) -> None:
    """Raise a UserError for a name of an image or a mask that no list can hold."""
    for name in (name for entry in entries for name in entry):
        if name != name.strip() or "\t" in name or "\n" in name:
            raise UserError(
                f"{name!r}: a list cannot hold a name with a tab, a line break or blanks at an end"
            )


def count_line(name: str, found: int, expected: int | None) -> str:
    """Return "NAME: FOUND", with a warning if another number was expected."""
    complete = expected is None or found == expected
    warning = "" if complete else f" (warning: {expected:,} expected; is the dataset complete?)"
    return f"{name}: {found:,}{warning}"
