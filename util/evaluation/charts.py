"""Charts of trainings and tests: the curves of a run, and the IoU of each class.

The colours are those of Okabe and Ito, which stay apart under the common colour-vision deficiencies.
Lines differ by their dashes too, for prints in grey.
"""

import io
import json
import math
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from util.evaluation.metrics import mean_interval

_STYLES = (
    *({"color": "#000000"}, {"color": "#0072B2", "linestyle": "--"}),
    *({"color": "#D55E00", "linestyle": "-."}, {"color": "#009E73", "linestyle": ":"}),
    *({"color": "#CC79A7"}, {"color": "#56B4E9", "linestyle": "--"}),
)
_BAR_COLOUR, _LINE_COLOUR = "#56B4E9", "#D55E00"
_VALIDATED = {"mIoU": "final prediction", "mIoU_m": "meta learner", "mIoU_b": "base learner"}
_NO_LOSSES = {"gradient", "samples_per_s", "data_wait", "skipped", "rate", "peak_gb"}
_POINTS = 300  # of a curve; more are noise in print, and cost time
_FEW = 40  # of so few points, each is marked
_DPI = 120
_WIDTH, _PANEL, _BAR, _MARGIN = 7.0, 2.1, 0.24, 0.5  # in inches
_HIGHEST = 400.0  # in inches; matplotlib draws less than 2^16 pixels
_LETTERS = 40  # of a class's name


def training_curves(path: Path) -> Figure:
    """Draw the losses, the learning rate and the validation mIoU of the scalars.jsonl of a run.

    Where there are many values, a point is the mean of neighbours. What a run does not have has no
    panel.

    Raises:
        OSError: The file cannot be read.
    """
    train, val = _read_scalars(path).values()
    losses = {name: points for name, points in train.items() if name not in _NO_LOSSES}
    scores = {name: text for name, text in _VALIDATED.items() if name in val}
    percent = np.array([[1], [100]])  # times steps and values
    panels = {
        "loss (no unit)": {"total" if n == "loss" else n: points for n, points in losses.items()},
        "learning rate (no unit)": {"rate": train["rate"]} if "rate" in train else {},
        "validation mIoU (%)": {text: percent * val[name] for name, text in scores.items()},
    }
    panels = {label: lines for label, lines in panels.items() if lines}
    size = (_WIDTH, _MARGIN + _PANEL * len(panels))
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    name = "/".join(path.absolute().parts[-5:-1])
    figure.suptitle(f"Training of {name}", size=11, parse_math=False)
    rows: Any = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0] if panels else []
    for axes, (label, lines) in zip(rows, panels.items(), strict=True):
        for number, (text, points) in enumerate(lines.items()):
            few = {"marker": "o", "markersize": 3} if points.shape[1] < _FEW else {}
            axes.plot(*_thinned(points), label=text, **_STYLES[number % len(_STYLES)], **few)
        axes.set_ylabel(label)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(color="0.9")
        if len(lines) > 1:
            axes.legend(fontsize=8, loc="best")
        if axes is rows[-1]:
            axes.set_xlabel("iterations done (number)")
    figure.align_ylabels()
    return figure


def _read_scalars(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return {"train" or "val": {name: steps and values, (2, number)}}.

    Iterations that were trained again, after an interruption or a new start, replace the earlier ones.
    """
    found: Any = {"train": defaultdict(list), "val": defaultdict(list)}
    first = dict.fromkeys(found, math.inf)  # the step of the first line of those read so far
    for line in reversed(path.read_bytes().splitlines()):
        try:
            row = json.loads(line)
            step = row.pop("step")
            kind = next(iter(row)).partition("/")[0]
            if step >= min(first["train"], first[kind]):
                continue
            values = {name.partition("/")[2]: float(value) for name, value in row.items()}
        except (ValueError, TypeError, KeyError, AttributeError, StopIteration):
            continue  # It was killed while it wrote the line.
        first[kind] = step
        for name, value in values.items():
            found[kind][name].append((step, value))
    return {
        kind: {name: np.array(points[::-1]).T for name, points in named.items()}
        for kind, named in found.items()
    }


def _thinned(points: np.ndarray) -> np.ndarray:
    """Return points (2, n) as at most _POINTS, each the mean of neighbours."""
    parts = np.array_split(points, min(_POINTS, points.shape[1]), axis=1)
    return np.stack([part.mean(axis=1) for part in parts], axis=1)


def class_bars(report: Mapping[str, Any]) -> Figure:
    """Draw the IoU of each class of a test as bars, and mIoU as a line.

    Bars are the means over the runs; several runs have whiskers, the 95 % interval of the mean.

    Args:
        report: What `build_report` returns, which may have been read from its file.
    """
    s, runs = report["settings"], report["runs"]
    # In the order of the table.
    ious = {
        key: [run["class_iou"][key] for run in runs]
        for key in (runs[0]["class_iou"] if runs else ())
    }
    known_names = report.get("class_names", {})  # none in the reports before version 1.0.0
    names = [known_names.get(key, f"class {key}") for key in ious]
    names = [name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…" for name in names]
    size = (_WIDTH, min(3 * _MARGIN + _BAR * len(names), _HIGHEST))
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    title = f"IoU per class: {s['backbone']}, fold {s['split']} of {s['dataset']}, {s['shot']}-shot"
    figure.suptitle(title, size=11, parse_math=False)
    for row, values in enumerate(ious.values()):
        known = [100 * value for value in values if value is not None]
        if not known:
            axes.text(1, row, "no episode", va="center", size=8)
            continue
        mean, _, half_width = mean_interval(known)
        axes.barh(row, mean, 0.7, color=_BAR_COLOUR, edgecolor="black", linewidth=0.5)
        if half_width is not None:
            axes.errorbar(mean, row, xerr=half_width, color="black", capsize=2, linewidth=1)
        axes.text(109, row, f"{mean:.1f}", va="center", ha="right", size=8)
    mean = 100 * report["mean"]["mIoU"]
    axes.axvline(mean, color=_LINE_COLOUR, linestyle="--", label=f"mIoU {mean:.1f} %")
    axes.set_yticks(range(len(names)), names, size=8, parse_math=False)
    axes.set(xlim=(0, 110), ylim=(max(len(names), 1) - 0.5, -0.5), xticks=range(0, 101, 20))
    count = f", mean and 95 % interval of {len(runs)} runs" if len(runs) > 1 else ""
    axes.set(xlabel=f"IoU (%){count}", ylabel="class")
    axes.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), frameon=False, borderpad=0)
    return figure


def as_png(figure: Figure) -> bytes:
    """Return a chart as a PNG file."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font does not have
        figure.savefig(file, format="png")
    return file.getvalue()
