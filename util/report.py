"""The paper's table from the results of many tests, beside the paper's own numbers.

`python -m util.report exp` finds every test-*.json below the folder and prints a table per dataset:
a row per experiment and backbone, with the folds, their mean and FB-IoU for each number of supports. A
mean needs all folds. Tests of different settings (size, episodes, runs, …) never share a row; of two
tests for one cell the newer one is shown. Each test says how many folds there are.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from util.config import Parser
from util.evaluation.metrics import BASE_SCORE, SCORES
from util.evaluation.published_results import PUBLISHED
from util.runtime.errors import UserError, exits_on_user_error
from util.runtime.tables import latex_table, markdown_table, write_or_print

SHOTS = (1, 5)
FOLDS = 4  # in the paper, and where neither the tests nor --folds give their number
MEANS = ("mean", "FB-IoU")
MISSING = "-"
PUBLISHED_NAME = "HDMNet (published)"
_LAYOUT = ("HDMNet", "result")  # .../DATASET/HDMNet/EXP/NET/result/test-*.json
_FOLD_OR_SHOT = re.compile(r"split\d+|\d+shot")
# Settings that tests in one row may differ in.
_NOT_PROTOCOL = (
    "weight",
    "dataset",
    "split",
    "fold_count",
    "fold_list",
    "shot",
    "backbone",
    "seeds",
    "baselines",
)


class Experiment(NamedTuple):
    """What the tests in one row share.

    Attributes:
        dataset: The name of the dataset.
        backbone: The name of the backbone.
        root: The folder that the runs lie in.
        name: EXP of the run's folder without fold and shot.
        protocol: The other settings as sorted pairs.
    """

    dataset: str
    backbone: str
    root: str
    name: str
    protocol: tuple[tuple[str, str], ...]


class Result(NamedTuple):
    """The result of one test.

    Attributes:
        path: The file.
        experiment: The row that it belongs in.
        shot: The number of supports.
        split: The index of the fold.
        fold_count: The number of folds, None where the file does not say.
        trained_shot: The number of supports that the weights were trained with.
        mean: {score: mean over the runs, within 0 and 1}.
    """

    path: Path
    experiment: Experiment
    shot: int
    split: int
    fold_count: int | None
    trained_shot: int
    mean: dict[str, float]


class Row(NamedTuple):
    """A row of a table, in percent.

    Attributes:
        name: The name of the experiment.
        backbone: The name of the backbone.
        cells: {(shot, column): score}, where a column is the index of a fold or one of MEANS.
    """

    name: str
    backbone: str
    cells: dict[tuple[int, int | str], float]


def find_results(paths: Iterable[str | Path]) -> list[Result]:
    """Read every test-*.json among the files and below the folders `paths`.

    Raises:
        UserError: A path does not exist, a folder holds no result, or a file is not one.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        found = sorted(path.rglob("test-*.json")) if path.is_dir() else [path]
        if not found:
            raise UserError(f"{path}: no test-*.json below it; test.sh writes them")
        files += found
    return [_read(path) for path in dict.fromkeys(files)]


def _read(path: Path) -> Result:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings = content["settings"]
        experiment = _experiment(path, settings)
        mean = {
            score: float(content["mean"][score])
            for score in SCORES
            if score != BASE_SCORE or score in content["mean"]
        }
        shot, split = int(settings["shot"]), int(settings["split"])
        count = settings.get("fold_count")
        count = None if count is None else int(count)
        return Result(path, experiment, shot, split, count, int(content["trained_shot"]), mean)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"{path} is not a result of test.sh: {reason}") from None


def _experiment(path: Path, settings: dict[str, Any]) -> Experiment:
    folder = path.absolute().parent
    root, name = folder, ""
    exp = folder.parent.parent
    if (exp.parent.name, folder.name) == _LAYOUT:
        root = exp.parents[2]
        name = "_".join(filter(None, _FOLD_OR_SHOT.sub("", exp.name).split("_")))
    protocol = {
        key: str(value)
        for key, value in settings.items()
        if value is not None and key not in _NOT_PROTOCOL
    }
    protocol["runs"] = str(len(settings["seeds"]))
    if settings.get("fold_list"):
        protocol["fold_list"] = _without_fold(settings["fold_list"], settings["split"])
    return Experiment(
        dataset=settings["dataset"],
        backbone=settings["backbone"],
        root=os.path.relpath(root),
        name=name,
        protocol=tuple(sorted(protocol.items())),
    )


def _without_fold(fold_list: str, split: int) -> str:
    """Return the name of a fold list with * for its fold: the lists of all folds share a row."""
    return re.sub(rf"(?<!\d){split}(?!\d)", "*", Path(fold_list).name)


def experiment_names(experiments: Sequence[Experiment]) -> dict[Experiment, str]:
    """Return the name of each experiment in the table: what tells it from the others, nothing else."""
    several_roots = len({experiment.root for experiment in experiments}) > 1
    alike = defaultdict(list)
    for experiment in experiments:
        alike[experiment[:-1]].append(dict(experiment.protocol))
    names = {}
    for experiment in experiments:
        words = [experiment.root] if several_roots else []
        words += [experiment.name] if experiment.name else []
        others = alike[experiment[:-1]]
        settings = [
            f"{key} {value}"
            for key, value in experiment.protocol
            if any(other.get(key) != value for other in others)
        ]
        names[experiment] = ", ".join([" ".join(words) or "HDMNet", *settings])
    return names


def paper_tables(
    results: Sequence[Result],
    metric: str = "mIoU",
    folds: int | None = None,
    style: str = "markdown",
) -> str:
    """Return the tables of all datasets as text.

    Args:
        results: The results of all tests.
        metric: One of SCORES.
        folds: The number of folds that a mean needs. None: what the results of a row say, else those
            of the dataset, else FOLDS.
        style: "markdown" or "latex".

    Raises:
        UserError: There is a result of a fold beyond.
    """
    newest, notes = _newest(results)
    shots = sorted({*SHOTS, *(result.shot for result in newest)})
    names = experiment_names(sorted({result.experiment for result in newest}))
    parts = []
    for dataset in sorted({experiment.dataset for experiment in names}):
        of_dataset = [result for result in newest if result.experiment.dataset == dataset]
        columns = folds or _fold_count(of_dataset, FOLDS)
        rows = []
        for experiment, name in names.items():
            of_row = [result for result in of_dataset if result.experiment == experiment]
            if of_row:
                rows.append(_row(name, of_row, metric, folds or _fold_count(of_row, columns)))
        if metric == "mIoU" and columns == FOLDS:
            rows += _published(dataset, {row.backbone for row in rows})
        rows.sort(key=lambda row: row.backbone)
        header, cells = _as_text(rows, shots, columns)
        title = f"{dataset}, {metric} in %"
        if style == "latex":
            parts.append(f"% {title}\n{latex_table(header, cells, left=(0, 1))}")
        else:
            parts.append(f"### {title}\n\n{markdown_table(header, cells, left=(0, 1))}")
    mark = "% " if style == "latex" else ""
    notes = ["A mean is shown where the results of all folds were found.", *notes]
    return "\n".join([*parts, *(f"{mark}{note}" for note in notes)]) + "\n"


def _newest(results: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """Return the newest result of each cell, and notes for readers of the table."""
    cells: dict[tuple[Experiment, int, int], Result] = {}
    notes = []
    for result in sorted(results, key=lambda result: result.path.stat().st_mtime):
        cell = (result.experiment, result.shot, result.split)
        if cell in cells:
            notes.append(f"Not shown: {cells[cell].path}, older than {result.path}.")
        cells[cell] = result
    for result in cells.values():
        if result.trained_shot != result.shot:
            notes.append(
                f"{result.path}: {result.shot}-shot with weights of {result.trained_shot}-shot."
            )
    return list(cells.values()), notes


def _fold_count(results: Sequence[Result], otherwise: int) -> int:
    """Return the largest number of folds that the results give, or else `otherwise`."""
    return max((result.fold_count for result in results if result.fold_count), default=otherwise)


def _row(name: str, results: Sequence[Result], metric: str, folds: int) -> Row:
    scores = (metric, "FBIoU_m" if metric.endswith("_m") else "FBIoU")
    cells: dict[tuple[int, int | str], float] = {}
    for result in results:
        if result.split >= folds:
            raise UserError(f"{result.path}: fold {result.split} of {folds}; give --folds")
        if metric in result.mean:
            cells[result.shot, result.split] = 100 * result.mean[metric]
    for shot in {shot for shot, _ in cells}:
        of_shot = [r.mean for r in results if r.shot == shot and metric in r.mean]
        if len(of_shot) == folds:
            for column, score in zip(MEANS, scores, strict=True):
                cells[shot, column] = 100 * sum(mean[score] for mean in of_shot) / folds
    return Row(name, results[0].experiment.backbone, cells)


def _published(dataset: str, backbones: Iterable[str]) -> list[Row]:
    rows = []
    for backbone in sorted(backbones):
        cells: dict[tuple[int, int | str], float] = {}
        for shot in SHOTS:
            if result := PUBLISHED.get((dataset, backbone, shot)):
                cells |= {(shot, split): value for split, value in enumerate(result.folds)}
                cells[shot, MEANS[0]] = result.mean
        if cells:
            rows.append(Row(PUBLISHED_NAME, backbone, cells))
    return rows


def _as_text(
    rows: Sequence[Row], shots: Sequence[int], folds: int
) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a table as text."""
    names = [f"fold{split}" for split in range(folds)] + [*MEANS]
    header = ["experiment", "backbone"]
    for shot in shots:
        header += [f"{shot}-shot {names[0]}", *names[1:]]
    columns = [(shot, column) for shot in shots for column in (*range(folds), *MEANS)]
    cells = [
        [f"{row.cells[key]:.1f}" if key in row.cells else MISSING for key in columns]
        for row in rows
    ]
    return header, [[row.name, row.backbone, *text] for row, text in zip(rows, cells, strict=True)]


@exits_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = Parser(description="The paper's table from the results of tests.")
    parser.add_argument("paths", nargs="+", metavar="DIR_OR_FILE", help="where test-*.json are")
    parser.add_argument("--format", choices=("markdown", "latex"), default="markdown")
    parser.add_argument("--metric", choices=SCORES, default="mIoU", help="(%(default)s)")
    parser.add_argument(
        "--folds", type=int, help=f"number of folds (what the tests say, else {FOLDS})"
    )
    parser.add_argument("--out", metavar="FILE", help="write there, not to the console")
    options = parser.parse_args(arguments)
    if options.folds is not None and options.folds < 1:
        parser.error(f"argument --folds: {options.folds} is no number of folds")
    results = find_results(options.paths)
    write_or_print(
        options.out, paper_tables(results, options.metric, options.folds, options.format)
    )


if __name__ == "__main__":
    main()
