"""The paper's table from the results of many tests, beside the paper's own numbers.

`python -m util.report exp` finds every test-*.json below the folder and prints a table per dataset:
a row per experiment and backbone, with the folds, their mean and FB-IoU for each number of supports. A
mean needs all folds. Tests of different settings (size, episodes, runs, …) never share a row; of two
tests for one cell the newer one is shown. Each test says how many folds there are. With --format html
the tables are part of a page with charts, pictures of episodes and the curves of the trainings.
"""

import argparse
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from util.config import Parser
from util.evaluation.metrics import BASE_SCORE, SCORES
from util.evaluation.published_results import PUBLISHED
from util.runtime.errors import UserError, exits_on_user_error
from util.runtime.tables import html_table, latex_table, markdown_table, write_or_print

SHOTS = (1, 5)
FOLDS = 4  # in the paper, and where neither the tests nor --folds give their number
MEANS = ("mean", "FB-IoU")
MISSING = "-"
PUBLISHED_NAME = "HDMNet (published)"
# {style: (function of a table, title of a dataset's table, note below)}
_STYLES = {
    "markdown": (markdown_table, "### {}\n\n", "{}"),
    "latex": (latex_table, "% {}\n", "% {}"),
    "html": (html_table, "<h2>{}</h2>\n", "<p>{}</p>"),
}
_LAYOUT = ("HDMNet", "result")  # .../DATASET/HDMNet/EXP/NET/result/test-*.json
_FOLD_OR_SHOT = re.compile(r"split\d+|\d+shot")
# Settings that tests in one row may differ in.
_NOT_PROTOCOL = (
    *("weight", "dataset", "split", "fold_count", "hsnet_list", "shot", "backbone", "seeds"),
    "baselines",
)


class Experiment(NamedTuple):
    """What the tests in one row share."""

    dataset: str
    backbone: str
    root: str  # the folder that the runs lie in
    name: str  # EXP of the run's folder without fold and shot
    protocol: tuple[tuple[str, str], ...]  # the other settings, sorted


class Result(NamedTuple):
    """The result of one test."""

    path: Path
    experiment: Experiment  # the row that it belongs in
    shot: int
    split: int
    fold_count: int  # 0 where the file does not say
    trained_shot: int
    mean: dict[str, float]  # {score: mean over the runs, within 0 and 1}
    comparable: bool  # whether the paper has a result of its protocol and training data


# {(shot, column): percent}, where a column is the index of a fold or one of MEANS.
Cells = dict[tuple[int, int | str], float]


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
        settings, mean = content["settings"], content["mean"]
        return Result(
            path,
            _experiment(path, settings),
            int(settings["shot"]),
            int(settings["split"]),
            int(settings.get("fold_count", 0)),
            int(content["trained_shot"]),
            {key: float(mean[key]) for key in SCORES if key != BASE_SCORE or key in mean},
            content.get("published_mIoU_percent") is not None,
        )
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
    if settings.get("hsnet_list"):
        # The lists of all folds share a row: * is in the place of the fold.
        fold = rf"(?<!\d){settings['split']}(?!\d)"
        protocol["hsnet_list"] = re.sub(fold, "*", Path(settings["hsnet_list"]).name)
    return Experiment(
        settings["dataset"],
        settings["backbone"],
        os.path.relpath(root),
        name,
        tuple(sorted(protocol.items())),
    )


def _row_names(experiments: Sequence[Experiment]) -> dict[Experiment, str]:
    """Return what tells each experiment from the others, nothing else."""
    several_roots = len({experiment.root for experiment in experiments}) > 1
    names = {}
    for experiment in experiments:
        others = [dict(other.protocol) for other in experiments if other[:-1] == experiment[:-1]]
        words = [experiment.root] if several_roots else []
        words += [experiment.name] if experiment.name else []
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
        style: "markdown", "latex" or "html".

    Raises:
        UserError: There is a result of a fold beyond.
    """
    newest, notes = _newest(results)
    names = _row_names(sorted({result.experiment for result in newest}))
    shots = sorted({*SHOTS, *(result.shot for result in newest)})
    table, title_line, note_line = _STYLES[style]
    plain = escape if style == "html" else str
    parts = []
    for dataset in sorted({experiment.dataset for experiment in names}):
        of_dataset = [result for result in newest if result.experiment.dataset == dataset]
        count = folds or _fold_count(of_dataset) or FOLDS
        rows: list[tuple[str, str, Cells]] = []
        for experiment, name in names.items():
            if of_row := [result for result in of_dataset if result.experiment == experiment]:
                cells = _cells(of_row, metric, folds or _fold_count(of_row) or count)
                rows.append((name, experiment.backbone, cells))
        if metric == "mIoU" and count == FOLDS:
            for backbone in sorted({r.experiment.backbone for r in of_dataset if r.comparable}):
                if published := _published(dataset, backbone):
                    rows.append((PUBLISHED_NAME, backbone, published))
        rows.sort(key=lambda row: row[1])
        columns: list[int | str] = [*range(count), *MEANS]
        header = ["experiment", "backbone"]
        for shot in shots:
            header += [f"{shot}-shot fold0", *(f"fold{k}" for k in range(1, count)), *MEANS]
        keys = [(shot, column) for shot in shots for column in columns]
        text = [
            [name, backbone, *(f"{cells[key]:.1f}" if key in cells else MISSING for key in keys)]
            for name, backbone, cells in rows
        ]
        title = title_line.format(plain(f"{dataset}, {metric} in %"))
        parts.append(title + table(header, text, left=(0, 1)))
    notes = ["A mean is shown where the results of all folds were found.", *notes]
    return "\n".join([*parts, *(note_line.format(plain(note)) for note in notes)]) + "\n"


def _newest(results: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """Return the newest result of each cell, and notes for readers of the table."""
    cells: dict[tuple[Experiment, int, int], Result] = {}
    notes = []
    for result in sorted(results, key=lambda result: result.path.stat().st_mtime):
        cell = (result.experiment, result.shot, result.split)
        if cell in cells:
            notes.append(f"Not shown: {cells[cell].path}, older than {result.path}.")
        cells[cell] = result
    notes += [
        f"{result.path}: {result.shot}-shot with weights of {result.trained_shot}-shot."
        for result in cells.values()
        if result.trained_shot != result.shot
    ]
    return list(cells.values()), notes


def _fold_count(results: Sequence[Result]) -> int:
    """Return the largest number of folds that the results give; 0 where none does."""
    return max(result.fold_count for result in results)


def _cells(results: Sequence[Result], metric: str, folds: int) -> Cells:
    """Return the cells of one experiment."""
    cells: Cells = {}
    means: dict[int, list[dict[str, float]]] = defaultdict(list)
    for result in results:
        if result.split >= folds:
            raise UserError(f"{result.path}: fold {result.split} of {folds}; give --folds")
        if metric in result.mean:
            cells[result.shot, result.split] = 100 * result.mean[metric]
            means[result.shot].append(result.mean)
    scores = (metric, "FBIoU_m" if metric.endswith("_m") else "FBIoU")
    for shot, of_shot in means.items():
        if len(of_shot) == folds:
            for column, score in zip(MEANS, scores, strict=True):
                cells[shot, column] = 100 * sum(mean[score] for mean in of_shot) / folds
    return cells


def _published(dataset: str, backbone: str) -> Cells:
    """Return the cells of the paper; none where it has no results."""
    cells: Cells = {}
    for shot in SHOTS:
        if result := PUBLISHED.get((dataset, backbone, shot)):
            miou_of_folds, cells[shot, MEANS[0]] = result
            cells |= {(shot, split): miou for split, miou in enumerate(miou_of_folds)}
    return cells


def _write_page(options: argparse.Namespace, results: Sequence[Result], tables: str) -> None:
    """Write the page to --out, else to report.html in the first folder that was given."""
    # Imported here, since it loads matplotlib.
    from util.evaluation.report_page import report_page

    paths = [Path(path) for path in options.paths]
    runs: list[Path] = []
    for path in paths:
        own = path.absolute().parent.parent / "scalars.jsonl"
        runs += sorted(path.rglob(own.name)) if path.is_dir() else [own] * own.exists()
    tests = sorted(result.path for result in _newest(results)[0])
    folder = paths[0] if paths[0].is_dir() else paths[0].parent
    text = report_page(tables, tests, list(dict.fromkeys(runs)))
    # A name may be any bytes.
    text = text.encode(errors="backslashreplace").decode()
    write_or_print(options.out or folder / "report.html", text)


@exits_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = Parser(description="The paper's table from the results of tests.")
    parser.add_argument("paths", nargs="+", metavar="DIR_OR_FILE", help="where test-*.json are")
    parser.add_argument("--format", choices=tuple(_STYLES), default="markdown")
    parser.add_argument("--metric", choices=SCORES, default="mIoU", help="(%(default)s)")
    parser.add_argument(
        "--folds", type=int, help=f"number of folds (what the tests say, else {FOLDS})"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="write there, not to the console; html: not to DIR/report.html",
    )
    options = parser.parse_args(arguments)
    if options.folds is not None and options.folds < 1:
        parser.error(f"argument --folds: {options.folds} is no number of folds")
    results = find_results(options.paths)
    tables = paper_tables(results, options.metric, options.folds, options.format)
    if options.format == "html":
        _write_page(options, results, tables)
    else:
        write_or_print(options.out, tables)


if __name__ == "__main__":
    main()
