"""The checks of `util.verify` on disk and memory. Both compare estimates with what is free now."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from model.hdmnet import HDMNet
from util.checkpoints.run_files import RunFiles
from util.checks.rows import ERROR, OK, WARNING, Row
from util.config import Config
from util.pretrained.kinds import meta_base_learner, meta_hdmnet
from util.training.model import needs_stage_1
from util.training.schedule import hdmnet_optimizer

_SHARED = "/dev/shm"  # through which loader processes hand over their batches
_PREFETCHED = 2  # batches that a loader process keeps ready
# What a process holds beside batches and weights: 750 MiB and 70 to 150 MiB were measured on Linux
# with torch 2.15, without CUDA's libraries.
_TRAINING, _LOADER = 750 << 20, 150 << 20  # bytes
_FLOAT, _INDEX = 4, 8  # bytes


def resource_rows(cfg: Config) -> Iterator[Row]:
    """Check that disk and memory suffice, as far as sizes of parameters and batches tell.

    Activations are left out: on a GPU they are not in this memory, and on the CPU their size is not
    known beforehand.
    """
    net, stage_1 = meta_hdmnet(cfg), needs_stage_1(cfg)
    yield _disk_row(cfg, checkpoint_bytes(cfg, net, stage_1))
    yield from _memory_rows(cfg, _weights_bytes(net), stage_1)


def checkpoint_bytes(cfg: Config, net: HDMNet, stage_1: bool) -> int:
    """Return the most bytes that the checkpoints of stage 2 and, with `stage_1`, of stage 1 take.

    A stage keeps its best weights and its last two states (weights and the optimiser's values), and
    for a moment one more while it is written.
    """
    groups = hdmnet_optimizer(net, cfg.base_lr, cfg.weight_decay, cfg.train_kshot_rw).param_groups
    trained = sum(p.numel() for group in groups for p in group["params"]) * _FLOAT
    weights = _weights_bytes(net)
    # AdamW keeps two values per trained parameter, SGD with momentum one.
    stages = [(weights, weights + 2 * trained)]
    if stage_1:
        base = _weights_bytes(meta_base_learner(cfg))
        stages.append((base, 2 * base))
    return sum(best + 2 * last for best, last in stages) + max(last for _, last in stages)


def _weights_bytes(net: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in net.state_dict().values())


def _disk_row(cfg: Config, checkpoints: int) -> Row:
    folder = Path(cfg.exp_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    kept = sum(
        path.stat().st_size
        for snapshot in (RunFiles(cfg).snapshot, RunFiles(cfg).base_snapshot)
        for path in snapshot.glob("*.pth")
    )
    needed, free = max(0, checkpoints - kept), shutil.disk_usage(folder).free
    found = (
        f"checkpoints take about {_size(needed)} more (estimate), {_size(free)} free in {folder}"
    )
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Row(ERROR, "exp_dir", f"{folder} cannot be written", remedy="set exp_dir")
    if free < needed:
        return Row(ERROR, "disk", found, remedy="free some, or set exp_dir to a folder elsewhere")
    return Row(OK, "disk", found)


def _memory_rows(cfg: Config, weights: int, stage_1: bool) -> Iterator[Row]:
    episode = (1 + cfg.shot) * 3 * _FLOAT + (2 + cfg.shot) * _INDEX  # bytes a pixel
    batches = {"stage 2": cfg.batch_size * episode * cfg.train_h * cfg.train_w}
    if stage_1:
        images = -(-cfg.base_batch_size // cfg.grad_accum)
        batches["stage 1"] = images * (3 * _FLOAT + _INDEX) * cfg.base_h * cfg.base_w
    waiting = max(cfg.workers, 1) * _PREFETCHED * max(batches.values())
    needed = _TRAINING + cfg.workers * _LOADER + waiting + 2 * weights
    remedy = "lower workers (the published test has 8) or batch_size"
    found = (
        f"a training process and its {cfg.workers} loaders take about {_size(needed)} (estimate, "
        "without activations and CUDA)"
    )
    free = _free_memory()
    if free is None:
        yield Row(OK, "memory", f"{found}; what is free cannot be told here")
    else:
        yield _row("memory", f"{found}, {_size(free)} free", free >= needed, remedy)
    if cfg.workers and os.path.isdir(_SHARED):
        free = shutil.disk_usage(_SHARED).free
        found = f"batches of the loaders take about {_size(waiting)} (estimate), {_size(free)} free"
        remedy = f"a larger {_SHARED} (docker run --shm-size), or {remedy}"
        yield _row("shared memory", f"{found} in {_SHARED}", free >= waiting, remedy)


def _row(subject: str, found: str, enough: bool, remedy: str) -> Row:
    return Row(OK, subject, found) if enough else Row(WARNING, subject, found, remedy=remedy)


def _free_memory() -> int | None:
    """Return the bytes that this machine can give to new processes; None where it does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            values = dict(line.split(":", 1) for line in lines)
        return int(values["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return None


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
