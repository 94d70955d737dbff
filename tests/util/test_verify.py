import os
import re
import shlex
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

import train_base
from model import build_hdmnet, build_pspnet
from tests.util.prepare_files import cut, noise, write_image
from tests.util.weight_data import imagenet, light_state
from util.checkpoints.run_files import RunFiles
from util.checks import data, resources
from util.checks.rows import ERROR, OK, WARNING, Row, table
from util.config import load_config
from util.data.folds import LIST_PARTS
from util.data.images import read_mask
from util.data.loaders import build_base_data, build_episodes, build_train_loader
from util.get_mulway_base_data import main as write_base_labels
from util.pretrained.kinds import meta_hdmnet
from util.runtime.errors import DataError, exits_on_user_error
from util.verify import main, verify

CLASSES, IMAGES = 4, 3  # images of each class in each part


class Experiment:
    """A whole experiment in a folder with a blank and letters beyond ASCII: all rows are ok."""

    def __init__(self, folder):
        self.root = folder / "Bilder für uns"
        self.root.mkdir(parents=True)
        for part in LIST_PARTS:
            entries = [
                self.pair(f"{part} ü {class_id} {number}", class_id)
                for class_id in range(1, CLASSES + 1)
                for number in range(IMAGES)
            ]
            self.write_list(part, entries)
        self.base = folder / "base learner.pth"
        self.save(self.base, light_state(lambda: build_pspnet("resnet18", CLASSES - 1)))
        self.settings = {
            "Data": {
                "data_root": str(self.root),
                "train_list": str(self.list_file("train")),
                "val_list": str(self.list_file("val")),
                "list_dir": str(folder / "lists"),
                "num_classes": CLASSES,
                "class_names": ["nut", "bolt", "gear", "cam"],
                "folds": [[1], [2], [3], [4]],
                "min_pixels": 100,
            },
            "Train": {
                "data_set": "parts",
                "base_weight": str(self.base),
                "exp_dir": str(folder / "runs"),
                "workers": 2,
            },
            "Method": {"layers": 18},
            "Base": {"backbone_weight": "none"},
        }
        self.config = folder / "my config.yaml"
        self.config.write_text(yaml.safe_dump(self.settings))

    def pair(self, stem, class_id):
        names = (f"{stem}.jpg", f"{stem} mask.png")
        mask = np.zeros((40, 56), np.uint8)
        mask[5:20, 10:30] = class_id
        for name, pixels in zip(names, (noise(mask.shape, class_id), mask), strict=True):
            write_image(self.root / name, pixels)
        return names

    def list_file(self, part):
        return self.root / f"{part}.txt"

    def write_list(self, part, entries):
        lines = ["\t".join(entry) for entry in entries]
        self.list_file(part).write_text("\n".join(lines), encoding="utf-8")

    def entries(self, part="train"):
        text = self.list_file(part).read_text(encoding="utf-8")
        return [tuple(line.split("\t")) for line in text.splitlines()]

    def image(self, number, part="train"):
        return self.root / self.entries(part)[number][0]

    def mask(self, number, part="train"):
        return self.root / self.entries(part)[number][1]

    def change_mask(self, number, change):
        write_image(self.mask(number), change(read_mask(self.mask(number))))

    @staticmethod
    def save(path, state, **details):
        torch.save({"state_dict": state, **details}, path)

    def arguments(self, *opts):
        return ["--config", str(self.config), "--opts", *opts]

    def rows(self, *opts, full=True, workers=1, processes=1):
        cfg = load_config(self.config, opts)
        return {row.subject: row for row in verify(cfg, "SETTINGS", full, workers, processes)}


@pytest.fixture
def experiment(tmp_path):
    return Experiment(tmp_path / "ein Versuch")


def exit_code(argv):
    try:
        main([str(word) for word in argv])
    except SystemExit as error:
        return error.code
    return 0


def bad(rows):
    return {subject: row.status for subject, row in rows.items() if row.status != OK}


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_all_is_ok_where_all_is_there(experiment, full, capsys):
    rows = experiment.rows("batch_size", "9", full=full)
    assert bad(rows) == {}
    assert rows["settings"].found == "fold 0 of parts, resnet18, 1-shot"
    assert rows["train images"].found == "12 of 12 read with their masks"
    assert rows["fold 0 train"].found.startswith("9 images, 3 to 3 of each of 3 classes")
    assert rows["fold 3 val"].found.startswith("3 images, 3 to 3 of each of 1 classes")
    assert exit_code(experiment.arguments() + ["--full"] * full) == 0
    assert capsys.readouterr().out.endswith("\nno errors, no warnings\n")


def with_value(value):
    """A function that gives the object of a mask this value."""
    return lambda mask: np.where(mask > 0, value, mask).astype(np.uint8)


def keep_images(e, part, pattern):
    e.write_list(part, [entry for entry in e.entries(part) if re.search(pattern, entry[0])])


def save_base(e, net="resnet18", **details):
    e.save(e.base, light_state(lambda: build_pspnet(net, CLASSES - 1)), **details)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda e: cut(e.image(0)), r"train images: .* 1 0\.jpg is damaged or truncated.* replace"),
        (lambda e: e.image(0).write_bytes(b""), r"train images: .* 1 0\.jpg is damaged.* replace"),
        (lambda e: cut(e.mask(0)), r"train images: .* 1 0 mask\.png cannot be read.* replace"),
        (
            lambda e: e.change_mask(0, lambda mask: np.dstack([mask, 0 * mask, mask])),
            "train images: .*holds colours, and nothing says.* replace",
        ),
        (
            lambda e: [e.change_mask(i, with_value(255)) for i in range(CLASSES * IMAGES)],
            "train masks: .*holds a class, only 0.*prepare_custom",
        ),
        (
            lambda e: e.change_mask(0, with_value(9)),
            r"train masks: 1 of 12.*ü 1 0 mask\.png holds the value 9.*classes",
        ),
        (
            lambda e: e.change_mask(0, lambda mask: mask[:-1]),
            "train images: .*is 56×40 pixels but .* is 56×39.* replace",
        ),
        (lambda e: e.mask(0).unlink(), r"train files: 1 of 24 .*1 0 mask\.png .*prepare_custom"),
        (lambda e: e.image(0).unlink(), r"train files: 1 of 24 .*1 0\.jpg .*prepare_custom"),
        (
            lambda e: e.list_file("val").unlink(),
            r"val_list: there is no file .*\.txt.*prepare_custom",
        ),
        (
            lambda e: e.list_file("val").write_text("\n\n"),
            r"val_list: .*\.txt is empty.*prepare_custom",
        ),
        (
            lambda e: e.list_file("val").write_text("one.jpg\ntwo.jpg\n"),
            'val_list: .*2 lines.*line 1 is not "IMAGE MASK".*prepare_custom',
        ),
        (
            lambda e: e.write_list("val", [(f"{i}.jpg", f"{i}.png") for i in range(5)]),
            "val files: 10 of 10 do not exist.*prepare_custom",
        ),
        (
            lambda e: keep_images(e, "train", "ü ([124]|3 0)"),
            r"fold 0 train: .*class 3 \(gear\) has 1 usable.*lower shot",
        ),
        (
            lambda e: keep_images(e, "val", "ü [234]"),
            r"fold 0 val: .*no image of .*val\.txt can be used.*more images",
        ),
        (lambda e: e.base.unlink(), "base learner: .*no such file.*python train_base.py SETTINGS"),
        (lambda e: cut(e.base), "base learner: .*not readable as weights.*train_base.py"),
        (
            lambda e: e.save(e.base, {}, args=SimpleNamespace(lr=1)),
            "base learner: .*SimpleNamespace.*import --unsafe.*import FILE",
        ),
        (
            lambda e: save_base(e, "resnet34"),
            "base learner: .*does not fit the configured model.*import FILE",
        ),
        (
            lambda e: save_base(e, base_classes=[1, 2, 3]),
            r"base learner: .*trained on base classes \[1, 2, 3\].*import FILE",
        ),
        (
            lambda e: (e.root.parent / "runs").write_text(""),
            "exp_dir: .*cannot be written.*set exp_dir",
        ),
    ],
)
def test_a_broken_part_is_an_error(experiment, spoil, expected):
    spoil(experiment)
    rows = experiment.rows("batch_size", "2").values()
    (error,) = (row for row in rows if row.status == ERROR)
    text = " ".join((f"{error.subject}:", error.found, *error.details, error.remedy))
    assert re.match(expected, text)


def test_a_missing_root_and_a_missing_list_are_both_told(experiment):
    experiment.list_file("val").rename(experiment.root.parent / "val.txt")
    experiment.root.rename(experiment.root.parent / "moved")
    lists = ("val_list", experiment.root.parent / "val.txt")
    assert bad(experiment.rows(*map(str, lists))) == {"data_root": ERROR, "train_list": ERROR}
    assert bad(experiment.rows("data_root", "none", "train_list", "none", "val_list", "none")) == {
        "data_root": ERROR,
        "train_list": ERROR,
        "val_list": ERROR,
    }


@pytest.mark.slow
def test_all_problems_are_told_at_once(experiment, capsys):
    cut(experiment.image(0))
    experiment.image(1).write_bytes(b"")
    experiment.change_mask(3, with_value(9))
    experiment.mask(6).unlink()
    experiment.list_file("val").unlink()
    experiment.base.unlink()
    rows = experiment.rows("shot", "3", "weight", "absent.pth")
    errors = {name for name, status in bad(rows).items() if status == ERROR}
    assert errors == {
        "train images",
        "train masks",
        "train files",
        "fold 0 train",
        "val_list",
        "base learner",
        "weight",
    }
    assert len(rows["train images"].details) == 2
    # Of class 2 and 3 two images are left, of class 4 three; shot 3 needs four.
    assert len(rows["fold 0 train"].details) == 3
    assert exit_code([*experiment.arguments("shot", "3"), "--full", "--show", "1"]) == 1
    assert "- and 1 more (--show 0 names all)" in capsys.readouterr().out


def test_what_only_other_folds_lack_is_a_warning(experiment):
    keep_images(experiment, "val", "ü [123]")
    assert bad(experiment.rows()) == {"fold 3 val": WARNING}
    assert bad(experiment.rows("split", "3"))["fold 3 val"] == ERROR


def test_a_base_class_without_images_is_a_warning(experiment):
    keep_images(experiment, "train", "ü [123]")
    row = experiment.rows("batch_size", "2")["fold 0 train"]
    assert row.status == WARNING
    assert row.details == ("class 4 (cam) is in none",)


def test_scenes_need_a_rule_that_keeps_them(experiment):
    def scene(mask):
        mask[-3:, :] = 1  # held out in fold 0
        return mask

    for number in range(CLASSES * IMAGES):
        experiment.change_mask(number, scene)
    row = experiment.rows()["fold 0 train"]
    assert row.status == ERROR and "mixed_images background takes those too" in row.details[0]
    for rule in ("background", "ignore"):
        rows = experiment.rows("mixed_images", rule)
        assert bad(rows) == {}
        assert rows["fold 0 train"].found.startswith("9 images")


def test_supports_that_vanish_on_the_grid_are_a_warning(experiment):
    def line(mask):
        mask[:] = 0
        mask[3:5, :] = 2  # 112 pixels, between the rows of cells
        return mask

    experiment.change_mask(3, line)
    sizes = ("train_h=97", "train_w=97")
    rows = experiment.rows(*sizes)
    assert bad(rows) == {"train supports": WARNING}
    found = "1 of 9 that were read cover no cell of the 13×13 grid at 97 px"
    assert rows["train supports"].found == found
    assert rows["train supports"].details == (f"{experiment.mask(3)}: class 2",)
    rows = experiment.rows(*sizes, "min_cells=1")
    assert bad(rows) == {} and rows["fold 0 train"].found.startswith("8 images")


MORE = (((), 2, " or the number of processes"), (("grad_accum", "2"), 1, " or grad_accum"))


@pytest.mark.parametrize(("opts", "processes", "named"), [(("batch_size", "10"), 1, ""), *MORE])
def test_fewer_images_than_an_iteration_of_stage_2_are_an_error(opts, processes, named, experiment):
    row = experiment.rows("batch_size", "5", *opts, processes=processes)["fold 0 train"]
    assert row.status == ERROR
    assert "training images: 9, and an iteration takes 10" in row.details[0]
    assert f"lower batch_size{named}" in row.details[0]


@pytest.mark.parametrize(("opts", "processes", "named"), [((), 1, ""), *MORE])
def test_fewer_images_than_an_iteration_of_stage_1_are_an_error(opts, processes, named, experiment):
    stage_1 = ("base_weight", "none", "batch_size", "1", "base_batch_size", "13")
    row = experiment.rows(*stage_1, *opts, processes=processes)["stage 1 batch"]
    assert row.status == ERROR and "training images: 12" in row.found
    assert f"lower base_batch_size{named}" in row.found


@pytest.mark.slow
def test_stage_1_is_checked_where_it_is_to_be_trained(experiment):
    stage_1 = ("base_weight", "none", "batch_size", "1", "base_batch_size", "12")
    assert bad(experiment.rows(*stage_1)) == {"base learner": WARNING}
    assert "stage 1 batch" not in experiment.rows("base_batch_size", "13")
    assert exit_code([*experiment.arguments(*stage_1), "--processes", "5"]) == 1


def test_a_list_of_hsnet_has_to_be_of_the_test_images(experiment, tmp_path):
    path = tmp_path / "fold0.txt"
    path.write_text("val ü 1 0__01\nval ü 1 2__01\n")
    hsnet = ("protocol", "hsnet", "hsnet_list", str(path))
    assert bad(experiment.rows(*hsnet)) == {}
    path.write_text("val ü 2 0__02\n")
    rows = experiment.rows(*hsnet)
    assert bad(rows) == {"fold 0 val": ERROR}
    assert "no image val ü 2 0 of the val list with class 2" in rows["fold 0 val"].details[0]


def test_validation_on_base_classes_has_a_row_of_its_own(experiment):
    rows = experiment.rows("select_on", "base")
    assert rows["fold 0 val (base classes)"].found.startswith("9 images")
    keep_images(experiment, "val", "ü ([134]|2 [12])")
    assert "fold 0 val (base classes)" not in experiment.rows()
    rows = experiment.rows("select_on", "base", "shot", "2")
    assert rows["fold 0 val (base classes)"].status == ERROR


def test_the_default_reads_a_fixed_sample(experiment, monkeypatch):
    monkeypatch.setattr(data, "SAMPLE", 4)
    read = []
    monkeypatch.setattr(data, "_pair_problems", lambda root, entry: read.append(entry) or [])
    rows = experiment.rows(full=False)
    assert rows["train images"].found == "4 of 12 read with their masks; --full reads all"
    first, read[:] = list(read), []
    experiment.rows(full=False)
    assert read == first and len(set(read)) == 8
    read.clear()
    experiment.rows(full=True)
    assert len(set(read)) == 24


def test_a_damaged_mask_outside_the_sample_is_found_by_the_counting(experiment, monkeypatch):
    monkeypatch.setattr(data, "SAMPLE", 0)
    cut(experiment.mask(0))
    row = experiment.rows(full=False)["train masks"]
    assert (row.status, row.remedy) == (ERROR, "--full names all such masks")
    assert "ü 1 0 mask.png cannot be read" in row.found


def test_only_counts_of_a_whole_list_are_kept_for_training(experiment):
    experiment.mask(0).unlink()
    text = experiment.list_file("val").read_text(encoding="utf-8")
    experiment.list_file("val").write_text(f"{text}\nno pair", encoding="utf-8")
    experiment.rows()
    lists = experiment.root.parent / "lists"
    assert not lists.exists()
    experiment.list_file("val").write_text(text, encoding="utf-8")
    experiment.rows()
    assert {path.name[:3] for path in lists.glob("*.json")} == {"val"}


@pytest.mark.slow
def test_several_workers_find_the_same(experiment):
    cut(experiment.image(0))
    several, one = (experiment.rows(workers=workers) for workers in (2, 1))
    assert several["train images"] == one["train images"]
    assert bad(several) == bad(one) == {"train images": ERROR}


def test_stored_base_labels_have_to_be_there(experiment):
    folder = experiment.root.parent / "base labels"
    opts = ("base_data_root", str(folder))
    rows = experiment.rows(*opts)
    assert bad(rows) == {"train base labels": ERROR, "val base labels": ERROR}
    assert rows["train base labels"].remedy == "python -m util.get_mulway_base_data SETTINGS"
    write_base_labels(experiment.arguments(*opts))
    assert bad(experiment.rows(*opts)) == {}
    (folder / "train" / "0" / experiment.mask(2).name).unlink()
    row = experiment.rows(*opts)["train base labels"]
    assert (row.status, len(row.details)) == (ERROR, 1)


@pytest.mark.parametrize(
    ("data_set", "count"), [("pascal", "5,953"), ("coco", "82,081"), ("demo", None)]
)
def test_another_number_of_lines_than_published_is_a_warning(experiment, data_set, count):
    row = experiment.rows("data_set", data_set)["train_list"]
    assert row.status == (WARNING if count else OK)
    assert count is None or row.found.endswith(f"12 lines; the published list has {count}")


@pytest.mark.parametrize(
    ("data_set", "command"),
    [
        ("pascal", "python -m util.prepare_pascal --voc DIR --sbd DIR --out"),
        ("coco", "python -m util.prepare_coco --coco DIR --out"),
        ("demo", "python -m util.demo_data --out"),
        ("parts", "python -m util.prepare_custom --name parts --images DIR --masks DIR --out"),
    ],
)
def test_the_command_that_makes_the_data_is_named(experiment, data_set, command):
    experiment.root.rename(experiment.root.parent / "moved")
    remedy = experiment.rows("data_set", data_set)["data_root"].remedy
    assert remedy.startswith(f"{command} {shlex.quote(str(experiment.root))}")


def test_without_a_base_learner_the_start_of_stage_1_is_checked(experiment, tmp_path):
    opts = ["base_weight", "none", "backbone_weight"]
    rows = experiment.rows(*opts, "none")
    assert bad(rows) == {"base learner": WARNING}
    assert rows["base learner"].remedy.startswith("python train_base.py SETTINGS ")
    assert rows["ImageNet weights"].found == "none: the backbone starts from random weights"

    path = tmp_path / "resnet18 v2.pth"
    row = experiment.rows(*opts, str(path))["ImageNet weights"]
    assert row.status == ERROR
    assert row.remedy.startswith("python -m util.weights import FILE, or backbone_weight none")
    assert "there is no such file" in row.found

    torch.save(imagenet("resnet18"), path)
    assert experiment.rows(*opts, str(path))["ImageNet weights"].status == OK

    torch.save(imagenet("resnet18") | {"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    assert "7×7" in experiment.rows(*opts, str(path))["ImageNet weights"].found

    torch.save(imagenet("resnet34"), path)
    assert "does not fit" in experiment.rows(*opts, str(path))["ImageNet weights"].found


def test_unset_imagenet_weights_are_an_error(experiment):
    settings = experiment.settings | {"Base": {}}
    experiment.config.write_text(yaml.safe_dump(settings))
    row = experiment.rows("base_weight", "none")["ImageNet weights"]
    assert (row.status, row.found) == (ERROR, "backbone_weight is not set")


def test_a_base_learner_whose_training_is_not_complete_is_a_warning(experiment):
    opts = ("base_weight", "none")
    snapshot = RunFiles(load_config(experiment.config, opts)).base_snapshot
    snapshot.mkdir(parents=True)
    state = light_state(lambda: build_pspnet("resnet18", CLASSES - 1))
    experiment.save(snapshot / "best_epoch_1_0.2000.pth", state)
    experiment.save(snapshot / "last.pth", state, run={"epoch": 1}, optimizer={})
    row = experiment.rows(*opts)["base learner"]
    assert row.status == WARNING and row.found.endswith("its training is not complete")
    assert bad(experiment.rows(*opts, "base_epochs", "1")) == {}


@pytest.mark.slow
def test_given_weights_of_the_whole_model_are_checked(experiment, tmp_path):
    path = tmp_path / "hdmnet.pth"
    opts = ("pre_weight", str(path), "weight", str(path), "base_weight", "none")
    assert bad(experiment.rows(*opts)) == {"pre_weight": ERROR, "weight": ERROR}
    experiment.save(path, light_state(lambda: build_hdmnet("resnet18", CLASSES - 1)), shot=1)
    rows = experiment.rows(*opts)
    assert bad(rows) == {}
    assert "base learner" not in rows
    # Both can be of another shot, not of another network.
    assert bad(experiment.rows(*opts, "shot", "2")) == {}
    other = ("layers", "34", "backbone_weight", "none")
    assert bad(experiment.rows(*opts, *other)) == {"pre_weight": ERROR, "weight": ERROR}


@pytest.mark.slow
def test_weights_of_other_classes_go_with_the_run_s_own_base_learner(experiment, tmp_path):
    path = tmp_path / "coco.pth"
    experiment.save(
        path, light_state(lambda: build_hdmnet("resnet18", 60)), base_classes=[*range(60)]
    )
    opts = ("pre_weight", str(path), "weight", str(path))
    rows = experiment.rows(*opts)
    assert bad(rows) == {} and rows["base learner"].found.startswith(str(experiment.base))
    assert bad(experiment.rows(*opts, "base_weight", "none")) == {"base learner": WARNING}
    assert bad(experiment.rows(*opts, "base_weight", "absent")) == {"base learner": WARNING}
    assert bad(experiment.rows(*opts[:2], "base_weight", "absent")) == {"base learner": ERROR}


def test_the_run_s_own_checkpoint_is_checked_as_the_weights_of_the_test(experiment):
    cfg = load_config(experiment.config)
    snapshot = RunFiles(cfg).snapshot
    snapshot.mkdir(parents=True)
    opts = ("base_weight", "nowhere.pth")
    assert bad(experiment.rows(*opts)) == {"base learner": ERROR}
    path = snapshot / "published.pth"
    state = light_state(lambda: build_hdmnet("resnet18", CLASSES - 1))
    experiment.save(path, state)
    rows = experiment.rows(*opts)
    assert bad(rows) == {"base learner": WARNING}
    assert rows["base learner"].found.endswith("a test does without")
    assert rows["weight"].found == f"{path}: HDMNet for resnet18"
    no_start = ("base_weight", "none", "backbone_weight", "nowhere.pth")
    assert bad(experiment.rows(*no_start)) == {"base learner": WARNING, "ImageNet weights": WARNING}
    # The 1-shot weights are tested at five shots too, though the file does not say their shot.
    assert bad(experiment.rows(*opts, "shot", "2")) == {"base learner": WARNING}
    path.write_bytes(b"damaged")
    assert bad(experiment.rows()) == {"weight": ERROR}


@pytest.mark.slow
def test_a_full_disk_is_an_error(experiment, monkeypatch):
    usage = shutil.disk_usage
    cfg = load_config(experiment.config)
    needed = resources.checkpoint_bytes(cfg, meta_hdmnet(cfg), stage_1=False)

    def leave(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage("/")._replace(free=free))

    leave(needed)
    assert experiment.rows()["disk"].status == OK
    leave(needed - 1)
    row = experiment.rows()["disk"]
    assert row.status == ERROR and "(estimate)" in row.found
    # What an earlier run wrote need not be written again.
    snapshot = RunFiles(cfg).snapshot
    snapshot.mkdir(parents=True)
    (snapshot / "last.pth").write_bytes(b"0")
    assert experiment.rows()["disk"].status == OK
    # A base learner of its own, to be trained first, takes more.
    (snapshot / "last.pth").unlink()
    leave(needed)
    assert experiment.rows("base_weight", "none")["disk"].status == ERROR
    leave(0)
    assert exit_code(experiment.arguments()) == 1


def test_the_estimate_of_checkpoints_is_what_is_written(experiment, tmp_path):
    from util.training.schedule import hdmnet_optimizer

    net = build_hdmnet("resnet18", CLASSES - 1)
    optimizer = hdmnet_optimizer(net, 1e-4)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.save(net.state_dict(), tmp_path / "best.pth")
    state = {"state_dict": net.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "last.pth")
    best, last = (os.path.getsize(tmp_path / name) for name in ("best.pth", "last.pth"))
    cfg = load_config(experiment.config)
    estimate = resources.checkpoint_bytes(cfg, meta_hdmnet(cfg), stage_1=False)
    assert estimate == pytest.approx(best + 3 * last, rel=0.01)


def test_too_little_memory_is_a_warning(experiment, monkeypatch):
    monkeypatch.setattr(resources, "_free_memory", lambda: 100 << 20)
    row = experiment.rows()["memory"]
    assert row.status == WARNING
    assert "100 MiB free" in row.found and "estimate" in row.found
    monkeypatch.setattr(resources, "_free_memory", lambda: None)
    assert experiment.rows()["memory"].status == OK


def test_more_loaders_take_more_memory(experiment, monkeypatch):
    monkeypatch.setattr(resources, "_free_memory", lambda: 2 << 30)
    assert experiment.rows("workers", "2")["memory"].status == OK
    assert experiment.rows("workers", "40")["memory"].status == WARNING


def test_little_shared_memory_is_a_warning(experiment, monkeypatch):
    usage = shutil.disk_usage

    def little(path):
        return usage(path)._replace(free=1 << 20) if str(path) == "/dev/shm" else usage(path)

    monkeypatch.setattr(shutil, "disk_usage", little)
    monkeypatch.setattr(
        os.path, "isdir", lambda path, isdir=os.path.isdir: path == "/dev/shm" or isdir(path)
    )
    row = experiment.rows()["shared memory"]
    assert row.status == WARNING and "--shm-size" in row.remedy
    assert "shared memory" not in experiment.rows("workers", "0")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "required: --config"),
        (["--config", "absent.yaml"], "absent.yaml: no such configuration file"),
        (["--config", "CONFIG", "--opts", "shot", "0"], "--opts: shot = 0"),
        (["--config", "CONFIG", "--processes", "0"], "--processes = 0: must be 1 or more"),
        (["--config", "CONFIG", "--workers", "0"], "--workers = 0: must be 1 or more"),
        (["--config", "CONFIG", "--show", "-1"], "--show = -1: must be 0 or more"),
        (["--config", "CONFIG", "--fulll"], "unrecognized arguments: --fulll"),
    ],
)
def test_unusable_arguments_are_one_line_and_code_2(argv, message, experiment, error_line):
    argv = [str(experiment.config) if word == "CONFIG" else word for word in argv]
    assert message in error_line(main, argv)


def test_the_table_lines_up_and_counts():
    rows = [
        Row(OK, "one", "fine"),
        Row(ERROR, "another", "wrong", ("a", "b", "c"), "do it"),
        Row(WARNING, "x", "odd"),
    ]
    assert table(rows, 2).splitlines() == [
        "ok       one      fine",
        "error    another  wrong",
        "                  - a",
        "                  - b",
        "                  - and 1 more (--show 0 names all)",
        "                  remedy: do it",
        "warning  x        odd",
        "1 error, 1 warning",
    ]
    assert "- c" in table(rows, 0)


def test_data_errors_of_the_loaders_name_the_check(experiment, monkeypatch):
    experiment.mask(0).unlink()
    cfg = load_config(experiment.config)
    for build in (build_train_loader, build_base_data):
        with pytest.raises(DataError, match="files that do not exist"):
            build(cfg)
    experiment.list_file("val").unlink()
    with pytest.raises(DataError, match=r"val\.txt"):
        build_episodes(cfg, "val", testing=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_data_errors_within_a_pass_name_the_check(workers, experiment):
    train, _ = build_base_data(load_config(experiment.config, ["workers", str(workers)]))
    for entry in experiment.entries():
        (experiment.root / entry[0]).write_bytes(b"")
    with pytest.raises(DataError, match=r"^image .*\.jpg cannot be read as an image"):
        next(iter(train))


@pytest.mark.slow
def test_the_scripts_name_the_command_and_it_finds_the_problem(
    experiment, monkeypatch, capsys, error_line
):
    experiment.mask(0).unlink()
    words = ["train_base.py", *experiment.arguments("workers", "0"), "--viz"]
    monkeypatch.setattr(sys, "argv", words)
    line = error_line(train_base.main)
    command = re.search(r"; `(python -m util\.verify .*)` checks everything$", line)[1]
    assert command.split()[-2:] == ["workers", "0"]
    assert exit_code(shlex.split(command)[3:]) == 1
    assert "ü 1 0 mask.png" in capsys.readouterr().out


def test_the_named_command_has_no_opts_where_no_settings_were_given(monkeypatch, error_line):
    @exits_on_user_error
    def script():
        raise DataError("no data")

    monkeypatch.setattr(sys, "argv", ["train.py", "--config", "a b.yaml", "--opts", "--viz"])
    command = "`python -m util.verify --config 'a b.yaml'`"
    assert error_line(script) == f"error: no data; {command} checks everything\n"
