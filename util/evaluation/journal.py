"""What a test has counted so far, kept beside its result until that is complete.

Every process appends to a file of its own, a line per unit of episodes. Whoever tests the same reads
the files of all of them and goes on with what is left, on any number of processes.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from util.evaluation.counts import Counts, UnitCounts
from util.runtime.errors import UserError


class Journal:
    """The files of one test.

    Args:
        folder: where they are.
        identity: plain values that tell this test from any other.
    """

    def __init__(self, folder: Path, identity: Any):
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.folder, self.name = Path(folder), f"journal-{digest[:12]}"

    def read(self, counts: Counts) -> None:
        """Add what was counted to `counts`, but for lines that were not written to their end."""
        for path in self._files():
            for line in path.read_bytes().splitlines():
                unit = _parsed(line, counts)
                # Two tests that ran at once have both counted it.
                if unit is not None and not counts.records[unit.positions].any():
                    counts.add(unit)

    @contextmanager
    def writing(self, rank: int) -> Iterator[Callable[[UnitCounts], None]]:
        """A function that appends a unit to the file of a process, and flushes it.

        Raises:
            UserError: the file cannot be written.
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
                if file.read(1) != b"\n":  # killed while it wrote a line
                    file.write(b"\n")
            yield append

    def remove(self) -> None:
        """Remove the files: what they hold is in the result."""
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
        runs[run] = [at.tolist(), state[at].tolist()]
    content = {"episodes": unit.positions, "records": unit.records.tolist(), "runs": runs}
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def _parsed(line: bytes, counts: Counts) -> UnitCounts | None:
    """The unit of a line; None if it is no whole one."""
    try:
        content = json.loads(line)
        states = {}
        for run, (at, by) in content["runs"].items():
            states[int(run)] = np.zeros_like(counts.states[int(run)])
            states[int(run)][at] = by
        records = np.array(content["records"], np.int64)
        return UnitCounts(content["episodes"], records, states)
    except ValueError:
        return None
