"""Reading the settings: YAML files and `--opts` in, one validated `Config` out.

A value comes from the first of these that gives one: `--opts`, the file, the files it names under
`_base_` (later ones first), config/base/NAME.yaml of its `backbone`, config/datasets/NAME.yaml of its
`data_set`, the default.
"""

import difflib
import os
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from util.config.fields import SECTION_NAMES, SECTION_OF, SECTIONS, Name
from util.config.schema import KEEPS_NO_VALUE, NO_VALUE, Config
from util.runtime.errors import UserError, in_plain_words
from util.runtime.files import ROOT, write_atomically

DATASETS = os.fspath(ROOT / "config" / "datasets")
BASES = os.fspath(ROOT / "config" / "base")  # a file per backbone, among others
BASE_KEY = "_base_"
OPTS = "--opts"
# Settings whose value in --opts is no YAML, so that `exp_name 2024` means the word "2024".
_TEXT = {
    key
    for key, field in Config.model_fields.items()
    if field.annotation in (str, str | None, Name | None)
}
_FOLDS = (
    "should be contiguous, interleaved or seen, a list of the held-out classes of each fold, or the "
    "classes of train, val and test"
)
_REPLACED = {"fold_list": "was replaced by the settings protocol hsnet and hsnet_list FILE"}


class Given(NamedTuple):
    """A value as the user gave it, and where: a file's path or `--opts`."""

    value: Any
    origin: str


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML whose mappings may not name a key twice (PyYAML would keep the last in silence)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                mark = key_node.start_mark
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key_node.value} occurs twice", problem_mark=mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _error(key: str, given: Given, text: str) -> UserError:
    shown = "''" if given.value == "" else given.value
    return UserError(f"{given.origin}: {key} = {shown}: {text}")


def _nearest(name: str, valid: Iterable[str]) -> str:
    by_lower = {candidate.lower(): candidate for candidate in valid}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""


def _unknown(key: str) -> str:
    """Return what to say of a key that is no setting."""
    return _REPLACED.get(key) or f"unknown key{_nearest(key, SECTION_OF)}"


def _read_yaml(path: str) -> dict[Any, Any]:
    try:
        with open(path, encoding="utf-8") as handle:
            content = yaml.load(handle, _UniqueKeyLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{where}: not valid YAML: {what}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not sections with keys")
    return content


def _read_sections(path: str, content: dict[Any, Any]) -> dict[str, Given]:
    """Return the keys of one file, flattened; keys without a value are left out."""
    values: dict[str, Given] = {}
    for section, entries in content.items():
        if str(section).lower() not in SECTION_NAMES:
            if section in SECTION_OF:
                hint = f"; put this key under {SECTION_OF[section]}:"
            else:
                hint = _nearest(str(section), SECTIONS) or f"; sections are {', '.join(SECTIONS)}"
            raise UserError(f"{path}: {section}: unknown section{hint}")
        if entries is None:
            continue
        if not isinstance(entries, dict):
            raise UserError(f"{path}: {section} = {entries}: a section holds KEY: VALUE lines")
        for key, value in entries.items():
            given = Given(value, path)
            if key not in SECTION_OF:
                raise _error(key, given, _unknown(str(key)))
            if value is None:
                continue
            if key in values and values[key].value != value:
                raise _error(key, given, f"another section of this file says {values[key].value}")
            values[key] = given
    return values


def _read_file(path: str, parents: tuple[str, ...] = ()) -> dict[str, Given]:
    """Return the keys of a file and of the files under its `_base_`; the file's own win."""
    identity = os.path.realpath(path)
    if identity in parents:
        raise UserError(f"{path}: {BASE_KEY} leads back to this file")
    content = _read_yaml(path)
    bases = content.pop(BASE_KEY, None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: {BASE_KEY} = {bases}: must be a list of files")
    values: dict[str, Given] = {}
    for base in bases:
        base_path = os.path.normpath(os.path.join(os.path.dirname(path), base))
        if not os.path.isfile(base_path):
            raise UserError(f"{path}: {BASE_KEY} = {base}: there is no file {base_path}")
        values = _over(values, _read_file(base_path, (*parents, identity)))
    return _over(values, _read_sections(path, content))


def _over(lower: dict[str, Given], upper: dict[str, Given]) -> dict[str, Given]:
    """Return the values of both, where the upper ones win over the lower ones.

    `backbone` and the published keys `layers` and `vgg` set the same, so the upper one ends the others.
    """
    if "backbone" in upper:
        ended = {"layers", "vgg"}
    else:
        ended = {"backbone"} if upper.keys() & {"layers", "vgg"} else set()
    return {key: value for key, value in lower.items() if key not in ended} | upper


def _read_opts(opts: list[str]) -> dict[str, Given]:
    """Turn words `KEY VALUE` and `KEY=VALUE` into values; a later one wins, an empty one is unset."""
    values: dict[str, Given] = {}
    words = iter(opts)
    for word in words:
        name, equals, after = word.partition("=")
        text = after if equals else next(words, None)
        if text is None:
            raise UserError(f"{OPTS}: {name}: the value is missing")
        section, dot, key = name.rpartition(".")
        if dot and section.lower() not in SECTION_NAMES:
            hint = _nearest(section, SECTIONS)
            raise UserError(f"{OPTS}: {name} = {text}: unknown section {section}{hint}")
        if key not in SECTION_OF:
            raise _error(name, Given(text, OPTS), _unknown(key))
        try:
            value = (text or None) if key in _TEXT else yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        if value is None:
            values.pop(key, None)
        else:
            values[key] = Given(value, OPTS)
    return values


def _with_backbone(values: dict[str, Given]) -> dict[str, Given]:
    """Put the settings that a backbone comes with below everything that is given."""
    name = str(values["backbone"].value) if "backbone" in values else ""
    path = os.path.join(BASES, f"{name}.yaml")
    if not re.fullmatch(r"\w+", name) or not os.path.isfile(path):
        return values
    return _over(_read_file(os.path.relpath(path)), values)


def _with_dataset(path: str, values: dict[str, Given]) -> dict[str, Given]:
    """Put the dataset's own description below everything else, and check that it is complete."""
    data_set = values.get("data_set")
    if data_set is None:
        raise UserError(f"{path}: data_set is not set; name the dataset under Train:")
    description = os.path.join(DATASETS, f"{data_set.value}.yaml")
    if os.path.isfile(description):
        values = _over(_read_file(os.path.relpath(description)), values)
    if "num_classes" not in values:
        known = [name.removesuffix(".yaml") for name in sorted(os.listdir(DATASETS))]
        near = _nearest(str(data_set.value), known) or "."
        text = (
            f"unknown dataset{near} A new one needs data_root, train_list, val_list and "
            f"num_classes in {os.path.relpath(description)}"
        )
        raise _error("data_set", data_set, text)
    return values


def _as_user_error(error: ValidationError, values: dict[str, Given]) -> UserError:
    """Return the error of the first wrong setting; in a combination, of a key given by `--opts`."""
    first = error.errors()[0]
    text = _FOLDS if first["loc"][:1] == ("folds",) else in_plain_words(first["msg"])
    given = [key for key in first.get("ctx", {}).get("keys") or first["loc"][:1] if key in values]
    by_opts = [key for key in given if values[key].origin == OPTS]
    key = (by_opts or given)[0]
    return _error(key, values[key], text)


def given_values(
    path: str | os.PathLike[str], opts: list[str] | tuple[str, ...] = ()
) -> dict[str, Given]:
    """Return the values that `load_config` validates, without those that are defaults."""
    path = os.fspath(path)
    given = _over(_read_file(path), _read_opts(list(opts)))
    return _with_dataset(path, _with_backbone(given))


def load_config(path: str | os.PathLike[str], opts: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML file and the words of `--opts`, and validate the whole.

    Args:
        path: The YAML file.
        opts: For instance ["shot", "5", "base_lr=1e-3", "Train.split", "1"]; values are YAML.

    Raises:
        UserError: Something is wrong; the message names file (or `--opts`), key and value.
    """
    values = given_values(path, opts)
    try:
        return Config(**{key: given.value for key, given in values.items()})
    except ValidationError as error:
        raise _as_user_error(error, values) from None


def dump_config(cfg: Config, path: str | os.PathLike[str]) -> None:
    """Write every setting of `cfg` to the YAML file `path`, which loads to an equal `Config`."""
    content: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for key, value in cfg.model_dump().items():
        # "none" wins over the dataset's description; an empty value would fall back to it.
        unset = value is None and key not in KEEPS_NO_VALUE
        content[SECTION_OF[key]][key] = NO_VALUE if unset else value
    write_atomically(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
