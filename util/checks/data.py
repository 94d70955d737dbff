"""The checks of `util.verify` on a dataset: lists, files, masks, and the images of each class."""

import os
import random
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from util.checks.rows import ERROR, OK, WARNING, Row
from util.config import Config
from util.data.dataset import BaseLabels, base_label_dir, base_label_path
from util.data.folds import LIST_PARTS, fold_classes, ignore_value, mask_type
from util.data.hsnet import draw_hsnet_runs
from util.data.images import (
    Entry,
    as_shown,
    read_labels,
    read_whole_image,
    require_same_size,
    unknown_class,
)
from util.data.list_cache import Counts, count_mask
from util.data.lists import (
    Rules,
    check_any,
    check_classes,
    counting_sizes,
    filter_entries,
    parse_entries,
    shortages,
)
from util.data.loaders import (
    base_batch_size,
    check_batch,
    config_fold,
    learner_classes,
    list_rules,
    mask_form,
    training_grid,
)
from util.prepare_benchmark import BENCHMARKS
from util.prepare_coco import COUNTS as COCO_COUNTS
from util.prepare_pascal import SBD_COUNT, VAL_COUNT, VOC_COUNT
from util.runtime.errors import UserError
from util.runtime.parallel import run_parallel
from util.training.model import needs_stage_1

SAMPLE = 200  # pairs of a list that are read where not all are
_PUBLISHED_COUNTS = {
    "pascal": {"train": SBD_COUNT + VOC_COUNT, "val": VAL_COUNT},
    "coco": COCO_COUNTS,
}


def data_rows(
    cfg: Config, full: bool, workers: int | None, settings: str, processes: int = 1
) -> Iterator[Row]:
    """Check the data of an experiment.

    Args:
        cfg: The settings.
        full: Read every image and mask, not a sample. Either way the files of both lists are looked
            for, and the pixels of all masks counted (once: see `util.data.list_cache`).
        workers: Processes of this check; None: all cores.
        settings: The words of the command line that give `cfg`, for commands.
        processes: Processes that train.
    """
    remedy = _how_to_get(cfg)
    root = cfg.data_root
    if not root or not os.path.isdir(root):
        found = f"{root} is not a folder" if root else "is not set"
        yield Row(ERROR, "data_root", found, remedy=remedy)
        root = None
    else:
        yield Row(OK, "data_root", root)
    for part in LIST_PARTS:
        list_file = getattr(cfg, f"{part}_list")
        if not list_file or not os.path.isfile(list_file):
            found = f"there is no file {list_file}" if list_file else "is not set"
            yield Row(ERROR, f"{part}_list", found, remedy=remedy)
        elif root:
            yield from _Part(cfg, part, root, list_file, workers, remedy, processes).rows(
                full, settings
            )


def _how_to_get(cfg: Config) -> str:
    """Return the command that makes the dataset."""
    out = shlex.quote(cfg.data_root or "DIR")
    if cfg.data_set == "demo":
        return f"python -m util.demo_data --out {out}"
    sources = {"pascal": "pascal --voc DIR --sbd DIR", "coco": "coco --coco DIR"}
    sources |= {name: f"benchmark {name} --root DIR" for name in BENCHMARKS}
    command = sources.get(cfg.data_set, f"custom --name {cfg.data_set} --images DIR --masks DIR")
    folder = os.path.dirname(cfg.train_list or "") or f"lists/{cfg.data_set}"
    lists = "" if folder == f"lists/{cfg.data_set}" else f" --lists {shlex.quote(folder)}"
    return f"python -m util.prepare_{command} --out {out}{lists}"


@dataclass(frozen=True)
class _Part:
    """The checks of one list."""

    cfg: Config
    part: str
    root: str
    list_file: str
    workers: int | None
    remedy: str
    processes: int

    def rows(self, full: bool, settings: str) -> Iterator[Row]:
        cfg, part = self.cfg, self.part
        try:
            listed, problems = parse_entries(self.root, self.list_file, mask_form(self.cfg))
        except UserError as error:
            yield Row(ERROR, f"{part}_list", str(error), remedy=self.remedy)
            return
        yield self._list_row(len(listed), problems)

        absent = run_parallel(
            partial(_absent, self.root), listed, self.workers, f"finding {part} files"
        )
        if missing := tuple(path for of_pair in absent for path in of_pair):
            found = f"{len(missing):,} of {2 * len(listed):,} do not exist"
            yield Row(ERROR, f"{part} files", found, missing, self.remedy)
        there = [entry for entry, of_pair in zip(listed, absent, strict=True) if not of_pair]
        if not there:
            return

        sampled = not full and len(there) > SAMPLE
        read = random.Random(0).sample(there, SAMPLE) if sampled else there
        wrong = run_parallel(
            partial(_pair_problems, self.root), read, self.workers, f"reading {part} files"
        )
        found = f"{len(read):,} of {len(there):,} read with their masks"
        if wrongs := tuple(problem for of_pair in wrong for problem in of_pair):
            remedy = f"replace these files, or all: {self.remedy}"
            found = f"{len(wrongs):,} problems in {found}"
            yield Row(ERROR, f"{part} images", found, wrongs, remedy)
        else:
            yield Row(OK, f"{part} images", found + ("; --full reads all" if sampled else ""))
        damaged = {entry for entry, of_pair in zip(read, wrong, strict=True) if of_pair}
        usable = [entry for entry in there if entry not in damaged]
        if cfg.base_data_root:
            yield self._base_label_row(cfg.base_data_root, usable, settings)
        if part == "train" and needs_stage_1(cfg):
            yield self._stage_1_row(len(usable))
        yield from self._class_rows(usable, set(read), whole=usable == listed and not problems)

    def _list_row(self, pairs: int, problems: list[str]) -> Row:
        subject, count = f"{self.part}_list", pairs + len(problems)
        found = f"{self.list_file}: {count:,} lines"
        expected = _PUBLISHED_COUNTS.get(self.cfg.data_set, {}).get(self.part, count)
        if problems:
            found += f", {len(problems):,} of them not IMAGE MASK"
            return Row(ERROR, subject, found, tuple(problems), self.remedy)
        if count != expected:
            found += f"; the published list has {expected:,}"
            return Row(WARNING, subject, found, remedy=self.remedy)
        return Row(OK, subject, found)

    def _base_label_row(self, base_data_root: str, entries: list[Entry], settings: str) -> Row:
        folder = base_label_dir(base_data_root, self.part, self.cfg.split)
        subject = f"{self.part} base labels"
        remedy = f"python -m util.get_mulway_base_data {settings}"
        try:
            BaseLabels(config_fold(self.cfg), entries, folder)
        except UserError as error:
            return Row(ERROR, subject, str(error), remedy=remedy)
        paths = [base_label_path(folder, mask) for _, mask in entries]
        missing = tuple(path for path in paths if not os.path.isfile(path))
        if missing:
            found = f"{len(missing):,} of {len(paths):,} do not exist"
            return Row(ERROR, subject, found, missing, remedy)
        return Row(OK, subject, f"{len(paths):,} in {folder}")

    def _stage_1_row(self, images: int) -> Row:
        """Check that the images suffice for an iteration of stage 1, which trains on all of them."""
        size, accum = base_batch_size(self.cfg, self.processes), self.cfg.grad_accum
        remedy = f"more images, or base_batch_size {images}"
        try:
            check_batch(self.list_file, images, size, self.processes, accum, "base_batch_size")
            remedy = "--opts base_learner none"
            learner_classes(self.cfg)
        except UserError as error:
            return Row(ERROR, "stage 1 batch", str(error), remedy=remedy)
        found = f"{size} × {self.processes} × {accum} of {images:,} images"
        return Row(OK, "stage 1 batch", found)

    def _class_rows(self, entries: list[Entry], read: set[Entry], whole: bool) -> Iterator[Row]:
        """Check the values of all masks, and the images that each fold finds.

        Args:
            entries: Usable entries of the list.
            read: Those whose supports are looked at.
            whole: Whether they are the whole list: only then are the counts kept for training.
        """
        cfg, subject = self.cfg, f"{self.part} masks"
        try:
            with tempfile.TemporaryDirectory() as elsewhere:
                folder = cfg.list_dir if whole else elsewhere
                place = (self.root, self.list_file, entries, folder, self.workers)
                grid = training_grid(cfg) if cfg.min_cells else None
                counts = counting_sizes(*place, min_cells=cfg.min_cells, grid=grid)
        except UserError as error:
            found = f"classes not counted: {error}"
            yield Row(ERROR, subject, found, remedy="--full names all such masks")
            return
        try:
            check_classes(counts, self.list_file)
        except UserError as error:
            yield Row(ERROR, subject, str(error), remedy=self.remedy)
            return
        pairs, illegal = [], []
        for entry, pixels in zip(entries, counts, strict=True):
            if pixels and max(pixels) > cfg.num_classes:
                path = os.path.join(self.root, entry[1])
                illegal.append(str(unknown_class(path, max(pixels), cfg.num_classes)))
            else:
                pairs.append((entry, pixels))
        if illegal:
            found = f"{len(illegal):,} of {len(counts):,} hold values that are no class"
            remedy = f"{self.remedy}; or set num_classes, or the data_set that the masks are of"
            yield Row(ERROR, subject, found, tuple(illegal), remedy)
        else:
            ignored = ignore_value(mask_type(cfg.num_classes))
            found = f"values of all {len(counts):,} within 0..{cfg.num_classes} and {ignored}"
            yield Row(OK, subject, found)
        for split in sorted(range(cfg.fold_count), key=lambda split: (split != cfg.split, split)):
            yield self._fold_row(split, self.part, pairs)
        if self.part == "val" and cfg.select_on == "base":
            yield self._fold_row(cfg.split, "train", pairs)
        if self.part == "val" and config_fold(cfg).val:
            yield self._fold_row(cfg.split, "test", pairs)
        yield from self._support_rows([pair for pair in pairs if pair[0] in read])

    def _support_rows(self, pairs: Sequence[tuple[Entry, Counts]]) -> Iterator[Row]:
        """Warn of supports whose mask covers no cell of the network's grid."""
        cfg, grid = self.cfg, training_grid(self.cfg)
        entries, counts = [entry for entry, _ in pairs], [pixels for _, pixels in pairs]
        fold = config_fold(cfg)
        lists = filter_entries(entries, counts, fold, self.part, list_rules(cfg))
        masks = [os.path.join(self.root, mask) for _, mask in lists.entries]
        count = partial(count_mask, self.root, grid=grid)
        cells = run_parallel(count, lists.entries, self.workers, f"supports of {self.part}")
        supports = [(c, i) for c, indices in lists.class_files.items() for i in indices]
        vanished = tuple(f"{masks[i]}: class {c}" for c, i in supports if c not in cells[i])
        if vanished:
            found = (
                f"{len(vanished):,} of {len(supports):,} that were read cover no cell of the "
                f"{grid.height}×{grid.width} grid at {grid.size} px"
            )
            remedy = "min_cells 1 leaves them out; larger train_h and train_w have a finer grid"
            yield Row(WARNING, f"{self.part} supports", found, vanished, remedy)

    def _fold_row(self, split: int, part: str, pairs: Sequence[tuple[Entry, Counts]]) -> Row:
        """Check what a fold finds in this list by the rules of `part`."""
        cfg = self.cfg
        fold = fold_classes(cfg.num_classes, cfg.effective_folds, split, cfg.num_folds)
        entries, counts = [entry for entry, _ in pairs], [pixels for _, pixels in pairs]
        rules = list_rules(cfg)
        lists = filter_entries(entries, counts, fold, part, rules)
        problems = list(shortages(lists, cfg.shot, cfg.class_names, self.list_file))
        try:
            check_any(lists, fold, part, rules, self.list_file)
            if self.part == "train":
                images = len(lists.entries)
                check_batch(self.list_file, images, cfg.batch_size, self.processes, cfg.grad_accum)
            elif cfg.hsnet_list and (split, part) == (cfg.split, "val"):
                any_size = filter_entries(entries, counts, fold, "test", Rules(min_pixels=1))
                draw_hsnet_runs(any_size, cfg.shot, 1, 1, cfg.hsnet_list)
        except UserError as error:
            problems.append(str(error))
        sizes = [len(files) for files in lists.class_files.values()]
        found = (
            f"{len(lists.entries):,} images, {min(sizes):,} to {max(sizes):,} of each of "
            f"{len(sizes)} classes, for {cfg.shot}-shot"
        )
        others = {"train": " (base classes)", "test": " (test classes)"}
        subject = f"fold {split} {self.part}" + (others[part] if part != self.part else "")
        if problems:
            # The experiment at hand needs its own fold only.
            status = ERROR if split == cfg.split else WARNING
            remedy = "more images of these classes, or a lower shot, min_pixels, batch_size or grad_accum"
            if part == "train" and rules.mixed_images == "drop" and fold.held_out:
                remedy += ", or mixed_images background"
            return Row(status, subject, found, tuple(problems), remedy)
        names = cfg.class_names
        unseen = tuple(
            f"class {class_id}{f' ({names[class_id - 1]})' if names else ''} is in none"
            for class_id, files in lists.class_files.items()
            if not files
        )
        if unseen:
            return Row(WARNING, subject, found, unseen, "images of them, or leave them out")
        return Row(OK, subject, found)


def _absent(root: str, entry: Entry) -> list[str]:
    paths = (os.path.join(root, name) for name in entry)
    return [path for path in paths if not os.path.isfile(path)]


def _pair_problems(root: str, entry: Entry) -> list[str]:
    """Return what is wrong with an image and its mask."""
    problems, pixels = [], []
    paths = [os.path.join(root, name) for name in entry]
    read_size = partial(read_whole_image, paths[0], pixels=False)
    for read in (read_size, partial(read_labels, root, entry)):
        try:
            pixels.append(read())
        except UserError as error:
            problems.append(str(error))
    if not problems:
        image, mask = pixels
        try:
            mask = as_shown(mask, image.shape, paths[0])
            require_same_size(image, paths[0], mask, paths[1])
        except UserError as error:
            problems.append(str(error))
    return problems
