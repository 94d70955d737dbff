"""The configuration of the user's own dataset: its description, and a file per fold."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from util.config import given_values
from util.data.folds import SEEN, count_folds
from util.preparation.shared import DataRoot
from util.runtime.errors import UserError
from util.runtime.files import ROOT, write_atomically
from util.runtime.machine import require_writable

MANY_CLASSES = 8  # From here on there are four folds, as in PASCAL-5^i and COCO-20^i.


def require_own_place(name: str, out: str, command: str = "custom") -> None:
    """Check that `prepare_COMMAND` may write the dataset `name` with the data root `out`.

    Raises:
        UserError: A dataset of this name exists that the command did not prepare, the configuration
            cannot be written, or `out` is the data root of another dataset, whose masks would be
            replaced.
    """
    description, folder = _places(name)
    if description.is_file():
        place = description
        taken = not place.read_text("utf-8", "replace").startswith(_header(command))
    else:
        place, taken = folder, any(folder.glob("*.yaml"))
    if taken:
        raise UserError(f"--name {name}: {place} is not from this command; give another name")
    for place in (description.parent, folder if folder.exists() else folder.parent):
        require_writable(place, "it gets the configuration of the dataset")
    for other in sorted({*description.parent.glob("*.yaml")} - {description}):
        root = None
        # A faulty description of another dataset is reported where that one is used.
        with contextlib.suppress(UserError):
            root = _described(other, "data_root")
        if root and (ROOT / str(root)).resolve() == Path(out).resolve():
            raise UserError(
                f"--out {out}: is the data root of the dataset {other.stem}, whose masks would be "
                "replaced; give another folder"
            )


def require_same_classes(name: str, class_names: Sequence[str]) -> None:
    """Check that the classes of an earlier preparation of the dataset are the first of `class_names`.

    Raises:
        UserError: They are others, so the masks that are there would change their meaning.
    """
    description, _ = _places(name)
    names = (description.is_file() and _described(description, "class_names")) or []
    if names != [*class_names][: len(names)]:
        raise UserError(
            f"--name {name}: its classes are {', '.join(names)}, and those given now are "
            f"{', '.join(class_names) or 'without names'}; give another name, or take class_names out "
            f"of {description}"
        )


def _described(description: Path, key: str) -> Any:
    """Return a setting of the description of a dataset; None where it is not given."""
    setting = given_values(description, ["data_set", description.stem]).get(key)
    return setting and setting.value


def _header(command: str) -> str:
    return f"# Written by `python -m util.prepare_{command}`"


def divide(num_classes: int, wanted: int | str | None = None) -> dict[str, Any]:
    """Return the settings `folds` and `num_folds` that divide the classes into `wanted` folds.

    Each fold holds a block of neighbouring classes out; the first blocks have one class more where
    the number does not divide. None is 4 folds from eight classes on, 2 from two on, else SEEN.

    Raises:
        UserError: So many folds are not possible.
    """
    if wanted is None:
        wanted = 4 if num_classes >= MANY_CLASSES else 2 if num_classes >= 2 else SEEN
    if isinstance(wanted, str):
        return {"folds": SEEN}
    if not 2 <= wanted <= num_classes:
        choice = f"2..{num_classes} or {SEEN}" if num_classes > 1 else SEEN
        plural = "es" if num_classes > 1 else ""
        raise UserError(f"--folds {wanted}: for {num_classes} class{plural} it has to be {choice}")
    if num_classes % wanted == 0:
        return {"folds": "contiguous", "num_folds": wanted}
    blocks = np.array_split(np.arange(1, num_classes + 1), wanted)
    return {"folds": [block.tolist() for block in blocks]}


def write_config(
    name: str,
    root: DataRoot,
    data: Mapping[str, Any],
    notes: Mapping[str, str],
    command: str = "custom",
) -> None:
    """Write the YAML files of the dataset `name` in `root`.

    The settings are `data`; `notes` are comments on some.

    The description is written each time; the others, which the user may have edited, only where
    they are missing.
    """
    description, folder = _places(name)
    comments = {key: f"  # {note}" for key, note in notes.items()}
    settings = {key: _path_in_config(place) for key, place in root.places.items()} | {**data}
    lines = [f"  {key}: {_flow(value)}{comments.get(key, '')}" for key, value in settings.items()]
    header = f"{_header(command)}, again by each run: settings go into config/{name}/{name}.yaml."
    write_atomically(description, "\n".join([header, "Data:", *lines, ""]))
    files = {
        name: f"{_header(command)}. Your settings go here, over those of PASCAL-5^i.\n"
        f"_base_: ../base/pascal.yaml\nTrain:\n  data_set: {_flow(name)}\n"
    }
    for split in range(count_folds(data["folds"], data.get("num_folds", 1))):
        text = f"_base_: [../base/resnet50.yaml, {name}.yaml]\nTrain: {{split: {split}}}\n"
        files[f"{name}_split{split}_resnet50"] = text
    for stem, text in files.items():
        path = folder / f"{stem}.yaml"
        if not path.exists():
            write_atomically(path, text)


def own_settings(name: str) -> dict[str, Any]:
    """Return the settings of config/NAME/NAME.yaml, which the user may have edited, if it exists."""
    path = _places(name)[1] / f"{name}.yaml"
    return {key: one.value for key, one in given_values(path).items()} if path.is_file() else {}


def _path_in_config(path: str) -> str:
    """Return a path as the other descriptions give it: relative to the repository if within."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(ROOT) if absolute.is_relative_to(ROOT) else absolute)


def _places(name: str) -> tuple[Path, Path]:
    """Return the description of a dataset and the folder of its other files."""
    return ROOT / "config" / "datasets" / f"{name}.yaml", ROOT / "config" / name


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").strip()
