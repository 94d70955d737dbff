"""Speed of data loading against a plain transcription: `python -m benchmark.loader` prints the tables.

One worker process each, on drawn pictures of about 500×450 px: batches of stage 2 (a query and its
supports, randomly transformed) and of stage 1 (random crops). Both ways take turns; speeds are medians
and the last column is their ratio. The second table is where a worker's time goes. Time is the worker's
processor time, which others on the machine disturb least. What is plain is in benchmark/plain_loader.py.
"""

import argparse
import copy
import tempfile
import time
from itertools import islice
from statistics import median
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, RandomSampler

from benchmark import plain_loader
from benchmark.machine import describe_machine
from benchmark.parts import timed_parts
from benchmark.plain_loader import PlainEpisodes, PlainImages, base_training_steps, training_steps
from util.config import Config, load_config
from util.data import dataset, transform
from util.data.data_loader import prepare_worker
from util.data.loaders import build_base_data, build_train_loader, config_fold
from util.demo_data import write_demo
from util.runtime.tables import markdown_table

WAYS = ("plain", "fast")
BATCH = 4
# Part: its functions, those of the fast path and those of the plain one.
PLACES = {
    "image file": [(dataset, "read_image"), (plain_loader, "read_image")],
    "mask file": [(dataset, "read_mask"), (plain_loader, "read_mask")],
    "labels": [
        (dataset.BaseLabels, "__call__"),
        (plain_loader, "class_label"),
        (plain_loader, "base_label_of"),
    ],
    "scale": [(transform.RandomScale, "__call__"), (plain_loader.RandScale, "__call__")],
    "rotate": [(transform.RandomRotate, "__call__"), (plain_loader.RandRotate, "__call__")],
    "blur": [(transform.RandomBlur, "__call__"), (plain_loader.RandBlur, "__call__")],
    "flip": [(transform.RandomFlip, "__call__"), (plain_loader.RandFlip, "__call__")],
    "resize, crop": [
        (transform.Resize, "__call__"),
        (transform.RandomCrop, "__call__"),
        (plain_loader.Resize, "__call__"),
        (plain_loader.Crop, "__call__"),
    ],
    "to tensor": [(transform, "to_tensors"), (plain_loader, "to_tensors")],
}


class Case(NamedTuple):
    """One line of the tables. size: pixels of what the model gets; shot: 0 for stage 1."""

    size: int
    shot: int

    @property
    def name(self) -> str:
        return f"{self.size} px, {f'{self.shot}-shot' if self.shot else 'stage 1'}"


class TimedWorker:
    """Makes the worker of a loader measure itself: each batch holds what it took until then.

    `batch["seconds"]` has the processor time of the worker as "whole" and, if `parts`, of each part.

    Args:
        loader: with one worker.
        parts: measure them too, which costs a little.
    """

    def __init__(self, loader: DataLoader, parts: bool):
        self.start, self.collate = loader.worker_init_fn, loader.collate_fn
        self.parts = parts
        self.seconds: dict[str, float] = {}
        loader.worker_init_fn, loader.collate_fn = self._start, self._collate

    def _start(self, worker: int) -> None:
        self.start(worker)
        if self.parts:
            self.patches = timed_parts(torch.device("cpu"), PLACES, time.thread_time)
            self.seconds = self.patches.__enter__()
            self.seconds["collate"] = 0.0

    def _collate(self, items: list[dict]) -> dict:
        start = time.thread_time()
        batch = self.collate(items)
        if self.parts:
            self.seconds["collate"] += time.thread_time() - start
        return batch | {"seconds": self.seconds | {"whole": time.process_time()}}


def build_loader(cfg: Config, case: Case, way: str) -> DataLoader:
    """Shuffled batches of a case from one worker, "plain" or "fast"."""
    if case.shot:
        fast = build_train_loader(cfg, batch_size=BATCH)
    else:
        fast, _ = build_base_data(cfg)
    if way == "fast":
        return fast
    fold, data = config_fold(cfg), fast.dataset
    if case.shot:
        plain = PlainEpisodes(data.lists, fold, cfg.shot, cfg.data_root, training_steps(cfg))
    else:
        plain = PlainImages(data.entries, fold, cfg.data_root, base_training_steps(cfg))
    return DataLoader(
        plain,
        BATCH,
        sampler=RandomSampler(plain),
        num_workers=1,
        worker_init_fn=prepare_worker,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
    )


def seconds_of_an_item(loader: DataLoader, batches: int, parts: bool = False) -> dict[str, float]:
    """What an episode or image takes a worker that has started: "whole", and the parts before it.

    Args:
        loader: of `build_loader`.
        batches: to take the mean over, at most; those of one pass after its first.
        parts: give them too, and the "rest" between them.
    """
    loader = copy.copy(loader)
    TimedWorker(loader, parts)
    taken = [batch["seconds"] for batch in islice(loader, batches + 1)]
    items = BATCH * (len(taken) - 1)
    seconds = {part: (taken[-1][part] - taken[0][part]) / items for part in taken[0]}
    whole = seconds.pop("whole")
    return seconds | ({"rest": whole - sum(seconds.values())} if parts else {}) | {"whole": whole}


def main() -> None:
    args = _parse()
    print(f"{describe_machine()}\n", flush=True)
    cases = [Case(size, shot) for size in args.sizes for shot in args.shots]
    cases.append(Case(args.base_size, 0))
    speeds, parts = [], []
    with tempfile.TemporaryDirectory(prefix="hdmnet-loader-") as folder:
        if args.data is None:
            args.data = f"{folder}/data"
            write_demo(args.data, train=args.pictures, val=1, size=500)
        for case in cases:
            cfg = _config(args.data, folder, case)
            loaders = {way: build_loader(cfg, case, way) for way in WAYS}
            runs = {way: [] for way in WAYS}
            for repeat in range(args.repeats):
                for way, loader in loaders.items():
                    torch.manual_seed(repeat)  # the same episodes for both
                    runs[way].append(seconds_of_an_item(loader, args.batches)["whole"])
            plain, fast = (median(runs[way]) for way in WAYS)
            speeds.append(
                [case.name, f"{1 / plain:.1f}", f"{1 / fast:.1f}", f"{plain / fast:.2f}×"]
            )
            for way, loader in loaders.items():
                torch.manual_seed(0)
                seconds = seconds_of_an_item(loader, args.batches, parts=True)
                parts.append(
                    [case.name, way, *(f"{1000 * value:.1f}" for value in seconds.values())]
                )
    print("Episodes (stage 1: images) a second of one worker:\n")
    print(markdown_table(["case", "plain", "fast", "faster"], speeds))
    print("Milliseconds of an episode (stage 1: an image):\n")
    print(markdown_table(["case", "way", *seconds], parts, left=(0, 1)), end="")


def _parse() -> argparse.Namespace:
    description, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(description=description, epilog=details)
    parser.add_argument("--data", help="a demo set that is there already; else one is drawn")
    parser.add_argument("--pictures", type=int, default=160, help="to draw (%(default)s)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=(473, 633), help="of stage 2, pixels"
    )
    parser.add_argument("--shots", type=int, nargs="+", default=(1, 5))
    parser.add_argument("--base-size", type=int, default=417, help="of stage 1, pixels")
    parser.add_argument("--batches", type=int, default=8, help="of a timed run (%(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each way (%(default)s)")
    return parser.parse_args()


def _config(data: str, folder: str, case: Case) -> Config:
    settings = {
        "data_root": data,
        "train_list": f"{data}/train.txt",
        "val_list": f"{data}/val.txt",
        "list_dir": folder,
        "workers": 1,
        "base_batch_size": BATCH,
        **dict.fromkeys(("train_h", "train_w") if case.shot else ("base_h", "base_w"), case.size),
        "shot": max(case.shot, 1),
    }
    config = "config/pascal/pascal_split0_resnet50.yaml"
    return load_config(config, [f"{key}={value}" for key, value in settings.items()])


if __name__ == "__main__":
    main()
