"""The configuration of the user's own dataset: its folds, its description, a file a fold and net."""

from pathlib import Path

import numpy as np
import yaml
from pydantic import TypeAdapter, ValidationError

from util.config.fields import Name
from util.data.folds import SEEN, count_folds
from util.runtime.errors import UserError
from util.runtime.files import ROOT, write_atomically

MANY_CLASSES = 8  # from here on four folds, as PASCAL-5^i and COCO-20^i have
_HEADER = "# Written by `python -m util.prepare_custom`"


def check_name(name: str) -> None:
    """Raise UserError if `name` can be no dataset's name, or is that of one not prepared here."""
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise UserError(f"--name {name}: {error.errors()[0]['msg']}") from None
    description, folder = _description(name), _folder(name)
    if description.is_file():
        taken = not description.read_text("utf-8", "replace").startswith(_HEADER)
    else:
        taken = any(folder.glob("*.yaml"))
    if taken:
        place = description if description.is_file() else folder
        raise UserError(f"--name {name}: {place} is there and not from this command; another name")


def divide(num_classes: int, wanted: int | str | None = None) -> dict:
    """The settings `folds` and `num_folds` of a division into `wanted` folds.

    Each fold holds a block of neighbouring classes out, the first blocks being one class larger
    where the number does not divide. wanted: 2..num_classes, or SEEN; None is 4 from eight
    classes on, 2 from two on, and SEEN for one. Raises UserError for another number.
    """
    if wanted is None:
        wanted = 4 if num_classes >= MANY_CLASSES else 2 if num_classes >= 2 else SEEN
    if wanted == SEEN:
        return {"folds": SEEN}
    if not 2 <= wanted <= num_classes:
        choice = f"2..{num_classes} or {SEEN}" if num_classes > 1 else SEEN
        plural = "es" if num_classes > 1 else ""
        raise UserError(f"--folds {wanted}: for {num_classes} class{plural} it has to be {choice}")
    if num_classes % wanted == 0:
        return {"folds": "contiguous", "num_folds": wanted}
    blocks = np.array_split(np.arange(1, num_classes + 1), wanted)
    return {"folds": [block.tolist() for block in blocks]}


def write_config(name: str, data: dict) -> None:
    """Write the YAML files of the dataset `name`.

    data: the settings of its section Data, with `folds`. The description is written anew; the
    others, which the user may have edited, only where they are missing.
    """
    lines = [f"  {key}: {_flow(value)}" for key, value in data.items()]
    header = f"{_HEADER}, anew by each run: settings go into config/{name}/{name}.yaml."
    write_atomically(_description(name), "\n".join([header, "Data:", *lines, ""]))
    own = f"{_HEADER}. Settings of yours go here, over those of PASCAL-5^i."
    _write_new(
        _folder(name) / f"{name}.yaml",
        f"{own}\n_base_: ../base/pascal.yaml\nTrain:\n  data_set: {_flow(name)}\n",
    )
    bases = ROOT / "config" / "base"
    for net in sorted(path.stem for path in [*bases.glob("resnet*.yaml"), bases / "vgg.yaml"]):
        for split in range(count_folds(data["folds"], data.get("num_folds"))):
            _write_new(
                _folder(name) / f"{name}_split{split}_{net}.yaml",
                f"_base_: [../base/{net}.yaml, {name}.yaml]\nTrain: {{split: {split}}}\n",
            )


def path_in_config(path: str) -> str:
    """A path as the other descriptions give it: relative to the repository, if it is within."""
    path = Path(path).absolute()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _description(name: str) -> Path:
    return ROOT / "config" / "datasets" / f"{name}.yaml"


def _folder(name: str) -> Path:
    return ROOT / "config" / name


def _flow(value) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").strip()


def _write_new(path: Path, text: str) -> None:
    if not path.exists():
        write_atomically(path, text)
