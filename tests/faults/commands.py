"""Seven commands on small inputs, each in a folder of its own that stands for the repository."""

import hashlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save as serialise

import util.config.loading
import util.preparation.custom_config
import util.preparation.shared
from model.backbone import find_backbone
from tests.faults.laboratory import BACKBONE, Laboratory, Run
from tests.paths import ROOT
from tests.util.coco_files import write_coco
from tests.util.hub import Hub
from tests.util.weight_data import timm_state
from util.checkpoints.io import read_checkpoint
from util.checkpoints.run_files import LAST, PREVIOUS
from util.config.schema import net_name

NET = net_name(BACKBONE)
SAVE_ITERS = 3  # iterations between two checkpoints
TESTED = 40  # episodes
# What is not the same in two runs, or only for the commands themselves.
_OTHER = re.compile(
    r".*(/log\.txt|\.jsonl|\.lock|/curves\.png|/previous\.pth|/test-[^/]*\.md)|config/(base|demo)/.*"
    r"|hub/.*"
)


def positions(snapshot: Path) -> set[int]:
    """The iterations that the newest whole checkpoint of a training holds."""
    for path in (snapshot / LAST, snapshot / PREVIOUS):
        if path.exists():
            saved = read_checkpoint(path)
            return set(range(saved["run"]["epoch"] * saved["steps"] + saved["run"]["step"]))
    return set()


def journal_lines(home: Path) -> set[int]:
    """The episodes that a test has counted."""
    result = home / f"exp/demo/HDMNet/split0/{NET}/result"
    if any(result.glob("test-*.json")):
        return set(range(TESTED))
    return set(range(sum(path.read_bytes().count(b"]\n") for path in result.glob("*.jsonl"))))


def files(pattern: str) -> Callable[[Path], set[tuple[str, int, int]]]:
    """Return the function that gives what files there are, which one and from when each is."""

    def found(home: Path) -> set[tuple[str, int, int]]:
        status = [(path, path.stat()) for path in home.glob(pattern) if ".tmp" not in path.name]
        return {(str(path), one.st_ino, one.st_mtime_ns) for path, one in status}

    return found


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        title: for the table.
        words: of its command line, in a home.
        done: returns what of its work is done and saved in a home; what was done stays so.
        goes_on: what the same command does after a kill, for the table.
    """

    title: str
    words: list[Any]
    done: Callable[[Path], set]
    goes_on: str


def build_commands(lab: Laboratory, hub: Hub) -> dict[str, Command]:
    """Return the commands; a hub serves the weights that one of them fetches."""
    config = ["--config", "config/demo/demo_split0_resnet18.yaml", "--opts", *lab.settings]
    config += [
        "workers=0",
        "evaluate=True",
        "val_num=6",
        "epochs=2",
        "base_epochs=2",
        "base_val_freq=1",
    ]
    config += [f"save_iters={SAVE_ITERS}", f"base_weight={lab.base}"]
    weights = lab.undisturbed()
    coco = lab.folder / "coco"
    write_coco(coco)
    hub.files[find_backbone("resnet50").hub] = serialise(timm_state("resnet50s"))
    mark = [lab.data / "JPEGImages/val_0004.jpg", "20,20,120,120"]
    for name in ("JPEGImages", "SegmentationClassAug"):
        (lab.folder / "mine" / name).mkdir(parents=True)
        for path in (lab.data / name).glob("train_00[0-2]*"):
            shutil.copy(path, lab.folder / "mine" / name)
    masks = [
        *("--images", lab.folder / "mine/JPEGImages"),
        *("--masks", lab.folder / "mine/SegmentationClassAug"),
        *("--name", "mine", "--min_pixels", "50"),
    ]
    prepared = ["--out", "root", "--workers", "1", "--copy"]
    training = "goes on from the last checkpoint"
    return {
        "train_base": Command(
            "stage 1 (`train_base.py`)",
            [ROOT / "train_base.py", *config],
            lambda home: positions(home / f"exp/demo/PSPNet/split0/{NET}/snapshot"),
            training,
        ),
        "train": Command(
            "stage 2 (`train.py`)",
            [ROOT / "train.py", *config],
            lambda home: positions(home / f"exp/demo/HDMNet/split0/{NET}/snapshot"),
            training,
        ),
        "test": Command(
            "test (`test.py`)",
            [ROOT / "test.py", *config, f"weight={weights}", f"test_num={TESTED}", "vis_num=1"],
            journal_lines,
            "keeps the episodes that were counted",
        ),
        "prepare_custom": Command(
            "`util.prepare_custom`",
            ["-m", "util.prepare_custom", *masks, *prepared],
            files("root/index_masks/*"),
            "keeps the images and masks that are done",
        ),
        "prepare_coco": Command(
            "`util.prepare_coco`",
            ["-m", "util.prepare_coco", "--coco", coco, *prepared],
            files("root/**/*2014/*"),
            "keeps the images and masks that are done",
        ),
        "predict": Command(
            "`predict.py`",
            [
                *(ROOT / "predict.py", "--weights", weights, "--support", *mark),
                *(
                    "--query",
                    lab.data / "JPEGImages/val_000[0-5].jpg",
                    "--out",
                    "labels",
                    "--review",
                ),
                *("--format", "coco", "labelme", "overlay", "--no_refine", "--device", "cpu"),
            ],
            files("labels/masks/*"),
            "keeps the pictures that are done",
        ),
        "fetch": Command(
            "`util.weights fetch`",
            ["-m", "util.weights", "fetch", "resnet50"],
            files("hub/*/blobs/*[0-9a-f]"),
            "keeps a download that is complete",
        ),
    }


@dataclass(frozen=True)
class Preparation:
    """Sets up a process to run a command in a home.

    Attributes:
        home: the folder that stands for the repository.
        address: of the hub.
        events: a file that gets a byte for everything that the process does to files.
        dies_at: the number of the event before which it kills itself; 0 for none.
    """

    home: Path
    address: str
    events: Path
    dies_at: int = 0

    def __call__(self) -> None:
        util.preparation.custom_config.ROOT = util.preparation.shared.ROOT = self.home
        util.config.loading.DATASETS = str(self.home / "config/datasets")
        # It reads the environment when it is loaded, which it is.
        from huggingface_hub import constants

        constants.ENDPOINT = self.address
        constants.HUGGINGFACE_CO_URL_TEMPLATE = (
            self.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        constants.HF_HUB_CACHE = str(self.home / "hub")
        file = os.open(self.events, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        process, number = os.getpid(), 0

        def look(event: str, arguments: tuple) -> None:
            nonlocal number
            opened = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            changes = ("os.rename", "os.remove", "os.link", "os.symlink", "os.mkdir")
            if (opened or event in changes) and os.getpid() == process:
                number += 1
                os.write(file, b".")
                if number == self.dies_at:
                    os.kill(process, signal.SIGKILL)

        # Python calls it before it opens, renames or removes a file.
        sys.addaudithook(look)


class Home:
    """A folder that stands for the repository, in which a command runs.

    Args:
        folder: that is made.
        command: that runs.
        hub: for its downloads.
    """

    def __init__(self, folder: Path, command: Command, hub: Hub):
        self.folder, self.command, self.hub = folder, command, hub
        for name in ("base", "datasets", "demo"):
            shutil.copytree(ROOT / "config" / name, folder / "config" / name)

    def start(self, dies_at: int = 0, limit: int = 0) -> Run:
        """Start the command; see `Preparation` and `start_python`."""
        number = len(list(self.folder.parent.glob(f"{self.folder.name}-*.log")))
        log = self.folder.parent / f"{self.folder.name}-{number}.log"
        events = self.folder.parent / f"{self.folder.name}.events"
        return Run(
            self.command.words,
            log,
            {"OMP_NUM_THREADS": "1"},
            limit=limit,
            folder=self.folder,
            prepare=Preparation(self.folder, self.hub.address, events, dies_at),
        )

    def events(self) -> int:
        """Return how many events the last start had."""
        return self.folder.with_suffix(".events").stat().st_size

    def done(self) -> set:
        return self.command.done(self.folder)

    def outcome(self) -> dict[str, Any]:
        """Return the content of every file whose content is the same in each run, by its name."""
        names = (
            (path, path.relative_to(self.folder).as_posix())
            for path in self.folder.rglob("*")
            if path.is_file()
        )
        return {
            name: _content(path, name)
            for path, name in names
            if not _OTHER.fullmatch(name) and not name.endswith(".tmp")
        }

    def leftovers(self) -> list[Path]:
        """Return the temporary files that are there, but for those of huggingface_hub in its cache."""
        hub = self.folder / "hub"
        return [path for path in self.folder.rglob("*.tmp") if hub not in path.parents]


def _content(path: Path, name: str) -> Any:
    data = path.read_bytes()
    if path.suffix == ".pth" and name.startswith("exp"):
        saved = read_checkpoint(path)
        digest = hashlib.sha256()
        for key, value in sorted(saved["state_dict"].items()):
            digest.update(key.encode() + value.numpy().tobytes())
        return saved.get("run"), digest.hexdigest()
    if name.startswith("lists") and path.suffix == ".json":
        # Without the times of the masks.
        return [[size, counts] for size, _, counts in json.loads(data)["masks"]]
    if "/test-" in name and path.suffix == ".json":
        return {k: v for k, v in json.loads(data).items() if k not in ("environment", "work")}
    return data
