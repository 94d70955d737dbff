"""What a check found: rows of ok, warning or error, each with its remedy."""

from collections.abc import Iterable
from typing import NamedTuple

OK, WARNING, ERROR = "ok", "warning", "error"


class Row(NamedTuple):
    """One check.

    Attributes:
        status: OK, WARNING or ERROR.
        subject: What was checked.
        found: The result in one line.
        details: A line for each single problem.
        remedy: The command or setting that solves it.
    """

    status: str
    subject: str
    found: str
    details: tuple[str, ...] = ()
    remedy: str = ""


def table(rows: Iterable[Row], shown: int) -> str:
    """Return rows as text, with at most `shown` details each (0: all), and a last line that counts."""
    rows = list(rows)
    width = max(len(row.subject) for row in rows)
    indent = " " * (len(WARNING) + width + 4)
    lines = []
    for row in rows:
        lines.append(f"{row.status:{len(WARNING)}}  {row.subject:{width}}  {row.found}")
        count = len(row.details)
        kept = row.details[: shown or count]
        lines += [f"{indent}- {detail}" for detail in kept]
        if len(kept) < count:
            lines.append(f"{indent}- and {count - len(kept):,} more (--show 0 names all)")
        if row.remedy:
            lines.append(f"{indent}remedy: {row.remedy}")
    counts = {status: sum(row.status == status for row in rows) for status in (ERROR, WARNING)}
    numbers = (f"{n or 'no'} {status}{'s' * (n != 1)}" for status, n in counts.items())
    return "\n".join([*lines, ", ".join(numbers)])
