import json

import numpy as np
import pytest

from util.config import load_config
from util.data.draws import Draw, DrawnRun
from util.evaluation.counts import RECORD, RunCounts
from util.evaluation.evaluator import Evaluation, Work
from util.evaluation.metrics import SCORES, mean_interval
from util.evaluation.prior_baseline import PriorBaselines, Threshold
from util.evaluation.protocol_report import (
    build_report,
    published_miou,
    report_text,
    settings_of,
    variant_name,
)
from util.runtime.machine import environment_line, run_environment

CLASSES, BASE = (1, 2, 3, 4, 5), tuple(range(6, 21))
RUNS = [DrawnRun(seed, [Draw(0, 1, [1])] * 7) for seed in (510, 365, 382)]


def config(*words, file="config/pascal/pascal_split0_resnet50.yaml"):
    return load_config(file, words)


def counted(seed, **options):
    counts = RunCounts(CLASSES, BASE, **options)
    rng = np.random.default_rng(seed)
    counts.load_state(rng.integers(1, 1000, counts.state().size))
    return counts


def report_of(cfg, runs=RUNS, threshold=None, **options):
    counts = [
        counted(run.seed, prior=threshold and PriorBaselines(CLASSES, threshold), **options)
        for run in runs
    ]
    evaluation = Evaluation(counts, np.zeros((7, RECORD)), Work(21, 4.0, 5, 16))
    settings = settings_of(cfg, "best.pth", runs)
    report = build_report(settings, 1, evaluation, threshold, published_miou(cfg, 1), 3)
    return json.loads(json.dumps(report))


def rows(text):
    """{first cell: other cells} of all tables."""
    cells = [
        [c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line
    ]
    return {first: others for first, *others in cells}


def test_the_table_holds_runs_their_spread_and_the_published_number():
    report = report_of(config())
    table = rows(report_text(report, config().class_names))
    assert table["seed"] == list(SCORES)
    for run in report["runs"]:
        assert table[str(run["seed"])] == [f"{100 * run[score]:.2f}" for score in SCORES]
    for column, score in enumerate(SCORES):
        mean, deviation, interval = mean_interval([run[score] for run in report["runs"]])
        expected = {"mean": mean, "std": deviation, "±95%": interval}
        for name, value in expected.items():
            assert table[name][column] == f"{100 * value:.2f}"
        assert report["mean"][score] == pytest.approx(mean)
    assert table["published"] == ["71.0", *[""] * 5]
    ious = [run["class_iou"]["3"] for run in report["runs"]]
    assert table["bird"][:3] == [f"{100 * iou:.2f}" for iou in ious]
    assert table["bird"][3] == f"{100 * np.mean(ious):.2f}"
    text = report_text(report, None)
    assert "21 episodes in 4 s, 5.2 a second on 3 processes" in text
    assert "5 kept from before, 16 computed" in text and "3 × 7 episodes at 473 px" in text
    assert rows(text)["3"] == table["bird"]


def test_the_machine_and_the_versions_are_said():
    report = report_of(config())
    before = report_text(report, None)
    report["environment"] = json.loads(json.dumps(run_environment()))
    assert report_text(report, None) == f"{before}\n{environment_line(report['environment'])}\n"


def test_one_run_has_no_spread():
    text = report_text(report_of(config(), RUNS[:1]), None)
    table = rows(text)
    assert "510" in table and "std" not in text and "±" not in text and "best" not in table
    assert len(table["3"]) == 1


def test_baselines_and_generalised_scores_are_shown():
    cfg = config("baselines=True", "generalised=True", "merge=base", "merge_tau=0.7")
    report = report_of(cfg, threshold=Threshold(1, 250), generalised=True)
    text = report_text(report, None)
    table = rows(text)
    assert table["HDMNet"] == [f"{100 * report['mean']['mIoU']:.2f}"]
    for key, name in (
        ("all_foreground", "everything foreground"),
        ("prior", "prior of f4 ≥ 0.500"),
    ):
        mean = np.mean([run["baselines"][key] for run in report["runs"]])
        assert table[name] == [f"{100 * mean:.2f}"]
    assert "(merge base, merge_tau 0.7)" in text
    generalised = report["runs"][0]["generalised"]
    cells = [f"{100 * generalised[f'mIoU_{n}']:.2f}" for n in ("base", "novel", "both")]
    assert cells in [
        line
        for line in (
            [c.strip() for c in row.split("|")[2:-1]] for row in text.splitlines() if "| 510" in row
        )
    ]


def test_what_is_not_the_plain_test_is_said():
    plain = report_text(report_of(config()), None)
    cfg = config("ann_type=bbox", "ensemble=False", "shot=5", "scale_to_trained_shot=False")
    text = report_text(report_of(cfg), None)
    for words in (
        "annotated by a bbox",
        "is the meta learner's",
        "matching gathers is left as it is",
    ):
        assert words in text and words not in plain
    assert variant_name(cfg) == "-bbox-meta-unscaled" and variant_name(config()) == ""
    merged = {variant_name(config("generalised=True", f"merge={m}")) for m in ("final", "base")}
    assert merged == {"-generalised-final", "-generalised-base"}
    listed = config("fold_list=lists/fold 0 [trn].txt", "ann_type=point")
    assert variant_name(listed) == "-point-list-fold_0_trn_"


@pytest.mark.parametrize(
    ("words", "published"),
    [
        ((), 71.0),
        (("shot=5", "split=3"), 68.5),
        (("vgg=True", "split=1"), 71.4),
        (("layers=101",), None),
        (("shot=2",), None),
        (("num_folds=2",), None),
        (("folds=[[1, 2, 3, 4, 5], [6]]",), None),
    ],
)
def test_published_numbers_are_those_of_the_same_fold(words, published):
    cfg = config(*words)
    assert published_miou(cfg, cfg.shot) == published


@pytest.mark.parametrize(
    "word",
    [
        "ann_type=bbox",
        "ensemble=False",
        "generalised=True",
        "fold_list=fold0.txt",
        "min_pixels=1",
        "val_size=633",
        "ori_resize=False",
        "resized_val=False",
    ],
)
def test_published_numbers_are_those_of_the_same_protocol(word):
    assert published_miou(config(word), 1) is None


def test_published_numbers_are_those_of_weights_of_the_same_shot():
    assert published_miou(config("shot=5"), 5) == 71.3
    assert published_miou(config("shot=5"), 1) is None


def test_published_numbers_of_coco_are_of_interleaved_folds():
    file = "config/coco/coco_split0_resnet50.yaml"
    assert published_miou(config(file=file), 1) == 43.8
    assert published_miou(config("val_size=473", file=file), 1) is None
    assert published_miou(config("use_split_coco=False", file=file), 1) is None


def test_settings_tell_tests_apart():
    plain = settings_of(config(), "best.pth", RUNS)
    words = ("ann_type=point", "ensemble=False", "generalised=True", "ori_resize=False")
    for word in (*words, "fold_list=fold0.txt", "num_folds=5"):
        assert settings_of(config(word), "best.pth", RUNS) != plain
    assert (plain["fold_list"], plain["fold_count"]) == (None, 4)
    assert settings_of(config("batch_size_val=4", "feature_cache_gb=0"), "best.pth", RUNS) == plain
    assert json.loads(json.dumps(plain)) == plain
