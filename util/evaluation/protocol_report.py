"""The report of a test: its place, plain values for the JSON file, and the same as markdown."""

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from util.config import Config
from util.data.draws import DrawnRun
from util.evaluation.evaluator import Evaluation
from util.evaluation.journal import digest
from util.evaluation.metrics import SCORES, mean_interval, summarise
from util.evaluation.prior_baseline import BASELINES, PriorBaselines, Threshold
from util.evaluation.published_results import PUBLISHED
from util.runtime.machine import environment_line
from util.runtime.tables import markdown_table

SPREAD = ("mean", "std", "±95%")  # what `mean_interval` gives
# What the published results were tested with, beside backbone and shot: of all datasets, of each.
_PUBLISHED_SETTINGS = {
    "num_folds": 4,
    "min_pixels": 2048,
    "fold_list": None,
    "ann_type": "mask",
    "ensemble": True,
    "ori_resize": True,
    "resized_val": True,
}
_PUBLISHED_BY_DATASET = {
    "pascal": {"effective_folds": "contiguous", "val_size": 473},
    "coco": {"effective_folds": "interleaved", "val_size": 633},
}
# What the scores depend on beside what `settings_of` names itself.
_SETTINGS = (
    *("ori_resize", "resized_val", "workers", "amp", "backbone_dtype", "baselines"),
    *("ann_type", "ensemble", "scale_to_trained_shot"),
    *("low_fea", "kshot_trans_dim", "kshot_order"),
)
# Settings that are named where they are not these: reports of earlier versions have none of them.
_USUAL = {"prior": "max", "base_learner": "pspnet"}
_LEGEND = (
    "In %. `mIoU`, `FBIoU` and `pIoU` (its foreground part) are those of the final prediction, `_m` "
    "of the meta learner, `_b` of the base learner."
)
_SPREAD_LEGEND = (
    " ±95% is the interval of the mean over the runs: how far other drawn episodes would move it."
)


def settings_of(cfg: Config, weight: str, runs: list[DrawnRun]) -> dict[str, Any]:
    """Return what the scores depend on, as plain values."""
    return {
        "weight": weight,
        "dataset": cfg.data_set,
        "data_root": cfg.data_root,
        "split": cfg.split,
        "folds": cfg.effective_folds,
        "fold_count": cfg.fold_count,
        "fold_list": cfg.fold_list,
        "shot": cfg.shot,
        "backbone": cfg.backbone,
        "size": cfg.val_size,
        "episodes": len(runs[0].draws),
        "seeds": [run.seed for run in runs],
        **{key: getattr(cfg, key) for key in _SETTINGS},
        **{key: getattr(cfg, key) for key, usual in _USUAL.items() if getattr(cfg, key) != usual},
    }


def variant_name(cfg: Config) -> str:
    """Return the part of a test's name that says how it differs from the plain test: "-bbox", …"""
    words: list[str] = [cfg.ann_type] if cfg.ann_type != "mask" else []
    words += ["meta"] if not cfg.ensemble else []
    words += ["unscaled"] if not cfg.scale_to_trained_shot else []
    words += [f"list-{_file_word(cfg.fold_list)}"] if cfg.fold_list else []
    return "".join(f"-{word}" for word in words)


def result_path(folder: Path, name: str, identity: dict[str, Any]) -> Path:
    """Return the JSON file of a test's report.

    Args:
        folder: The folder of results.
        name: The name of the test, which tests that differ may share.
        identity: Plain values that tell this test from any other, a part of its report.

    Returns:
        test-NAME.json or, where another test has taken this name, test-NAME-DIGEST.json.
    """
    plain = folder / f"test-{name}.json"
    own = folder / f"test-{name}-{digest(identity)[:6]}.json"
    taken = plain.exists() and read_report(plain, identity) is None
    return own if taken or own.exists() else plain


def read_report(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the report in a file, or None if it is not a whole one of the test of this identity."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return report if identity.items() <= report.items() else None
    except (OSError, ValueError, AttributeError):
        return None


def _file_word(path: str) -> str:
    """Return the stem of a path without characters that mean something to a shell or a glob."""
    return re.sub(r"[^\w.-]+", "_", PurePath(path).stem)


def published_miou(cfg: Config) -> float | None:
    """Return the paper's mIoU of this fold, in percent; None where the protocol is not the paper's."""
    result = PUBLISHED.get((cfg.data_set, cfg.backbone, cfg.shot))
    if result is None:
        return None
    published = _PUBLISHED_SETTINGS | _USUAL | _PUBLISHED_BY_DATASET[cfg.data_set]
    if any(getattr(cfg, key) != value for key, value in published.items()):
        return None
    return result.folds[cfg.split]


def build_report(
    settings: dict[str, Any],
    trained_shot: int,
    notes: Sequence[str],
    evaluation: Evaluation,
    threshold: Threshold | None,
    published: float | None,
    processes: int,
) -> dict[str, Any]:
    """Return the report of a test as plain values.

    Args:
        settings: What `settings_of` returns.
        trained_shot: The number of supports that the weights were trained with.
        notes: Sentences on the weights. Weights that need one are not the paper's.
        evaluation: The counts.
        threshold: The threshold of the prior, where baselines were counted.
        published: What `published_miou` returns.
        processes: The number of processes.
    """
    runs = []
    for seed, counts in zip(settings["seeds"], evaluation.runs, strict=True):
        run = {"seed": seed, **counts.metrics.results()}
        if isinstance(counts.prior, PriorBaselines):
            run["baselines"] = counts.prior.results()
        runs.append(run)
    work = evaluation.work
    report: dict[str, Any] = {
        "settings": settings,
        "trained_shot": trained_shot,
        "notes": list(notes),
        "runs": runs,
        **summarise(runs),
        "published_mIoU_percent": None if notes else published,
        "work": {
            "processes": processes,
            **work._asdict(),
            "episodes_per_s": work.episodes / work.seconds if work.seconds else None,
        },
    }
    if threshold is not None:
        report["prior_threshold"] = threshold.describe(settings.get("base_learner"))
    return report


def report_text(report: dict[str, Any], class_names: list[str] | None) -> str:
    """Return a report, which may have been read from its file, as markdown."""
    runs = report["runs"]
    seeds = [str(run["seed"]) for run in runs]
    scores = [score for score in SCORES if score in runs[0]]
    rows = _with_spread(seeds, [[run[score] for score in scores] for run in runs])
    if report["published_mIoU_percent"] is not None:
        published = f"{report['published_mIoU_percent']:.1f}"
        rows.append(["published", published, *[""] * (len(scores) - 1)])
    # JSON turns the ids of the classes into strings.
    ious = [{int(key): iou for key, iou in run["class_iou"].items()} for run in runs]
    classes = []
    for class_id in ious[0]:
        values = [run[class_id] for run in ious]
        name = class_names[class_id - 1] if class_names else str(class_id)
        spread = mean_interval(values) if len(values) > 1 else ()
        classes.append([name, *map(_percent, [*values, *spread])])
    parts = [
        _heading(report),
        markdown_table(["seed", *scores], rows),
        _LEGEND + (_SPREAD_LEGEND if len(runs) > 1 else "") + "\n",
        markdown_table(["class, IoU", *seeds, *(SPREAD if len(seeds) > 1 else ())], classes),
    ]
    if "baselines" in runs[0]:
        parts.append(_baselines(report))
    parts.append(_work(report["work"]))
    if "environment" in report:  # the reports of version 0.1.0 have none
        parts.append(environment_line(report["environment"]) + "\n")
    return "\n".join(parts)


def _heading(report: dict[str, Any]) -> str:
    s = report["settings"]
    lines = [
        f"# {s['backbone']}, fold {s['split']} of {s['dataset']}, {s['shot']}-shot\n",
        f"Weights: {s['weight']}. {len(s['seeds'])} × {s['episodes']} episodes at {s['size']} px.\n",
    ]
    lines += [f"{note}\n" for note in report["notes"]]
    if s["ann_type"] != "mask":
        lines.append(f"The supports are annotated by a {s['ann_type']}.\n")
    if not s["ensemble"] or "base_learner" in s:
        lines.append("Without the base learner: the final prediction is the meta learner's.\n")
    return "\n".join(lines)


def _baselines(report: dict[str, Any]) -> str:
    names = {"all_foreground": "everything foreground", "prior": report["prior_threshold"]}
    rows = [["HDMNet", _percent(report["mean"]["mIoU"])]]
    for key in BASELINES:
        mean, _, _ = mean_interval([run["baselines"][key] for run in report["runs"]])
        rows.append([names[key], _percent(mean)])
    return markdown_table(["method", "mIoU"], rows)


def _with_spread(names: list[str], values: list[list[float]]) -> list[list[str]]:
    """Return a row per run and, of several, their spread and the best by column, in percent."""
    rows: list[Sequence[float | None]] = [*values]
    if len(values) > 1:
        columns = list(zip(*values, strict=True))
        rows += zip(*(mean_interval(column) for column in columns), strict=True)
        rows.append([max(column) for column in columns])
        names = [*names, *SPREAD, "best"]
    return [[name, *map(_percent, row)] for name, row in zip(names, rows, strict=True)]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _work(work: dict[str, Any]) -> str:
    if not work["episodes"]:
        return "All episodes had been counted before.\n"
    return (
        f"{work['episodes']} episodes in {work['seconds']:.0f} s, {work['episodes_per_s']:.1f} a "
        f"second on {work['processes']} process{'es' * (work['processes'] > 1)}; features of "
        f"supports: {work['hits']} times still in memory, {work['misses']} times computed.\n"
    )
