"""Tables as markdown and LaTeX text."""

from collections.abc import Iterable, Sequence

from util.runtime.errors import UserError
from util.runtime.files import write_atomically


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = (0,)
) -> str:
    """Return a Markdown table that reads well as plain text too; numbers right, columns `left` left.

    header: strings; rows: lists of as many strings.
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
    header: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = (0,)
) -> str:
    """Return a LaTeX tabular with the rules of the package booktabs; arguments as of `markdown_table`."""
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


def write_or_print(path: str | None, text: str) -> None:
    """Write `text` to the file `path`, or print it if that is None. UserError if it cannot be."""
    if path is None:
        print(text, end="")
        return
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    print(f"written to {path}")
