"""Makes docs/settings.md from util/config/fields.py: `python -m tests.util.config.settings_page`.

Each setting is one line there, with its type, its default and a comment that says what it means.
"""

import re
from pathlib import Path

import yaml

from tests.paths import ROOT
from util.config.fields import SECTIONS

PAGE = ROOT / "docs" / "settings.md"
FIELD = re.compile(r"^    (\w+): (.+?)(?: = (.+?))?(?:  # (.+))?$", re.MULTILINE)
CLASS = re.compile(r'^class (\w+)\(BaseModel\):\n    """(.+?)"""\n(.*?)(?=^\S|\Z)', re.M | re.S)
WORDS = {
    "Count": "integer ≥ 1",
    "CountOrZero": "integer ≥ 0",
    "Positive": "number > 0",
    "NonNegative": "number ≥ 0",
    "Fraction": "0 to 1",
    "Angle": "degrees",
    "Name": "name of a folder",
    "Amp": "`off`, `auto`, `bf16`, `fp16`",
    "MixedImages": "`drop`, `background`, `ignore`",
    "Folds": "`contiguous`, `interleaved`, `seen`, lists of class ids, or `{train: …, val: …, test: …}`",
    "bool": "`True`, `False`",
    "str": "text",
    "list[str]": "list of texts",
}
HEAD = """# Settings

On this page you can look up every setting: its name, its values, its default and what it does.

Give a setting as `KEY VALUE` after a script, as in `sh train.sh split0 pascal 4 shot 5`, or after
`--opts` of a Python command. In a YAML file, it stands in its section, and a key without a value counts
as not given. [train.md](train.md#configure) says which value wins. The last column marks the settings of
the published configurations, which work unchanged.
"""
COLUMNS = "| setting | values | default | meaning | published |\n|-|-|-|-|-|\n"
FOOT = """
This page is made from [util/config/fields.py](../util/config/fields.py) by
`python -m tests.util.config.settings_page`, and a test compares the two.
"""


def type_words(annotation: str) -> str:
    """Return what values a setting takes, in words."""
    kind = annotation.removesuffix(" | None")
    if kind.startswith("Literal["):
        values = kind.removeprefix("Literal[").removesuffix("]").replace('"', "").split(", ")
        return ", ".join(f"`{value}`" for value in values)
    if bounds := re.match(r"Annotated\[int, Field\((.+)\)\]$", kind):
        return "integer " + bounds[1].replace("ge=", "≥ ").replace(", le=", " and ≤ ")
    return WORDS[kind]


def page_text() -> str:
    """Return the page as it has to be."""
    published = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text("utf-8"))
    known = {key for section in published.values() for key in section}
    source = (ROOT / "util" / "config" / "fields.py").read_text("utf-8")
    text = HEAD
    classes = {name: (about, body) for name, about, body in CLASS.findall(source)}
    for section, fields in SECTIONS.items():
        about, body = classes[fields.__name__]
        text += f"\n## {section}\n\n{about}\n\n{COLUMNS}"
        for key, annotation, default, meaning in FIELD.findall(body):
            shown = {"": "required", "None": "unset", '""': "unset"}.get(
                default, f"`{default.strip(chr(34))}`"
            )
            mark = "yes" if key in known else ""
            meaning = meaning or "as the one above"
            text += f"| `{key}` | {type_words(annotation)} | {shown} | {meaning} | {mark} |\n"
    return text + FOOT


if __name__ == "__main__":
    PAGE.write_text(page_text(), encoding="utf-8")
