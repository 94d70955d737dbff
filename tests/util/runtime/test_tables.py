import pytest

from util.runtime.errors import UserError
from util.runtime.tables import latex_table, markdown_table, write_or_print

HEADER = ["name", "mIoU"]
ROWS = [["a_b|c", "7.5"], ["50% & more", "12.25"]]


def test_markdown_is_aligned_and_escaped():
    assert markdown_table(HEADER, ROWS) == (
        "| name       |  mIoU |\n"
        "| ---------- | ----: |\n"
        "| a_b\\|c     |   7.5 |\n"
        "| 50% & more | 12.25 |\n"
    )


def test_latex_is_escaped():
    assert latex_table(HEADER, ROWS) == (
        "\\begin{tabular}{lr}\n\\toprule\nname & mIoU \\\\\n\\midrule\n"
        "a\\_b|c & 7.5 \\\\\n50\\% \\& more & 12.25 \\\\\n\\bottomrule\n\\end{tabular}\n"
    )
    assert r"\textbackslash{}" in latex_table(["\\"], []) and r"\{" in latex_table(["{"], [])


def test_tables_without_rows():
    assert markdown_table(["a"], []) == "| a   |\n| --- |\n"


def test_text_goes_to_the_console_or_into_a_file(tmp_path, capsys):
    write_or_print(None, "table\n")
    assert capsys.readouterr().out == "table\n"
    path = tmp_path / "new" / "table.md"
    write_or_print(path, "table\n")
    assert path.read_text() == "table\n" and str(path) in capsys.readouterr().out
    with pytest.raises(UserError, match="cannot be written: "):
        write_or_print(path / "below", "")
