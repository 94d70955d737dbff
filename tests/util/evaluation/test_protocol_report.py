import json
import re

import numpy as np
import pytest
import torch

from tests.tables import rows_of
from util.config import load_config
from util.data.draws import Draw, DrawnRun
from util.evaluation.counts import Counts
from util.evaluation.evaluator import Evaluation, Work
from util.evaluation.metrics import BASE_SCORE, SCORES, mean_interval
from util.evaluation.model import LoadedModel
from util.evaluation.prior_baseline import BASELINES, Threshold
from util.evaluation.protocol_report import (
    build_report,
    published_miou,
    read_report,
    report_text,
    result_path,
    settings_of,
    variant_name,
)
from util.evaluation.published_results import PUBLISHED
from util.runtime.distributed import Processes
from util.runtime.machine import environment_line, run_environment

RUNS = [DrawnRun(seed, [Draw(0, 1, [1])] * 7) for seed in (510, 365, 382)]
WORK = Work(21, 4.0, 5, 16)
COCO = "config/coco/coco_split0_resnet50.yaml"


def config(*words, file="config/pascal/pascal_split0_resnet50.yaml"):
    return load_config(file, words)


def scores_of_run(seed, threshold, scores):
    rng = np.random.default_rng(seed)
    run = dict(zip(scores, rng.random(len(scores)), strict=True))
    run["class_iou"] = dict(enumerate(rng.random(5).tolist(), 1))
    if threshold is not None:
        run["baselines"] = dict(zip(BASELINES, rng.random(2), strict=True))
    return run


def report_of(cfg, runs=RUNS, threshold=None, notes=(), scores=SCORES, work=WORK):
    found = [scores_of_run(run.seed, threshold, scores) for run in runs]
    evaluation = Evaluation(found, Counts(0, 0, 0), work)
    settings, loaded = settings_of(cfg, "best.pth", runs), LoadedModel(None, 1, list(notes))
    processes = Processes(0, 3, torch.device("cpu"))
    report = build_report(cfg, settings, loaded, evaluation, threshold, processes)
    return json.loads(json.dumps(report))


def test_the_table_holds_runs_their_spread_and_the_published_number():
    report = report_of(config())
    table = rows_of(report_text(report))
    assert table["seed"] == list(SCORES)
    for run in report["runs"]:
        assert table[str(run["seed"])] == [f"{100 * run[score]:.2f}" for score in SCORES]
    for column, score in enumerate(SCORES):
        mean, deviation, interval = mean_interval([run[score] for run in report["runs"]])
        expected = {"mean": mean, "std": deviation, "±95%": interval}
        for name, value in expected.items():
            assert table[name][column] == f"{100 * value:.2f}"
        assert report["mean"][score] == pytest.approx(mean)
    best = [max(run[score] for run in report["runs"]) for score in SCORES]
    assert table["best"] == [f"{100 * value:.2f}" for value in best]
    assert table["published"] == ["71.0", *[""] * 5]
    assert report["class_names"]["3"] == "bird" and len(report["class_names"]) == 5
    ious = [run["class_iou"]["3"] for run in report["runs"]]
    assert table["bird"][:3] == [f"{100 * iou:.2f}" for iou in ious]
    assert table["bird"][3] == f"{100 * np.mean(ious):.2f}"
    del report["class_names"]  # as in the files of earlier versions
    text = report_text(report)
    assert "21 episodes in 4 s, 5.2 a second on 3 processes" in text
    assert (
        "5 times still in memory, 16 times computed" in text and "3 × 7 episodes at 473 px" in text
    )
    assert rows_of(text)["3"] == table["bird"]
    for number, processes in ((1, "1 process"), (2, "2 processes")):
        report["work"]["processes"] = number
        assert f"a second on {processes}; " in report_text(report)


def test_two_runs_have_a_spread():
    text = report_text(report_of(config(), RUNS[:2]))
    table = rows_of(text)
    assert {"mean", "std", "±95%", "best"} <= table.keys() and "interval of the mean" in text
    assert table["class, IoU"] == ["510", "365", "mean", "std", "±95%"] and len(table["bird"]) == 5
    assert text.startswith("# resnet50, fold 0 of pascal, 1-shot\n\nWeights: best.pth. 2 × 7 ")


def test_a_test_that_counted_nothing_new_has_no_speed():
    report = report_of(config(), work=Work(0, 0.0, 0, 0))
    assert report["work"]["episodes_per_s"] is None
    text = report_text(report)
    assert "All episodes had been counted before.\n" in text and "a second on" not in text
    report = report_of(config(), work=Work(1, 0.5, 0, 0))
    assert report["work"]["episodes_per_s"] == 2.0


def test_classes_that_were_left_out_are_named():
    report = report_of(config("absent_class=skip"))
    for run, absent in zip(report["runs"], ((2, 3), (3,), (3,)), strict=True):
        run["class_iou"] |= {str(class_id): None for class_id in absent}
    text = report_text(report)
    assert "No episode asks for bicycle (seed 510), bird: left out of mIoU." in text
    table = rows_of(text)
    assert table["bird"] == ["-"] * 6 and table["bicycle"][0] == "-"
    known = [100 * run["class_iou"]["2"] for run in report["runs"][1:]]
    assert table["bicycle"][1:4] == [*(f"{iou:.2f}" for iou in known), f"{np.mean(known):.2f}"]
    assert "No episode" not in report_text(report_of(config()))


def test_one_run_has_no_spread():
    report = report_of(config(), RUNS[:1])
    text = report_text(report)
    table = rows_of(text)
    assert "510" in table and "std" not in text and "±" not in text and "best" not in table
    assert len(table["bird"]) == 1
    report["environment"] = json.loads(json.dumps(run_environment()))
    assert report_text(report) == f"{text}\n{environment_line(report['environment'])}\n"


def test_baselines_are_shown():
    report = report_of(config("baselines=True"), threshold=Threshold(1, 250))
    table = rows_of(report_text(report))
    assert table["HDMNet"] == [f"{100 * report['mean']['mIoU']:.2f}"]
    names = ("everything foreground", "prior of f4 ≥ 0.500")
    for key, name in zip(BASELINES, names, strict=True):
        mean = np.mean([run["baselines"][key] for run in report["runs"]])
        assert table[name] == [f"{100 * mean:.2f}"]


def test_what_is_not_the_plain_test_is_said():
    plain = report_text(report_of(config()))
    cfg = config("ann_type=bbox", "ensemble=False", "scale_to_trained_shot=False")
    text = report_text(report_of(cfg, notes=["Weights of another shot."]))
    for words in ("annotated by a bbox", "is the meta learner's", "Weights of another shot."):
        assert words in text and words not in plain
    assert variant_name(cfg) == "-bbox-meta-unscaled" and variant_name(config()) == ""
    assert "HSNet" not in plain
    words = ("protocol=hsnet", "ann_type=point", "val_size=401")
    assert variant_name(config(*words)) == "-point-hsnet"
    text = report_text(report_of(config(*words)))
    assert "from the val list; not compared with a run of HSNet's own code" in text
    assert "Images have 401 px, HSNet's have 400." in text
    listed = config(*words, "hsnet_list=lists/fold 0 [trn].txt")
    assert variant_name(listed) == "-point-hsnet-fold_0_trn_"
    assert "from lists/fold 0 [trn].txt; not" in report_text(report_of(listed))


@pytest.mark.parametrize(
    ("published", "words"),
    [
        (71.0, ""),
        (68.5, "shot=5 split=3"),
        (71.4, "vgg=True split=1"),
        *((None, word) for word in ("layers=101", "shot=2", "num_folds=2", "folds=[[1,2],[6]]")),
        *((None, word) for word in ("ann_type=bbox", "ensemble=False", "protocol=hsnet")),
        *((None, word) for word in ("base_learner=none", "prior=minmax")),
        *((None, word) for word in ("mixed_images=background", "min_cells=1", "absent_class=skip")),
        *((None, word) for word in ("min_pixels=1", "val_size=633")),
        *((None, word) for word in ("ori_resize=False", "resized_val=False")),
    ],
)
def test_published_numbers_are_those_of_the_same_fold_and_protocol(published, words):
    assert published_miou(config(*words.split())) == published


def test_published_numbers_of_coco_are_of_interleaved_folds():
    assert published_miou(config(file=COCO)) == 43.8
    assert published_miou(config("val_size=473", file=COCO)) is None
    assert published_miou(config("use_split_coco=False", file=COCO)) is None


def test_the_printed_means_are_those_of_the_folds():
    assert all(sum(f) / 4 == pytest.approx(mean, abs=0.0501) for f, mean in PUBLISHED.values())
    datasets, backbones, shots = map(set, zip(*PUBLISHED, strict=True))
    assert (datasets, backbones, shots) == ({"pascal", "coco"}, {"vgg16", "resnet50"}, {1, 5})
    assert len(PUBLISHED) == 8


def test_weights_of_another_kind_are_not_those_of_the_published_numbers():
    scores = [score for score in SCORES if score != BASE_SCORE]
    report = report_of(config(), notes=["Weights of 60 base classes."], scores=scores)
    text = report_text(report)
    assert report["published_mIoU_percent"] is None and "published" not in text
    assert rows_of(text)["seed"] == scores


def test_settings_tell_tests_apart():
    plain = settings_of(config(), "best.pth", RUNS)
    words = ("ann_type=point", "ensemble=False", "ori_resize=False", "data_root=other")
    rules = ("mixed_images=ignore", "min_cells=4", "absent_class=skip")
    hsnet = settings_of(config("protocol=hsnet"), "best.pth", RUNS)
    assert settings_of(config("protocol=hsnet", "hsnet_list=a"), "best.pth", RUNS) != hsnet
    for word in (*words, *rules, "protocol=hsnet", "num_folds=5"):
        assert settings_of(config(word), "best.pth", RUNS) != plain
    assert plain["fold_count"] == 4 and not {"protocol", "hsnet_list"} & plain.keys()
    assert settings_of(config("batch_size_val=4", "feature_cache_gb=0"), "best.pth", RUNS) == plain
    assert json.loads(json.dumps(plain)) == plain


def test_tests_that_differ_never_replace_each_other(tmp_path):
    def write(identity):
        path = result_path(tmp_path, "1shot", identity)
        path.write_text(json.dumps({**identity, "runs": []}))
        return path

    identities = [{"settings": {"size": size}, "drawn": "0"} for size in (473, 633, 801)]
    paths = [write(identity) for identity in identities]
    assert paths[0].name == "test-1shot.json" and len(set(paths)) == 3
    assert all(re.fullmatch(r"test-1shot-[0-9a-f]{6}\.json", path.name) for path in paths[1:])
    for path, identity in zip(paths, identities, strict=True):
        assert result_path(tmp_path, "1shot", identity) == path
        assert read_report(path, identity) == {**identity, "runs": []}
        assert read_report(path, {"settings": {}}) is None
    paths[0].write_text("[]")  # It is damaged, and may have been any test.
    assert write(identities[0]) not in paths
    paths[0].unlink()
    assert result_path(tmp_path, "1shot", identities[1]) == paths[1]
