"""Measure what the test gains by sharing features between episodes: `python -m benchmark.protocol`.

The same drawn episodes, on pictures of the demo set, are tested in two ways, each in a process of its
own: every episode separately (`net(query, support, mask)`), and as test.py does it. What a process
does only once, such as starting the GPU, is not counted: each begins with an episode that is not timed.
"""

import argparse
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from model import HDMNet, build_hdmnet
from util.config import Config, load_config
from util.data.data_loader import Loader
from util.data.draws import Draw, draw_test_episodes, run_seeds
from util.data.episodes import EpisodeDataset
from util.data.loaders import build_episodes
from util.demo_data import write_demo
from util.evaluation.counts import Counts
from util.evaluation.evaluator import evaluate_episodes
from util.evaluation.metrics import confusion
from util.evaluation.model import load_tested
from util.evaluation.predictor import build_predictor, resize_logits
from util.runtime.distributed import Processes
from util.runtime.machine import environment_line, peak_memory
from util.runtime.precision import Precision
from util.runtime.seed import choose_kernels
from util.runtime.tables import markdown_table

WAYS = {"plain": "each episode separately", "shared": "shared features computed once"}


class DrawnEpisodes(torch.utils.data.Dataset):
    """Whole episodes, as `EpisodeDataset` loads them."""

    def __init__(self, episodes: EpisodeDataset, draws: list[Draw]):
        self.episodes, self.draws = episodes, draws

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, position: int) -> dict:
        return self.episodes.load(*self.draws[position], rng=None)


@torch.no_grad()
def count_plainly(
    net: HDMNet, episodes: EpisodeDataset, draws: list[Draw], device: torch.device, workers: int
) -> Counts:
    """Return the counts of episodes that share nothing."""
    counts = Counts(len(draws), 1, len(episodes.base_classes))
    loader = Loader(DrawnEpisodes(episodes, draws), workers, batch_size=1)
    for record, batch in zip(counts.records, loader, strict=True):
        out = net(*(batch[key].to(device) for key in ("query", "support", "support_mask")))
        label = batch["label"][0]
        final, meta, base = (
            resize_logits(logits, label.shape)[0].argmax(0)
            for logits in (out.final, out.meta, out.base)
        )
        record["final"], record["meta"] = confusion(final, label, 2), confusion(meta, label, 2)
        counts.base[0] += confusion(base, batch["base_label"][0], len(counts.base[0]))
    return counts


def measure(cfg: Config, way: str) -> dict:
    """Return seconds, bytes and counts of the test, done in one way."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    choose_kernels(cfg.seed_deterministic, cfg.tf32)
    episodes = build_episodes(cfg, "val", testing=True)
    if cfg.weight:
        net = load_tested(Path(cfg.weight), episodes.base_classes, cfg.model_arguments).net
    else:
        torch.manual_seed(0)
        net = build_hdmnet(base_classes=len(episodes.base_classes), **cfg.model_arguments)
    net.to(device).eval()
    runs = [
        draw_test_episodes(episodes.lists, cfg.shot, cfg.test_num, seed, cfg.workers)
        for seed in run_seeds(cfg.test_runs)
    ]

    def count(runs: list[list[Draw]]) -> Counts:
        if way == "plain":
            draws = [draw for run in runs for draw in run]
            return count_plainly(net, episodes, draws, device, cfg.workers)
        predictor = build_predictor(cfg, net, episodes, device)
        return evaluate_episodes(predictor, runs, Processes(0, 1, device)).counts

    with Precision(cfg.amp, device).autocast():
        count([runs[0][:1]])
        start = time.monotonic()
        counts = count(runs)
        seconds = time.monotonic() - start
    return {
        "seconds": seconds,
        "bytes": peak_memory(device),
        "final": counts.records["final"],
        "images": len(episodes),
    }


def report(cfg: Config, results: dict[str, dict]) -> str:
    """Return the measurements as markdown."""
    rows = []
    for way, name in WAYS.items():
        seconds, memory = results[way]["seconds"], results[way]["bytes"] / 2**30
        speed = cfg.test_runs * cfg.test_num / seconds
        rows.append([name, f"{seconds:.0f}", f"{speed:.2f}", f"{memory:.2f}"])
    plain, shared = (results[way] for way in WAYS)
    moved = np.abs(plain["final"] - shared["final"]).sum() // 2
    return "\n".join(
        [
            f"{environment_line()}\n",
            f"{cfg.test_runs} runs of {cfg.test_num} episodes, {cfg.shot}-shot, {cfg.backbone} at "
            f"{cfg.val_size} px, {plain['images']} pictures, batch_size_val {cfg.batch_size_val}, "
            f"feature_cache_gb {cfg.feature_cache_gb:g}, amp {cfg.amp}, one process:\n",
            markdown_table(["", "seconds", "episodes a second", "peak memory, GiB"], rows),
            f"{plain['seconds'] / shared['seconds']:.1f} times as fast. Pixels of the final "
            f"predictions that differ, by rounding: {moved} of {plain['final'].sum()}.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="a demo set that is there already; else one is drawn")
    parser.add_argument("--pictures", type=int, default=90, help="to draw (%(default)s)")
    parser.add_argument("--size", type=int, default=241, help="pixels (%(default)s)")
    parser.add_argument("--runs", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--episodes", type=int, default=70, help="of a run (%(default)s)")
    parser.add_argument("--net", default="resnet50", help="resnet18, resnet50, vgg (%(default)s)")
    parser.add_argument(
        "--opts", nargs="*", default=[], metavar="KEY VALUE", help="such as weight FILE"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hdmnet-protocol-") as folder:
        if options.data is None:
            options.data = f"{folder}/data"
            # The lists need training pictures too, which nothing here looks at.
            write_demo(options.data, train=1, val=options.pictures, size=max(160, options.size))
        settings = [f"data_root={options.data}", f"val_list={options.data}/val.txt"]
        settings += [f"list_dir={folder}", f"val_size={options.size}"]
        settings += [f"test_runs={options.runs}", f"test_num={options.episodes}", "amp=off"]
        settings += options.opts
        cfg = load_config(f"config/demo/demo_split0_{options.net}.yaml", settings)
        results = {}
        for way in WAYS:
            # In a new process each, for the peak of its memory.
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                results[way] = pool.submit(measure, cfg, way).result()
        print(report(cfg, results))


if __name__ == "__main__":
    main()
