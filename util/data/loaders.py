"""Data loaders of both stages, built from the configuration.

In training the order and the episodes follow torch's and Python's global generators, which the
training loop seeds. No loader keeps its workers between passes: each pass draws a new base seed
from torch's generator and seeds its workers from it, which is part of the published protocol.
"""

import torch
from torch.utils.data import RandomSampler
from torch.utils.data.distributed import DistributedSampler

from util.config import Config
from util.data.data_loader import Loader, TrainLoader
from util.data.dataset import BaseDataset, base_label_dir
from util.data.episodes import EpisodeDataset
from util.data.folds import fold_classes
from util.data.lists import check_enough, existing_entries, load_lists
from util.data.transform import base_train_transform, eval_transform, train_transform
from util.runtime.errors import UserError, data_errors


@data_errors()
def build_train_loader(cfg, rank=0, world_size=1, batches=None):
    """Shuffled training episodes of stage 2, base classes as targets.

    batches: episodes of one process at a time, and how many such batches make an iteration; those
    of cfg if None. Call `loader.set_epoch(epoch)` before each pass. Raises UserError if the data do
    not suffice.
    """
    dataset = build_episodes(cfg, "train", testing=False, progress=rank == 0)
    batch_size, grad_accum = batches or (cfg.batch_size, cfg.grad_accum)
    check_batch(cfg.train_list, len(dataset), batch_size, world_size, grad_accum)
    return _shuffled(cfg, dataset, batch_size, rank, world_size)


def evaluation_loader(dataset, workers):
    """One item a batch, in order."""
    return Loader(
        dataset,
        batch_size=1,
        workers=workers,
        pin_memory=torch.cuda.is_available(),
    )


@data_errors()
def build_episodes(cfg, part, testing, progress=True, list_part=None):
    """The EpisodeDataset of `part`: "train" (base classes) or "val" (held-out classes).

    testing: with the transform of the test and the labels at the original size, else with the
    random transforms of training. list_part: whose images, if not those of `part`.
    progress: show a bar if masks have to be scanned. Raises UserError if the data do not suffice.
    """
    data_root, list_file = data_paths(cfg, list_part or part)
    fold = config_fold(cfg)
    lists = load_lists(
        data_root, list_file, fold, part, cfg.list_dir, cfg.min_pixels, progress=progress
    )
    check_enough(lists, cfg.shot, cfg.class_names, where=list_file)
    if testing:
        transform = eval_transform((cfg.val_size, cfg.val_size), cfg.resized_val, cfg.padding_label)
    else:
        transform = train_transform(
            (cfg.train_h, cfg.train_w),
            (cfg.scale_min, cfg.scale_max),
            (cfg.rotate_min, cfg.rotate_max),
            cfg.padding_label,
        )
    folder = _base_label_folder(cfg, list_part or part)
    return EpisodeDataset(
        lists, fold, part, cfg.shot, data_root, transform, folder, originals=testing
    )


@data_errors()
def build_base_data(cfg, rank=0, world_size=1):
    """The training loader and the validation dataset of stage 1.

    train: every image of the train list, shuffled, cfg.base_batch_size images over all processes and
    accumulated batches (rounded up to the same number in each); val: every image of the val list.
    """
    batch_size = base_batch_size(cfg, world_size)
    size = (cfg.base_h, cfg.base_w)
    transform = base_train_transform(
        size,
        (cfg.base_scale_min, cfg.base_scale_max),
        (cfg.base_rotate_min, cfg.base_rotate_max),
        cfg.padding_label,
    )
    images = _base_images(cfg, "train", transform)
    check_batch(
        cfg.train_list, len(images), batch_size, world_size, cfg.grad_accum, "base_batch_size"
    )
    train = _shuffled(cfg, images, batch_size, rank, world_size)
    val = _base_images(cfg, "val", eval_transform(size, padding_label=cfg.padding_label))
    return train, val


def build_validation_episodes(cfg):
    """Episodes that training validates on, from the val list: of the classes of `select_on`."""
    if cfg.select_on == "novel":
        return build_episodes(cfg, "val", testing=True)
    return build_episodes(cfg, "train", testing=True, list_part="val")


def config_fold(cfg):
    """The Fold that the configuration names."""
    return fold_classes(cfg.num_classes, cfg.effective_folds, cfg.split, cfg.num_folds)


def data_paths(cfg, part):
    """(data_root, list file) of `part` ("train" or "val"); UserError naming the key not set."""
    for key in ("data_root", f"{part}_list"):
        if not getattr(cfg, key):
            raise UserError(f"{key} is not set; set it in the configuration or by --opts")
    return cfg.data_root, getattr(cfg, f"{part}_list")


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
    """Check that the training images of a list suffice for one iteration.

    Args:
        list_file: the list, for the message.
        images: number of training images in it.
        batch_size: items that a process takes at a time.
        world_size: number of processes.
        grad_accum: batches of a process in an iteration.
        key: the setting that `batch_size` comes from: batch_size, or base_batch_size in stage 1.

    Raises:
        UserError: they do not suffice.
    """
    needed = batch_size * world_size * grad_accum
    if images < needed:
        lower = key
        lower += " or grad_accum" if grad_accum > 1 else ""
        lower += " or the number of processes" if world_size > 1 else ""
        raise UserError(
            f"{list_file} gives {images} training images, and an iteration takes {needed} "
            f"({batch_size} × {world_size} processes × {grad_accum} accumulated); "
            f"lower {lower}"
        )


def _base_images(cfg, part, transform):
    data_root, list_file = data_paths(cfg, part)
    entries = existing_entries(data_root, list_file)
    folder = _base_label_folder(cfg, part)
    return BaseDataset(entries, config_fold(cfg), part, data_root, transform, folder)


def _base_label_folder(cfg, part):
    return base_label_dir(cfg.base_data_root, part, cfg.split) if cfg.base_data_root else None


def _shuffled(cfg, dataset, batch_size, rank, world_size):
    sampler = RandomSampler(dataset)
    if world_size > 1:
        sampler = DistributedSampler(dataset, world_size, rank, seed=cfg.manual_seed or 0)
    return TrainLoader(
        dataset, sampler, batch_size, cfg.workers, pin_memory=torch.cuda.is_available()
    )
