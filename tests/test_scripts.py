"""The shell scripts and test.py, through both stages and the test, on a miniature demo set."""

import argparse
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

import test as command
from tests.paths import ROOT
from tests.processes import start_python
from util.checkpoints.io import read_checkpoint
from util.checkpoints.run_files import find_best
from util.config import load_config
from util.data.images import read_mask
from util.demo_data import write_demo
from util.runtime.distributed import Processes
from util.runtime.errors import UserError

pytestmark = pytest.mark.slow
CONFIG = "config/demo/demo_split0_resnet18.yaml"
# What the scripts run, as tests/test_shell.py checks.
COMMANDS = {
    "train.sh": (("train_base.py", "--if-missing"), ("train.py",)),
    "test.sh": (("test.py",),),
}


class Run:
    """A command in a process of its own, and what it has printed."""

    def __init__(self, words, path):
        self.out, self.err = path.with_suffix(".out"), path.with_suffix(".err")
        self.process = start_python(words, self.out, self.err)

    def end(self):
        """Wait for the end; returns the exit code."""
        self.process.join()
        self.stdout, self.stderr = self.out.read_text(), self.err.read_text()
        return self.process.exitcode

    def stop(self, number):
        """Send it a signal; returns exit code and stderr."""
        os.kill(self.process.pid, number)
        return self.end(), self.stderr

    def kill_second_rank(self):
        """Kill one of two processes; the other one is ended."""
        words = ["ps", "-o", "pid=", "--ppid", str(self.process.pid)]
        ranks = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        assert len(ranks) == 2
        os.kill(int(ranks[1]), signal.SIGKILL)
        assert self.end() and "was ended by SIGKILL" in self.stderr


class Scripts:
    """Runs the scripts on the miniature set and into a folder with a blank."""

    def __init__(self, folder):
        self.data, self.exp, self.folder = folder / "small demo", folder / "my exp", folder
        write_demo(self.data, train=80, val=60)
        self.run = self.exp / "demo" / "HDMNet" / "split0" / "resnet18"
        sizes = [f"{key}=65" for key in ("train_h", "train_w", "val_size", "base_h", "base_w")]
        self.settings = [
            *sizes,
            *(f"{part}_list={self.data}/{part}.txt" for part in ("train", "val")),
            f"data_root={self.data}",
            f"list_dir={folder}/lists",
            f"exp_dir={self.exp}",
            *("base_epochs=2", "epochs=2", "val_num=6", "test_num=9", "workers=1", "print_freq=5"),
        ]
        self.runs = 0

    @property
    def weight(self):
        """The best checkpoint of stage 2."""
        return find_best(self.run / "snapshot").path

    def shell(self, script, gpus, *settings):
        """Run a script itself to the end, from another folder."""
        done = subprocess.run(
            ["sh", ROOT / script, "split0", "demo", gpus, *self.settings, *settings],
            cwd=self.folder,
            env=os.environ | {"PYTHON": sys.executable},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def start(self, words, processes, settings):
        """Start a command; its output comes after that of others of the same script."""
        script, *flags = words
        words = [script, "--config", CONFIG, "--opts", *self.settings, *settings, *flags]
        if processes > 1:
            words = ["-m", "util.launch", processes, *words]
        return Run(words, self.folder / f"run {self.runs}")

    def __call__(self, script, processes, *settings, code=0):
        """Run what a script runs to the end, with the expected exit code."""
        self.runs += 1
        for words in COMMANDS[script]:
            run = self.start(words, processes, settings)
            if run.end():
                break
        assert run.process.exitcode == code, run.stdout + run.stderr
        return run

    def start_until(self, happened, script, processes, *settings):
        """Start the last command of a script; returns it once something has happened."""
        self.runs += 1
        run = self.start(COMMANDS[script][-1], processes, settings)
        while not happened():
            assert run.process.exitcode is None, (run.end(), run.stdout, run.stderr)
            time.sleep(0.02)
        return run


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    return Scripts(tmp_path_factory.mktemp("a folder"))


@pytest.fixture(scope="module")
def trained(scripts):
    """What both stages printed, none of it a notice of a library."""
    run = scripts("train.sh", 2, "--viz")
    assert "Warning" not in run.stderr
    return run.stdout


@pytest.fixture
def run_test(scripts, trained, monkeypatch, run_command, error_line):
    """Runs test.py in this process, and returns what it printed, or its error line."""

    def run(*settings, code=0):
        words = ["test.py", "--config", CONFIG, "--opts", *scripts.settings, *settings]
        monkeypatch.setattr(sys, "argv", words)
        if code:
            return error_line(command.main)
        found, out, err = run_command(command.main)
        assert found == 0, err
        return out

    return run


def last_report(result):
    """The path and the content of the report that was written last."""
    path = max(result.glob("test-*.json"), key=lambda path: path.stat().st_mtime_ns)
    return path, json.loads(path.read_text())


def rows_of(table):
    with open(table) as handle:
        return list(csv.DictReader(handle))


def lines_of_journals(result, rank="*"):
    return sum(path.read_bytes().count(b"\n") for path in result.glob(f"journal-*-{rank}.jsonl"))


def test_both_stages_train_on_two_processes(scripts, trained):
    assert "2 processes on the CPU (gloo)" in trained
    assert "base learner: best mIoU" in trained and "distill" in trained
    assert re.search(r"  \d:\d\d:\d\d$", trained, re.MULTILINE)  # the time left
    for stage in ("PSPNet", "HDMNet"):
        folder = scripts.exp / "demo" / stage / "split0" / "resnet18"
        content = read_checkpoint(folder / "snapshot" / "last.pth")
        assert content["run"]["epoch"] == 2
        best = find_best(folder / "snapshot").path
        assert f"_{content['run']['best']:.4f}.pth" in best.name
        assert "mIoU" in (folder / "log.txt").read_text()
        assert list(folder.glob("events*"))
        assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
        assert load_config(folder / "config.yaml").base_epochs == 2


def test_running_again_trains_nothing(scripts, trained):
    last = scripts.run / "snapshot" / "last.pth"
    before = last.stat().st_mtime_ns
    again = scripts("train.sh", 2).stdout
    assert "training is done after 2 epochs" in again
    assert "rate" not in again
    assert last.stat().st_mtime_ns == before


@pytest.fixture
def one_thread(monkeypatch):
    """Sums are rounded alike in one and in several processes."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


def test_the_test_gives_the_same_on_one_and_two_processes(scripts, trained, run_test, one_thread):
    settings, result = ("test_runs=2", "baselines=True"), scripts.run / "result"
    printed = run_test(*settings)
    _, one = last_report(result)
    assert [run["seed"] for run in one["runs"]] == [510, 365]
    assert set(one["runs"][0]["class_iou"]) == {"1", "2", "3", "4", "5"}
    assert f"{100 * one['mean']['mIoU']:.2f}" in printed
    assert "everything foreground" in printed
    for run in one["runs"]:
        assert 0 < run["baselines"]["all_foreground"] < 1 and 0 < run["baselines"]["prior"] < 1
    again = run_test(*settings, "--if-missing")
    table = again.partition("tested before")[2].splitlines()[1:]
    assert len(table) > 10 and printed.splitlines()[-len(table) - 1 : -1] == table
    # On two processes that keep no features, equal to the last digit.
    stderr = scripts.shell("test.sh", "2", *settings, "feature_cache_gb=0").stderr
    # No notice of a library reaches the user.
    assert "Warning" not in stderr and "CUDA_HOME" not in stderr
    _, two = last_report(result)
    assert two["work"]["processes"] == 2
    assert two["work"]["hits"] == 0 < one["work"]["hits"]
    assert (two["runs"], two["mean"]) == (one["runs"], one["mean"])
    assert len(list(result.glob("episode-1shot-2x9-*.png"))) == 3


class OnAnotherNode(Processes):
    """A process whose main process on another node has found a report, and the weights `weights`."""

    weights: ClassVar = None

    def agree(self, value):
        return value["settings"]["weight"] == str(self.weights)

    def sum(self, counts):
        return np.array([1])


def test_nodes_that_see_files_late_test_the_same_or_nothing(scripts, trained, monkeypatch):
    monkeypatch.setattr(command, "load_tested", None)  # It does not get so far.
    monkeypatch.setattr(command, "read_report", lambda *_: None)
    process = OnAnotherNode(1, 2, torch.device("cpu"))
    cfg = load_config(CONFIG, scripts.settings)
    options = argparse.Namespace(episodes=None, if_missing=True, per_episode=False)
    with pytest.raises(UserError, match="not all processes find the same weights"):
        command.test(cfg, process, options)
    OnAnotherNode.weights = scripts.weight
    command.test(cfg, process, options)


def test_an_interrupted_test_goes_on_to_the_same_end(scripts, trained, run_test, one_thread):
    weight, drawn = scripts.weight, scripts.folder / "drawn.json"
    settings = [f"weight={weight}", "test_num=60", "test_runs=2", "workers=0"]
    settings += ["--per_episode", "--episodes", str(drawn), "--visualize", "1"]
    reports = {}
    for name in ("whole", "cut"):
        exp = scripts.folder / f"tested {name}"
        options = (f"exp_dir={exp}", *settings)
        result = exp / "demo/HDMNet/split0/resnet18/result"
        if name == "cut":
            happened = partial(lambda result: lines_of_journals(result, 1) > 2, result)
            scripts.start_until(happened, "test.sh", 2, *options).kill_second_rank()
            assert not list(result.glob("test-*"))
            for processes, number, code in ((1, signal.SIGTERM, 143), (2, signal.SIGINT, 130)):
                more = lines_of_journals(result) + 3
                happened = partial(lambda result, n: lines_of_journals(result) > n, result, more)
                run = scripts.start_until(happened, "test.sh", processes, *options)
                line = "interrupted; run the same command again to continue\n"
                assert run.stop(number) == (code, line)
        printed = run_test(*options)
        path, reports[name] = last_report(result)
        assert not list(result.glob("journal-*")) and "2 × 60 episodes of" in printed
        kept = re.search(r"testing: (\d+) of 120 episodes were counted before", printed)
        assert int(kept[1] if kept else 0) == 120 - reports[name]["work"]["episodes"]
        assert path.with_suffix(".md").read_text().splitlines()[-1] in printed
        rows = rows_of(path.with_suffix(".csv"))
        assert len(rows) == 120 and {row["seed"] for row in rows} == {"510", "365"}
        pictures = [picture.name for picture in result.glob("*.png")]
        named = f"1shot-2x60-{weight.stem}"
        assert {f"episode-{named}-0.png", f"contact-{named}.png"} <= set(pictures)
        assert f"test-{named}.png" in pictures
        for kind, number in (("best", 3), ("median", 3), ("worst", 20)):
            assert sum(picture.startswith(f"{kind}-{named}-") for picture in pictures) == number
    whole, cut = reports["whole"], reports["cut"]
    assert cut["runs"] == whole["runs"] and cut["drawn"] == whole["drawn"]
    assert 0 < cut["work"]["episodes"] <= 110 < whole["work"]["episodes"] == 120


def test_two_shot_uses_the_one_shot_weights(scripts, trained, run_test, tmp_path):
    drawn = str(tmp_path / "drawn.json")
    settings = ("test_runs=1", "test_num=3", "vis_num=0", "--episodes", drawn)
    assert "trained with 1-shot" in run_test("shot=2", *settings)
    _, report = last_report(scripts.exp / "demo/HDMNet/split0_2shot/resnet18/result")
    assert (report["settings"]["shot"], report["trained_shot"]) == (2, 1)
    assert "drawn for shot 2, this test has 1" in run_test(*settings, code=2)


def test_a_killed_run_goes_on_to_the_same_end(scripts, trained):
    base = find_best(scripts.exp / "demo" / "PSPNet" / "split0" / "resnet18" / "snapshot").path
    settings = (f"base_weight={base}", "evaluate=False", "save_freq=1")
    last = {}
    for name in ("whole", "cut"):
        exp = scripts.folder / name
        last[name] = exp / "demo/HDMNet/split0/resnet18/snapshot/last.pth"
        if name == "cut":
            arguments = ("train.sh", 1, f"exp_dir={exp}", *settings)
            run = scripts.start_until(last[name].exists, *arguments)
            os.killpg(run.process.pid, signal.SIGKILL)
            run.end()
            assert read_checkpoint(last[name])["run"]["epoch"] < 2
        printed = scripts("train.sh", 1, f"exp_dir={exp}", *settings).stdout
        assert ("resumed from" in printed) == (name == "cut")
    whole, cut = (read_checkpoint(path)["state_dict"] for path in last.values())
    assert whole.keys() == cut.keys()
    assert all(whole[key].equal(cut[key]) for key in whole)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("test.sh", [1, "weight=nowhere.pth"], "weight = nowhere.pth: there is no such file"),
        ("train.sh", [2, "epoch=3"], "epoch = 3: unknown key"),
        (
            "train.sh",
            [1, "base_weight=nowhere.pth", "resume=none"],
            "nowhere.pth: there is no such",
        ),
    ],
)
def test_mistakes_are_one_line(script, arguments, message, scripts, trained):
    result = scripts(script, *arguments, code=2)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and message in lines[0], result.stderr
    assert "Traceback" not in result.stderr


def test_weights_that_do_not_fit_are_refused(scripts, trained, run_test):
    weight = f"weight={scripts.weight}"
    assert "no trained model in" in run_test("split=2", "exp_name=none", code=2)
    assert "no trained model in" in run_test("layers=34", "exp_dir=../", code=2)
    assert "was trained on base classes [6, 7, 8" in run_test("split=1", weight, code=2)
    assert "is of the backbone resnet18, the settings have resnet34" in run_test(
        "layers=34", weight, code=2
    )


def test_starting_anew_keeps_the_base_learner(scripts, trained):
    # A copy of the training, which other tests use.
    shutil.copytree(scripts.run, scripts.exp / "demo/HDMNet/anew/resnet18")
    settings = ("exp_name=anew", "resume=none", "epochs=1", "evaluate=False")
    done = scripts.shell("train.sh", "1", *settings)
    assert "base learner: " in done.stdout and "images, global batch 8" not in done.stdout
    assert "Warning" not in done.stderr and "CUDA_HOME" not in done.stderr
    folder = scripts.exp / "demo" / "PSPNet" / "split0" / "resnet18" / "snapshot"
    assert read_checkpoint(folder / "last.pth")["run"]["epoch"] == 2


def test_a_test_that_differs_in_size_has_a_result_of_its_own(scripts, trained, run_test):
    plain = f"1shot-1x3-{scripts.weight.stem}"
    for resized in (True, False):
        # Settings may follow a flag.
        settings = ("--visualize", "1", f"ori_resize={resized}", "test_runs=1", "test_num=3")
        run_test("--per_episode", *settings)
        _, report = last_report(scripts.run / "result")
        assert report["settings"]["ori_resize"] is resized
    for pattern in ("test-{}*.json", "test-{}*.csv", "test-{}*.md", "contact-{}*.png"):
        names = [path.name for path in (scripts.run / "result").glob(pattern.format(plain))]
        assert len(names) == 2 and pattern.format(plain).replace("*", "") in names


def test_a_list_of_hsnet_is_tested_by_its_protocol(scripts, trained, run_test):
    entries = [line.split() for line in (scripts.data / "val.txt").read_text().splitlines()]
    shows = [image for image, mask in entries if 1 in read_mask(str(scripts.data / mask))]
    lines = [f"{Path(image).stem}__01" for image in shows[:3]]
    assert len(lines) == 3
    path = scripts.folder / "fold 0.txt"
    path.write_text("\n".join(lines))
    settings = (f"hsnet_list={path}", "test_num=4", "vis_num=1")
    run_test("--per_episode", "protocol=hsnet", *settings)
    path, report = last_report(scripts.run / "result")
    (run,) = report["runs"]
    assert run["seed"] == 0 and set(run["class_iou"]) == {"1", "2", "3", "4", "5"}
    said = report["settings"]
    assert (said["protocol"], said["ori_resize"], said["size"]) == ("hsnet", False, 65)
    assert path.name.startswith("test-1shot-hsnet-fold_0-1x4-")
    rows = rows_of(path.with_suffix(".csv"))
    assert [f"{Path(row['query']).stem}__01" for row in rows] == [*lines, lines[0]]
    assert len({row["class_name"] for row in rows}) == 1
    assert len(list((scripts.run / "result").glob("episode-1shot-hsnet-*.png"))) == 1
    # The same command takes the result, and the published protocol is another test.
    hsnet = ("--if-missing", "--per_episode", "protocol=hsnet", *settings)
    assert f"tested before, see {path}" in run_test(*hsnet)
    run_test("--if-missing", "test_num=4", "test_runs=1", "vis_num=0", "min_pixels=1")
    other, report = last_report(scripts.run / "result")
    assert "hsnet" not in other.name and report["runs"][0]["seed"] == 510
    drawn = ("--episodes", f"{scripts.folder}/drawn.json", "test_num=4", "test_runs=1", "vis_num=0")
    run_test(*drawn, "min_pixels=1")
    line = run_test(*drawn, "protocol=hsnet", code=2)
    assert "drawn for dataset demo, this test has demo by hsnet; name another file" in line


def test_weights_are_tested_on_another_dataset(scripts, trained, run_test):
    other = ("data_set=other", "num_classes=20", f"weight={scripts.weight}")
    printed = run_test(*other, "protocol=hsnet", "test_num=3", "vis_num=0")
    assert "The weights were trained on demo" in printed and "HSNet's loaders" in printed
    _, report = last_report(scripts.exp / "other" / "HDMNet" / "split0" / "resnet18" / "result")
    assert report["settings"]["protocol"] == "hsnet" and "mIoU_b" not in report["mean"]


def test_hsnets_protocol_is_401_px_without_options():
    cfg = load_config(CONFIG, command.HSNET_SETTINGS)
    assert (cfg.val_size, cfg.ori_resize, cfg.test_num, cfg.test_runs) == (401, False, 1000, 1)


@pytest.mark.faults  # It takes a minute.
def test_reproduce_prints_the_table_of_all_folds(scripts, tmp_path):
    settings = [*scripts.settings, f"exp_dir={tmp_path}", "base_epochs=1", "epochs=1"]
    done = subprocess.run(
        ["sh", ROOT / "reproduce.sh", "demo", "1", *settings],
        env=os.environ | {"PYTHON": sys.executable, "SHOTS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("HDMNet: resnet18, fold") == 4
    (row,) = re.findall(r"^\| HDMNet +\| resnet18 .*$", done.stdout, re.MULTILINE)
    *folds, mean, _ = (float(score) for score in re.findall(r"\d+\.\d", row))
    assert len(folds) == 4 and mean == pytest.approx(sum(folds) / 4, abs=0.1), done.stdout
