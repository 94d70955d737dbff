"""Tables as markdown, LaTeX and HTML text."""

from collections.abc import Collection, Sequence
from html import escape
from pathlib import Path

from util.runtime.errors import UserError
from util.runtime.files import write_atomically


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)
) -> str:
    """Return a markdown table that reads well as plain text too.

    Args:
        header: The names of the columns.
        rows: The cells of each row.
        left: The columns that are aligned to the left; the others are to the right.
    """
    lines = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[column]) for row in lines)) for column in range(len(header))]
    rule = [
        "-" * width if column in left else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    lines.insert(1, rule)
    return "".join(
        "| "
        + " | ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |\n"
        for row in lines
    )


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def latex_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)
) -> str:
    """Return a LaTeX tabular with the rules of the package booktabs, of the same arguments."""
    columns = "".join("l" if column in left else "r" for column in range(len(header)))
    head, *body = [
        " & ".join("".join(_LATEX.get(c, c) for c in cell) for cell in row) + r" \\"
        for row in (header, *rows)
    ]
    lines = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def html_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)
) -> str:
    """Return an HTML table of the same arguments; cells at the left have the class `left`."""
    lines = []
    for number, row in enumerate((header, *rows)):
        tag = "td" if number else "th"
        cells = [
            f"<{tag}{' class=left' * (column in left)}>{escape(cell)}</{tag}>"
            for column, cell in enumerate(row)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>\n")
    return f'<div class="wide"><table>\n{"".join(lines)}</table></div>\n'


def write_or_print(path: str | Path | None, text: str) -> None:
    """Write a text to a file, or print it where `path` is None.

    Raises:
        UserError: The file cannot be written.
    """
    if path is None:
        print(text, end="")
        return
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    print(f"written to {path}")
