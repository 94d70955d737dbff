"""Data loaders of both stages, built from the configuration.

In training the order and the episodes follow torch's and Python's global generators, which the
training loop seeds. No loader keeps its workers between passes: each pass draws a new base seed
from torch's generator and seeds its workers from it, which is part of the published protocol.
"""

from functools import cache

import torch
from torch.utils.data import Dataset, RandomSampler, Sampler
from torch.utils.data.distributed import DistributedSampler

from model.backbone import build_backbone
from util.config import Config
from util.data.cells import Grid
from util.data.data_loader import Loader, TrainLoader
from util.data.dataset import BaseDataset, base_label_dir
from util.data.episodes import EpisodeDataset
from util.data.folds import MAX_CLASSES, Fold, fold_classes
from util.data.lists import MaskForm, Rules, check_enough, existing_entries, load_lists
from util.data.transform import Compose, EvalTransform, base_train_transform, train_transform
from util.runtime.errors import DataError, UserError, errors_as


@errors_as(DataError)
def build_train_loader(
    cfg: Config, rank: int = 0, world_size: int = 1, batches: tuple[int, int] | None = None
) -> TrainLoader:
    """Return the loader of shuffled training episodes of stage 2, which show base classes.

    `loader.set_epoch(epoch)` has to be called before each pass.

    Args:
        cfg: The settings.
        rank: Number of this process.
        world_size: Number of processes.
        batches: Episodes of one process at a time and the number of such batches in an iteration;
            None takes both from the settings.

    Raises:
        UserError: There are too few images.
    """
    dataset = build_episodes(cfg, "train", testing=False)
    batch_size, grad_accum = batches or (cfg.batch_size, cfg.grad_accum)
    _, list_file = data_paths(cfg, "train")
    check_batch(list_file, len(dataset), batch_size, world_size, grad_accum)
    return _shuffled(cfg, dataset, batch_size, rank, world_size)


def evaluation_loader(dataset: Dataset, workers: int) -> Loader:
    """Return a loader of one item a batch, in order."""
    return Loader(dataset, workers, batch_size=1, pin_memory=torch.cuda.is_available())


@errors_as(DataError)
def build_episodes(
    cfg: Config, part: str, testing: bool, list_part: str | None = None
) -> EpisodeDataset:
    """Return the episodes of a part.

    Args:
        cfg: The settings.
        part: "train" (base classes), "val" or "test" (held-out classes; where the division into
            classes is fixed, those of this part).
        testing: Whether to use the transform of the test and to add labels at the original size;
            else the random transforms of training are used.
        list_part: The part whose list of images is used; None is `part`, or "val" for "test".

    Raises:
        UserError: There are too few images.
    """
    transform: Compose
    list_part = list_part or {"test": "val"}.get(part, part)
    data_root, list_file = data_paths(cfg, list_part)
    fold = config_fold(cfg)
    grid = training_grid(cfg) if cfg.min_cells else None
    rules, form = list_rules(cfg), mask_form(cfg)
    lists = load_lists(data_root, list_file, fold, part, cfg.list_dir, rules, grid, form)
    check_enough(lists, cfg.shot, cfg.class_names, where=list_file)
    if testing:
        transform = EvalTransform((cfg.val_size, cfg.val_size), cfg.resized_val)
    else:
        scale, rotate = (cfg.scale_min, cfg.scale_max), (cfg.rotate_min, cfg.rotate_max)
        transform = train_transform((cfg.train_h, cfg.train_w), scale, rotate)
    folder = _base_label_folder(cfg, list_part)
    # What is scored keeps the published labels.
    ignored = () if testing else ignored_classes(cfg)
    return EpisodeDataset(
        lists, fold, part, cfg.shot, data_root, transform, folder, testing, ignored
    )


@errors_as(DataError)
def build_base_data(
    cfg: Config, rank: int = 0, world_size: int = 1
) -> tuple[TrainLoader, BaseDataset]:
    """Return the training loader and the validation dataset of stage 1.

    The loader gives every image of the train list, shuffled: `cfg.base_batch_size` images over all
    processes and accumulated batches, rounded up to the same number in each. The dataset holds
    every image of the val list.
    """
    learner_classes(cfg)
    batch_size = base_batch_size(cfg, world_size)
    size = (cfg.base_h, cfg.base_w)
    scale = (cfg.base_scale_min, cfg.base_scale_max)
    rotate = (cfg.base_rotate_min, cfg.base_rotate_max)
    transform = base_train_transform(size, scale, rotate)
    images = _base_images(cfg, "train", transform)
    _, list_file = data_paths(cfg, "train")
    check_batch(list_file, len(images), batch_size, world_size, cfg.grad_accum, "base_batch_size")
    train = _shuffled(cfg, images, batch_size, rank, world_size)
    val = _base_images(cfg, "val", EvalTransform(size))
    return train, val


def build_validation_episodes(cfg: Config) -> EpisodeDataset:
    """Return the episodes that training validates on: the classes of `select_on`, from the val list."""
    if cfg.select_on == "novel":
        return build_episodes(cfg, "val", testing=True)
    return build_episodes(cfg, "train", testing=True, list_part="val")


def config_fold(cfg: Config) -> Fold:
    """Return the fold that the settings name."""
    return fold_classes(cfg.num_classes, cfg.effective_folds, cfg.split, cfg.num_folds)


def mask_form(cfg: Config) -> MaskForm:
    """Return how the masks of the dataset hold its classes."""
    return MaskForm(cfg.num_classes, cfg.class_names if cfg.masks == "folders" else None)


def list_rules(cfg: Config) -> Rules:
    """Return which images of a list are taken."""
    return Rules(cfg.min_pixels, cfg.mixed_images, cfg.min_cells)


def training_grid(cfg: Config) -> Grid:
    """Return the grid of the backbone at the size of training."""
    return backbone_grid(cfg.backbone, cfg.train_h)


@cache
def backbone_grid(backbone: str, size: int) -> Grid:
    """Return the grid of a backbone for square images of a size, in pixels."""
    return Grid(size, *build_backbone(backbone).eval().grid((size, size)))


def ignored_classes(cfg: Config) -> tuple[int, ...]:
    """Return the classes whose pixels training ignores: those held out, where the settings say so."""
    return config_fold(cfg).held_out if cfg.mixed_images == "ignore" else ()


def learner_classes(cfg: Config) -> int:
    """Return the number of classes of the base learner; 0 where the settings have none.

    Raises:
        UserError: There are too many for a base learner.
    """
    classes = 0 if cfg.base_learner == "none" else len(config_fold(cfg).base)
    if classes > MAX_CLASSES:
        raise UserError(
            f"the fold has {classes} base classes and a base learner at most {MAX_CLASSES}: set "
            "base_learner none"
        )
    return classes


def data_paths(cfg: Config, part: str) -> tuple[str, str]:
    """Return the data root and the list file of a part ("train" or "val").

    Raises:
        UserError: One of the two is not set.
    """
    data_root, list_file = cfg.data_root, getattr(cfg, f"{part}_list")
    if not data_root or not list_file:
        key = f"{part}_list" if data_root else "data_root"
        raise UserError(f"{key} is not set; set it in the configuration or by --opts")
    return data_root, list_file


def base_batch_size(cfg: Config, world_size: int = 1) -> int:
    """Return the images that a process of stage 1 takes at a time."""
    return -(-cfg.base_batch_size // (world_size * cfg.grad_accum))


def check_batch(
    list_file: str,
    images: int,
    batch_size: int,
    world_size: int = 1,
    grad_accum: int = 1,
    key: str = "batch_size",
) -> None:
    """Raise a UserError if a list gives fewer training images than one iteration takes.

    Args:
        list_file: The list, for the message.
        images: Number of training images in it.
        batch_size: Items that a process takes at a time.
        world_size: Number of processes.
        grad_accum: Batches of a process in an iteration.
        key: The setting that `batch_size` comes from: batch_size, or base_batch_size in stage 1.
    """
    needed = batch_size * world_size * grad_accum
    if images < needed:
        accumulated = " or grad_accum" if grad_accum > 1 else ""
        processes = " or the number of processes" if world_size > 1 else ""
        raise UserError(
            f"{list_file}: training images: {images}, and an iteration takes {needed} "
            f"({batch_size} × {world_size} process{'es' * (world_size > 1)} × "
            f"{grad_accum} accumulated); lower {key}{accumulated}{processes}"
        )


def _base_images(cfg: Config, part: str, transform: Compose) -> BaseDataset:
    data_root, list_file = data_paths(cfg, part)
    entries = existing_entries(data_root, list_file, mask_form(cfg))
    if cfg.masks == "folders":
        # An image has an entry for each of its classes.
        entries = list({entry[0]: entry for entry in entries}.values())
    folder = _base_label_folder(cfg, part)
    ignored = ignored_classes(cfg) if part == "train" else ()
    return BaseDataset(entries, config_fold(cfg), part, data_root, transform, folder, ignored)


def _base_label_folder(cfg: Config, part: str) -> str | None:
    return base_label_dir(cfg.base_data_root, part, cfg.split) if cfg.base_data_root else None


def _shuffled(
    cfg: Config, dataset: EpisodeDataset | BaseDataset, batch_size: int, rank: int, world_size: int
) -> TrainLoader:
    sampler: Sampler[int] = RandomSampler(dataset)
    if world_size > 1:
        sampler = DistributedSampler(dataset, world_size, rank, seed=cfg.manual_seed or 0)
    return TrainLoader(
        dataset, sampler, batch_size, cfg.workers, pin_memory=torch.cuda.is_available()
    )
