"""The journal of a test: what it has counted so far, kept beside its result until that is complete.

Every process appends to a file of its own, a line per unit of episodes. A later start of the same
test reads the files of all processes and counts only what is left, on any number of processes.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from util.evaluation.counts import Counts
from util.runtime.errors import UserError


def digest(identity: Any) -> str:
    """Return twelve hexadecimal digits of the SHA-256 of plain values."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Journal:
    """The journal files of one test.

    A line is a checksum and, as JSON, the positions of the unit's episodes, their `Counts.numbers`,
    and where its `Counts.sums` are not 0 and what they are there.

    Args:
        folder: The folder of the files.
        identity: Plain values that tell this test from any other.
    """

    def __init__(self, folder: Path, identity: Any):
        self.folder, self.name = Path(folder), f"journal-{digest(identity)}"

    def read(self, counts: Counts) -> None:
        """Add to `counts` what was counted; lines that are torn or of another form are left out."""
        for path in self._files():
            for line in path.read_bytes().splitlines():
                checksum, _, text = line.partition(b" ")
                if checksum != _checksum(text):
                    continue
                positions, numbers, at, values = json.loads(text)
                # Two tests that ran at the same time have both counted it.
                if not counts.numbers[positions].any():
                    counts.numbers[positions] = numbers
                    counts.sums.flat[at] += np.array(values, np.int64)

    @contextmanager
    def writing(self, rank: int) -> Iterator[Callable[[Sequence[int], Counts], None]]:
        """Give a function that appends a unit, its positions and its counts, at once.

        Args:
            rank: The process, which has a file of its own.

        Raises:
            UserError: The file cannot be written.
        """
        path = self.folder / f"{self.name}-{rank}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None

        def append(positions: Sequence[int], unit: Counts) -> None:
            at = np.flatnonzero(unit.sums)
            values = unit.sums.flat[at].tolist()
            text = json.dumps([positions, unit.numbers.tolist(), at.tolist(), values]).encode()
            file.write(_checksum(text) + b" " + text + b"\n")

        with file:
            file.write(b"\n")  # ends the line at which an earlier process was killed
            yield append

    def remove(self) -> None:
        """Remove the files, once the result holds what they hold."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.name}-*.jsonl"))


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)
