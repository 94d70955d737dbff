"""What a check found: rows of ok, warning or error, each with what mends it."""

from collections.abc import Iterable
from typing import NamedTuple

OK, WARNING, ERROR = "ok", "warning", "error"


class Row(NamedTuple):
    """One check.

    status: OK, WARNING or ERROR; subject: what was checked; found: in a line; details: a line for
    each single problem; mend: the command or setting that mends it.
    """

    status: str
    subject: str
    found: str
    details: tuple[str, ...] = ()
    mend: str = ""


def table(rows: Iterable[Row], shown: int) -> str:
    """Rows as text, with at most `shown` details each (0: all), and a last line that counts."""
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
        if row.mend:
            lines.append(f"{indent}mend: {row.mend}")
    counts = {status: sum(row.status == status for row in rows) for status in (ERROR, WARNING)}
    lines.append(", ".join(f"{_number(count, status)}" for status, count in counts.items()))
    return "\n".join(lines)


def _number(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"
