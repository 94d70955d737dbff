"""The report of a test: plain values for the JSON file, and the same as markdown."""

import re
from pathlib import PurePath
from typing import Any

from util.config import Config
from util.data.draws import DrawnRun
from util.evaluation.evaluator import Evaluation
from util.evaluation.metrics import SCORES, mean_interval, summarise
from util.evaluation.model import shot_note
from util.evaluation.prior_baseline import BASELINES, Threshold
from util.evaluation.published_results import PUBLISHED
from util.runtime.machine import environment_line
from util.runtime.tables import markdown_table

SPREAD = ("mean", "std", "±95%")  # of `mean_interval`
GENERALISED = ("mIoU_base", "mIoU_novel", "mIoU_both")
# What the published results were tested with, beside backbone and shot: of all datasets, of each.
_PUBLISHED_SETTINGS = {
    "num_folds": 4,
    "min_pixels": 2048,
    "fold_list": None,
    "ann_type": "mask",
    "ensemble": True,
    "generalised": False,
    "ori_resize": True,
    "resized_val": True,
}
_PUBLISHED_BY_DATASET = {
    "pascal": {"effective_folds": "contiguous", "val_size": 473},
    "coco": {"effective_folds": "interleaved", "val_size": 633},
}
_LEGEND = (
    "In %. `mIoU`, `FBIoU` and `pIoU` (its foreground part) are of the final prediction, `_m` of the "
    "meta learner, `mIoU_b` of the base learner."
)
_SPREAD_LEGEND = (
    " ±95% is the interval of the mean over the runs: what other drawn episodes would change."
)


def settings_of(cfg: Config, weight: str, runs: list[DrawnRun]) -> dict[str, Any]:
    """What the scores depend on, by the configuration and the drawn runs."""
    keys = (
        "ori_resize",
        "resized_val",
        "workers",
        "amp",
        "backbone_dtype",
        "baselines",
        "ann_type",
    )
    keys += ("ensemble", "scale_to_trained_shot", "low_fea", "kshot_trans_dim", "kshot_order")
    return {
        "weight": weight,
        "dataset": cfg.data_set,
        "split": cfg.split,
        "folds": cfg.effective_folds,
        "fold_count": cfg.fold_count,
        "fold_list": cfg.fold_list,
        "shot": cfg.shot,
        "backbone": cfg.backbone,
        "size": cfg.val_size,
        "episodes": len(runs[0].draws),
        "seeds": [run.seed for run in runs],
        **{key: getattr(cfg, key) for key in keys},
        "generalised": [cfg.merge, cfg.merge_tau] if cfg.generalised else None,
    }


def variant_name(cfg: Config) -> str:
    """What tells the files of this test from those of the plain one: "", "-bbox", "-meta", ..."""
    words = [cfg.ann_type] if cfg.ann_type != "mask" else []
    words += ["meta"] if not cfg.ensemble else []
    words += [f"generalised-{cfg.merge}"] if cfg.generalised else []
    words += ["unscaled"] if not cfg.scale_to_trained_shot else []
    words += [f"list-{_file_word(cfg.fold_list)}"] if cfg.fold_list else []
    return "".join(f"-{word}" for word in words)


def _file_word(path: str) -> str:
    """The stem of a path without what a shell or a pattern of file names may take for its own."""
    return re.sub(r"[^\w.-]+", "_", PurePath(path).stem)


def published_miou(cfg: Config, trained_shot: int) -> float | None:
    """The paper's mIoU of this fold, in percent; None where the test is not the paper's.

    Args:
        cfg: the test.
        trained_shot: number of supports that the weights were trained with.
    """
    result = PUBLISHED.get((cfg.data_set, cfg.backbone, cfg.shot))
    if result is None or trained_shot != cfg.shot:
        return None
    published = _PUBLISHED_SETTINGS | _PUBLISHED_BY_DATASET[cfg.data_set]
    if any(getattr(cfg, key) != value for key, value in published.items()):
        return None
    return result.folds[cfg.split]


def build_report(
    settings: dict[str, Any],
    trained_shot: int,
    evaluation: Evaluation,
    threshold: Threshold | None,
    published: float | None,
    processes: int,
) -> dict[str, Any]:
    """Plain values of a test.

    Args:
        settings: of `settings_of`.
        trained_shot: number of supports that the weights were trained with.
        evaluation: the counts.
        threshold: of the prior's baseline, where baselines were counted.
        published: of `published_miou`.
        processes: number of them.
    """
    runs = []
    for seed, counts in zip(settings["seeds"], evaluation.runs, strict=True):
        run = {"seed": seed, **counts.metrics.results()}
        if counts.prior is not None:
            run["baselines"] = counts.prior.results()
        if counts.generalised is not None:
            run["generalised"] = counts.generalised.results()
        runs.append(run)
    work = evaluation.work
    report = {
        "settings": settings,
        "trained_shot": trained_shot,
        "runs": runs,
        **summarise(runs),
        "published_mIoU_percent": published,
        "work": {
            "processes": processes,
            **work._asdict(),
            "episodes_per_s": work.episodes / work.seconds if work.seconds else None,
        },
    }
    if threshold is not None:
        report["prior_threshold"] = threshold.describe()
    return report


def report_text(report: dict[str, Any], class_names: list[str] | None) -> str:
    """A report, which may come back from its file, as markdown."""
    runs = report["runs"]
    seeds = [str(run["seed"]) for run in runs]
    rows = _with_spread(seeds, [[run[score] for score in SCORES] for run in runs])
    if report["published_mIoU_percent"] is not None:
        published = f"{report['published_mIoU_percent']:.1f}"
        rows.append(["published", published, *[""] * (len(SCORES) - 1)])
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
        markdown_table(["seed", *SCORES], rows),
        _LEGEND + (_SPREAD_LEGEND if len(runs) > 1 else "") + "\n",
        markdown_table(["class, IoU", *seeds, *(SPREAD if len(seeds) > 1 else ())], classes),
    ]
    if "baselines" in runs[0]:
        parts.append(_baselines(report))
    if "generalised" in runs[0]:
        parts.append(_generalised(report, seeds))
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
    if report["trained_shot"] != s["shot"]:
        lines.append(
            shot_note(report["trained_shot"], s["shot"], s["scale_to_trained_shot"]) + "\n"
        )
    if s["ann_type"] != "mask":
        lines.append(f"The supports are annotated by a {s['ann_type']}.\n")
    if not s["ensemble"]:
        lines.append("Without the base learner: the final prediction is the meta learner's.\n")
    return "\n".join(lines)


def _baselines(report: dict[str, Any]) -> str:
    names = {"all_foreground": "everything foreground", "prior": report["prior_threshold"]}
    rows = [["HDMNet", _percent(report["mean"]["mIoU"])]]
    for key in BASELINES:
        mean, _, _ = mean_interval([run["baselines"][key] for run in report["runs"]])
        rows.append([names[key], _percent(mean)])
    return markdown_table(["method", "mIoU"], rows)


def _generalised(report: dict[str, Any], seeds: list[str]) -> str:
    merge, tau = report["settings"]["generalised"]
    values = [[run["generalised"][name] for name in GENERALISED] for run in report["runs"]]
    table = markdown_table(["seed", *GENERALISED], _with_spread(seeds, values))
    return f"Base and held-out classes together (merge {merge}, merge_tau {tau:g}):\n\n{table}"


def _with_spread(names: list[str], values: list[list[float]]) -> list[list[str]]:
    """A row per run and, of several, their spread and the best by column, in percent."""
    if len(values) > 1:
        columns = list(zip(*values, strict=True))
        spread = zip(*(mean_interval(column) for column in columns), strict=True)
        values = [*values, *spread, [max(column) for column in columns]]
        names = [*names, *SPREAD, "best"]
    return [[name, *map(_percent, row)] for name, row in zip(names, values, strict=True)]


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _work(work: dict[str, Any]) -> str:
    if not work["episodes"]:
        return "All episodes were counted before.\n"
    return (
        f"{work['episodes']} episodes in {work['seconds']:.0f} s, {work['episodes_per_s']:.1f} a "
        f"second on {work['processes']} process{'es' * (work['processes'] > 1)}; features of "
        f"supports: {work['hits']} kept from before, {work['misses']} computed.\n"
    )
