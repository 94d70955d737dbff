"""The pages name files, headings, classes and functions that exist, and their examples run."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "initmodel" / "README.md",
    ROOT / "lists" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
CODE_BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[tuple[str, Path, str]]:
    """Return the text, the file and the heading of every relative link of a page."""
    found = []
    for text, target in LINK.findall(CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if "://" not in target and not target.startswith("mailto:"):
            path, _, heading = target.partition("#")
            found.append((text, (page.parent / path).resolve() if path else page, heading))
    return found


@cache
def headings(page: Path) -> set[str]:
    """Return the names by which links reach the headings of a page, as GitHub makes them."""
    text = CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@cache
def defined_names(file: Path) -> set[str]:
    """Return the classes, functions and constants of a module, and `Class.method`."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (part.name for part in node.body if isinstance(part, ast.FunctionDef))
            names.update(f"{node.name}.{method}" for method in methods)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    broken = [
        f"{text}: {file.name}#{heading}"
        for text, file, heading in links(page)
        if not file.exists() or (heading and heading not in headings(file))
    ]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_code_is_in_the_file_that_the_link_names(page):
    missing = [
        f"{text} in {file.name}"
        for text, file, _ in links(page)
        if file.suffix == ".py"
        and text.startswith("`")
        and text.strip("`") != file.name
        and text.strip("`") not in defined_names(file)
    ]
    assert not missing
