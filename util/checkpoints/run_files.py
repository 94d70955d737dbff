"""Where the files of an experiment lie, and which checkpoint stage 2 and the test start from."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from model.backbone import find_backbone
from util.checkpoints.io import read_checkpoint, save_checkpoint
from util.config import Config
from util.runtime.errors import UserError

LAST = "last.pth"
PREVIOUS = "previous.pth"
PUBLISHED = "published.pth"  # imported by util.weights
PUBLISHED_BASE = "best.pth"
PUBLIC = "public"  # weights that come from a hub when they are needed
BEST = "best"
_BEST = re.compile(r"best_epoch_(\d+)_(\d+\.\d+)\.pth")


class Best(NamedTuple):
    """A best checkpoint, by the values in its name."""

    miou: float
    epoch: int
    path: Path


class BaseLearner(NamedTuple):
    """A checkpoint of stage 1, and whether its training is complete."""

    path: Path
    complete: bool


def find_best(snapshot: Path) -> Best | None:
    """Return the best checkpoint in a snapshot folder; None without one."""
    return max(_best_files(snapshot), default=None)


def find_checkpoint(given: str, key: str, own: Sequence[Path] = ()) -> Path:
    """Return the checkpoint that the value of a setting means.

    Args:
        given: A file, or the name of one in `own`; a folder of a run or of its checkpoints, which
            means the best one in it; or the word "best", the best one in `own`.
        key: The setting, for the message.
        own: Folders of the checkpoints of this experiment, the first choice first.

    Raises:
        UserError: There is no such checkpoint.
    """
    if given == BEST:
        for folder in own:
            if best := find_best(folder):
                return best.path
        where = " or ".join(map(str, own)) or "a command without settings: name the run's folder"
        raise UserError(f"{key} = {given}: there is no best checkpoint in {where}")
    for path in (Path(given), *(folder / given for folder in own)):
        if path.is_file():
            return path
    if not Path(given).is_dir():
        raise UserError(f"{key} = {given}: there is no such file or folder")
    found = _checkpoint_in(Path(given)) or _checkpoint_in(Path(given, "snapshot"))
    if found is None:
        raise UserError(f"{key} = {given}: there is no checkpoint in this folder")
    return found


def _checkpoint_in(folder: Path) -> Path | None:
    """Return the best checkpoint of a folder; without one the last, else a published one."""
    if best := find_best(folder):
        return best.path
    paths = (folder / name for name in (LAST, PUBLISHED, PUBLISHED_BASE))
    return next((path for path in paths if path.is_file()), None)


def save_best(snapshot: Path, epoch: int, miou: float, content: dict[str, Any]) -> Path:
    """Save a new best checkpoint, named by epoch and mIoU in [0, 1], then remove the older ones."""
    older = [best.path for best in _best_files(snapshot)]
    path = snapshot / f"best_epoch_{epoch}_{miou:.4f}.pth"
    save_checkpoint(path, content)
    for other in older:
        if other != path:
            other.unlink(missing_ok=True)
    return path


def own_checkpoints(snapshot: Path) -> list[Path]:
    """Return the checkpoints in a snapshot folder that its run continues from, the newest first."""
    return [path for path in (snapshot / LAST, snapshot / PREVIOUS) if path.exists()]


def remove_leftovers(snapshot: Path) -> None:
    """Remove what processes that were killed during a save left in a snapshot folder.

    Only for the process that writes there: a checkpoint being written by another is removed too.
    """
    for path in snapshot.glob("*.tmp"):
        path.unlink(missing_ok=True)


def _best_files(snapshot: Path) -> list[Best]:
    return [
        Best(float(match[2]), int(match[1]), path)
        for path in snapshot.glob("best_epoch_*.pth")
        if (match := _BEST.fullmatch(path.name))
    ]


class RunFiles:
    """The files of both stages of one experiment, as its settings place them.

    Attributes:
        fold: The name of the fold in paths.
        folder: The folder of stage 2, exp/DATASET/HDMNet/EXP/NET. EXP is `exp_name` or `fold`;
            a run of several shots appends their number (split0_5shot), so that it never
            overwrites the 1-shot one, one without a base learner appends _nobase, and one with
            other `mixed_images` than drop appends their value.
        base_folder: The folder of stage 1, exp/DATASET/PSPNet/splitN/NET. Its labels differ where
            `mixed_images` is ignore: splitN_ignore.
        snapshot, base_snapshot: The folders of their checkpoints.
        result: The folder of test reports and pictures.
        published_base: The file in which the published code looks for the base learner.
        imagenet_weight: `backbone_weight` or, where it is unset, the file that the published code
            starts from. For a backbone of timm this is PUBLIC: its weights are in the cache of
            huggingface_hub.
    """

    def __init__(self, cfg: Config):
        self.cfg = cfg
        contiguous = cfg.effective_folds != cfg.folds  # use_split_coco: False
        self.fold = f"split{cfg.split}" + ("_contiguous" if contiguous else "")
        experiment = cfg.exp_name or self.fold
        if cfg.shot != 1:
            experiment += f"_{cfg.shot}shot"
        if cfg.base_learner == "none":
            experiment += "_nobase"
        if cfg.mixed_images != "drop":
            experiment += f"_{cfg.mixed_images}"
        base = self.fold + ("_ignore" if cfg.mixed_images == "ignore" else "")
        root = Path(cfg.exp_dir, cfg.data_set)
        self.folder = root / "HDMNet" / experiment / cfg.net_name
        self.base_folder = root / "PSPNet" / base / cfg.net_name
        self.snapshot, self.base_snapshot = self.folder / "snapshot", self.base_folder / "snapshot"
        self.result = self.folder / "result"
        published = Path("initmodel", "PSPNet", cfg.data_set, base, cfg.net_name)
        self.published_base = published / PUBLISHED_BASE
        self.imagenet_weight = cfg.backbone_weight
        entry = find_backbone(cfg.backbone)
        if cfg.backbone_weight is None and entry.hub:
            self.imagenet_weight = str(Path("initmodel", entry.file)) if entry.file else PUBLIC

    def find_base_learner(self) -> BaseLearner | None:
        """Return what stage 2 builds on.

        The order is `base_weight`, a completed stage 1, a published base learner, an incomplete
        stage 1.

        Raises:
            UserError: `base_weight` names no checkpoint.
        """
        if self.cfg.base_weight:
            own = [self.base_snapshot]
            return BaseLearner(find_checkpoint(self.cfg.base_weight, "base_weight", own), True)
        best = find_best(self.base_snapshot)
        complete = _epochs_done(self.base_snapshot) >= self.cfg.base_epochs
        if best is not None and complete:
            return BaseLearner(best.path, True)
        if self.published_base.is_file():
            return BaseLearner(self.published_base, True)
        return None if best is None else BaseLearner(best.path, False)

    def find_pre_weight(self) -> Path:
        """Return the checkpoint that `pre_weight`, which must be set, names.

        Raises:
            UserError: There is no such checkpoint.
        """
        return find_checkpoint(str(self.cfg.pre_weight), "pre_weight", self._snapshots)

    def find_test_weight(self) -> Path:
        """Return the checkpoint to test.

        The order is `weight`, the best or an imported one of this run, then those of the 1-shot run.

        Raises:
            UserError: There is no checkpoint.
        """
        if self.cfg.weight:
            return find_checkpoint(self.cfg.weight, "weight", self._snapshots)
        for snapshot in self._snapshots:
            if path := _checkpoint_in(snapshot):
                return path
        raise UserError(
            f"no trained model in {self.snapshot}; train it by `{self.command('train.sh')}` or set "
            "weight"
        )

    @property
    def _snapshots(self) -> list[Path]:
        """The folders of the checkpoints of this run and, at several shots, of the 1-shot run."""
        one_shot = RunFiles(self.cfg.model_copy(update={"shot": 1}))
        return list(dict.fromkeys([self.snapshot, one_shot.snapshot]))

    def command(self, script: str) -> str:
        """Return the command line of a shell script for this experiment, for messages."""
        cfg = self.cfg
        shot = f" shot {cfg.shot}" if cfg.shot > 1 else ""
        shot += " base_learner none" if cfg.base_learner == "none" else ""
        shot += f" mixed_images {cfg.mixed_images}" if cfg.mixed_images != "drop" else ""
        return f"NET={cfg.net} sh {script} split{cfg.split} {cfg.data_set} 1{shot}"


def _epochs_done(snapshot: Path) -> float:
    """Return the epochs of the last checkpoint; unlimited where only a best one was left."""
    if not (snapshot / LAST).exists():
        return math.inf
    try:
        return read_checkpoint(snapshot / LAST, mapped=True)["run"]["epoch"]
    except (UserError, KeyError):
        return 0  # It is damaged: the training that resumes finds out from which checkpoint.
