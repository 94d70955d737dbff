"""The journal of a test: what it has counted so far, kept beside its result until that is complete.

Every process appends to a file of its own, a line per unit of episodes. A later start of the same
test reads the files of all processes and counts only what is left, on any number of processes.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, NonNegativeInt

from util.evaluation.counts import Counts, UnitCounts
from util.runtime.errors import UserError


class _Line(BaseModel):
    """A line: positions and records of episodes and, of each run, where its state is not 0."""

    episodes: list[NonNegativeInt]
    records: list[list[int]]
    runs: dict[NonNegativeInt, tuple[list[NonNegativeInt], list[int]]]


def digest(identity: Any) -> str:
    """Return twelve hexadecimal digits of the SHA-256 of plain values."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Journal:
    """The journal files of one test.

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
                unit = _parsed(line, counts)
                # Two tests that ran at the same time have both counted it.
                if unit is not None and not counts.records[unit.positions].any():
                    counts.add(unit)

    @contextmanager
    def writing(self, rank: int) -> Iterator[Callable[[UnitCounts], None]]:
        """Give a function that appends a unit to the file of a process at once.

        Raises:
            UserError: The file cannot be written.
        """
        path = self.folder / f"{self.name}-{rank}.jsonl"
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+b", buffering=0)  # noqa: SIM115

        def append(unit: UnitCounts) -> None:
            with _explained(path):
                file.write(_line(unit))

        with file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # The process was killed while it wrote a line.
                    file.write(b"\n")
            yield append

    def remove(self) -> None:
        """Remove the files, once the result holds what they hold."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.name}-*.jsonl"))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def _line(unit: UnitCounts) -> bytes:
    runs = {}
    for run, state in unit.states.items():
        (at,) = np.nonzero(state)
        runs[run] = (at.tolist(), state[at].tolist())
    line = _Line(episodes=unit.positions, records=unit.records.tolist(), runs=runs)
    return line.model_dump_json().encode() + b"\n"


def _parsed(text: bytes, counts: Counts) -> UnitCounts | None:
    """Return the unit of a line, or None if the line does not hold a whole one of this test."""
    try:
        line = _Line.model_validate_json(text)
        records = np.array(line.records, np.int64)
        if records.shape != counts.records[line.episodes].shape:
            return None
        states = {}
        for run, (at, by) in line.runs.items():
            states[run] = np.zeros_like(counts.states[run])
            states[run][at] = by
    except (ValueError, IndexError, OverflowError):  # pydantic's ValidationError is a ValueError.
        return None
    return UnitCounts(line.episodes, records, states)
