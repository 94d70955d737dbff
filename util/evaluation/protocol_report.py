"""The report of a test: its place, plain values for the JSON file, and the same as markdown."""

import json
import re
from pathlib import Path, PurePath
from typing import Any

from util.config import Config
from util.data.draws import DrawnRun
from util.evaluation.evaluator import Evaluation
from util.evaluation.journal import digest
from util.evaluation.metrics import SCORES, mean_interval, summarise
from util.evaluation.model import LoadedModel
from util.evaluation.prior_baseline import BASELINES, Threshold
from util.evaluation.published_results import PUBLISHED
from util.runtime.distributed import Processes
from util.runtime.machine import environment_line
from util.runtime.tables import markdown_table

# What `mean_interval` gives, as tables call it and as `summarise` does.
SPREAD = {"mean": "mean", "std": "std", "±95%": "ci95"}
# What the published results were tested with, beside backbone and shot: of all datasets, of each.
_PUBLISHED_SETTINGS = {
    **{"num_folds": 4, "min_pixels": 2048, "ann_type": "mask"},
    **{"ensemble": True, "ori_resize": True, "resized_val": True},
}
_PUBLISHED_BY_DATASET = {
    "pascal": {"effective_folds": "contiguous", "val_size": 473},
    "coco": {"effective_folds": "interleaved", "val_size": 633},
}
# What the scores depend on beside what `settings_of` names itself.
_SETTINGS = (
    *("data_root", "split", "fold_count", "shot", "backbone"),
    *("ori_resize", "resized_val", "workers", "amp", "backbone_dtype", "baselines"),
    *("ann_type", "ensemble", "scale_to_trained_shot"),
    *("low_fea", "kshot_trans_dim", "kshot_order"),
)
# Settings that are named where they are not these: reports of earlier versions have none of them.
_USUAL = {
    **{"prior": "max", "base_learner": "pspnet"},
    **{"mixed_images": "drop", "min_cells": 0, "absent_class": "zero"},
    **{"protocol": "hdmnet", "hsnet_list": None, "tf32": True},
}
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
        "folds": cfg.effective_folds,
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
    words += [cfg.protocol] if cfg.protocol != "hdmnet" else []
    if cfg.hsnet_list:
        # Without characters that mean something to a shell or a glob.
        words.append(re.sub(r"[^\w.-]+", "_", PurePath(cfg.hsnet_list).stem))
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


def published_miou(cfg: Config) -> float | None:
    """Return the paper's mIoU of this fold, in percent; None where the protocol is not the paper's."""
    key = cfg.data_set, cfg.backbone, cfg.shot
    if key not in PUBLISHED:
        return None
    protocol = _PUBLISHED_SETTINGS | _USUAL | _PUBLISHED_BY_DATASET[cfg.data_set]
    if any(getattr(cfg, name) != value for name, value in protocol.items()):
        return None
    miou_of_folds, _ = PUBLISHED[key]
    return miou_of_folds[cfg.split]


def build_report(
    cfg: Config,
    settings: dict[str, Any],
    loaded: LoadedModel,
    evaluation: Evaluation,
    threshold: Threshold | None,
    processes: Processes,
) -> dict[str, Any]:
    """Return the report of a test as plain values.

    Args:
        cfg: The settings of the test.
        settings: What `settings_of` returns for them.
        loaded: The model that was tested. Weights that need a note are not the paper's.
        evaluation: The scores.
        threshold: The threshold of the prior, where baselines were counted.
        processes: The processes that shared the test.
    """
    runs = []
    for seed, run in zip(settings["seeds"], evaluation.runs, strict=True):
        # JSON has strings for keys.
        ious = {str(class_id): iou for class_id, iou in run["class_iou"].items()}
        runs.append({"seed": seed, **run, "class_iou": ious})
    classes, names, work = runs[0]["class_iou"], cfg.class_names, evaluation.work
    report: dict[str, Any] = {
        "settings": settings,
        "trained_shot": loaded.shot,
        "notes": loaded.notes,
        "runs": runs,
        "class_names": {key: names[int(key) - 1] for key in classes} if names else {},
        **summarise(runs),
        "published_mIoU_percent": None if loaded.notes else published_miou(cfg),
        "work": {
            "processes": processes.world_size,
            **work._asdict(),
            "episodes_per_s": work.episodes / work.seconds if work.seconds else None,
        },
    }
    if threshold is not None:
        report["prior_threshold"] = threshold.describe(settings.get("base_learner"))
    return report


def report_text(report: dict[str, Any]) -> str:
    """Return a report, which may have been read from its file, as markdown."""
    s, runs, work = report["settings"], report["runs"], report["work"]
    parts = [
        f"# {s['backbone']}, fold {s['split']} of {s['dataset']}, {s['shot']}-shot\n",
        f"Weights: {s['weight']}. {len(runs)} × {s['episodes']} episodes at {s['size']} px.\n",
        *(f"{note}\n" for note in report["notes"]),
    ]
    if "protocol" in s:
        parts.append(
            f"Episodes as HSNet's loaders draw them, from {s.get('hsnet_list', 'the val list')}; not "
            f"compared with a run of HSNet's own code. Images have {s['size']} px, HSNet's have 400.\n"
        )
    if s["ann_type"] != "mask":
        parts.append(f"The supports are annotated by a {s['ann_type']}.\n")
    if not s["ensemble"] or "base_learner" in s:
        parts.append("Without the base learner: the final prediction is the meta learner's.\n")
    parts += [_score_table(report), _LEGEND + (_SPREAD_LEGEND if len(runs) > 1 else "") + "\n"]
    parts.append(_class_table(report))
    if "baselines" in runs[0]:
        names = {"all_foreground": "everything foreground", "prior": report["prior_threshold"]}
        rows = [["HDMNet", _percent(report["mean"]["mIoU"])]]
        for key in BASELINES:
            mean, _, _ = mean_interval([run["baselines"][key] for run in runs])
            rows.append([names[key], _percent(mean)])
        parts.append(markdown_table(["method", "mIoU"], rows))
    if work["episodes"]:
        processes = f"{work['processes']} process{'es' * (work['processes'] > 1)}"
        parts.append(
            f"{work['episodes']} episodes in {work['seconds']:.0f} s, {work['episodes_per_s']:.1f} a "
            f"second on {processes}; features of supports: {work['hits']} times still in memory, "
            f"{work['misses']} times computed.\n"
        )
    else:
        parts.append("All episodes had been counted before.\n")
    if "environment" in report:  # the reports of version 0.1.0 have none
        parts.append(environment_line(report["environment"]) + "\n")
    return "\n".join(parts)


def _score_table(report: dict[str, Any]) -> str:
    """Return a row per run and, of several, their spread and the best; and the paper's number."""
    rows = [(str(run["seed"]), run) for run in report["runs"]]
    if len(rows) > 1:
        rows += [(name, report[key]) for name, key in {**SPREAD, "best": "best"}.items()]
    scores = [score for score in SCORES if score in rows[0][1]]
    cells = [[name, *(_percent(values[score]) for score in scores)] for name, values in rows]
    if report["published_mIoU_percent"] is not None:
        published = f"{report['published_mIoU_percent']:.1f}"
        cells.append(["published", published, *[""] * (len(scores) - 1)])
    return markdown_table(["seed", *scores], cells)


def _class_table(report: dict[str, Any]) -> str:
    # The reports of versions before 1.0.0 have no names.
    runs, names = report["runs"], report.get("class_names", {})
    seeds, several = [str(run["seed"]) for run in runs], len(runs) > 1
    rows, absent = [], []
    for key in runs[0]["class_iou"]:
        values, name = [run["class_iou"][key] for run in runs], names.get(key, key)
        known = [value for value in values if value is not None]
        spread = (mean_interval(known) if known else [None] * len(SPREAD)) if several else ()
        rows.append([name, *map(_percent, [*values, *spread])])
        without = [seed for seed, value in zip(seeds, values, strict=True) if value is None]
        if without:
            absent.append(f"{name} (seed {', '.join(without)})" if known else name)
    table = markdown_table(["class, IoU", *seeds, *(SPREAD if several else ())], rows)
    return table + (
        f"\nNo episode asks for {', '.join(absent)}: left out of mIoU.\n" if absent else ""
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
