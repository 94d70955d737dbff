"""Measure what the test gains by sharing features between episodes: `python -m benchmark.protocol`.

The same drawn episodes, on pictures of the demo set, are tested in two ways, each in a process of its
own: every episode separately (`net(query, support, mask)`), and as test.py does it.
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
from util.evaluation.evaluator import evaluate_episodes
from util.evaluation.metrics import EpisodeMetrics, confusion
from util.evaluation.model import load_tested
from util.evaluation.predictor import build_predictor, resize_logits
from util.runtime.distributed import Processes
from util.runtime.machine import environment_line, peak_memory
from util.runtime.precision import Precision
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
def plain_counts(
    net: HDMNet, episodes: EpisodeDataset, draws: list[Draw], device: torch.device, workers: int
) -> EpisodeMetrics:
    """Return the counts of one run, nothing shared between its episodes."""
    metrics = EpisodeMetrics(episodes.classes, len(episodes.base_classes))
    loader = Loader(DrawnEpisodes(episodes, draws), workers, batch_size=1)
    for draw, batch in zip(draws, loader, strict=True):
        out = net(*(batch[key].to(device) for key in ("query", "support", "support_mask")))
        label = batch["label"][0]
        final, meta, base = (
            resize_logits(logits, label.shape)[0].argmax(0)
            for logits in (out.final, out.meta, out.base)
        )
        metrics.add(
            draw.class_id,
            confusion(final, label, 2),
            confusion(meta, label, 2),
            confusion(base, batch["base_label"][0], len(episodes.base_classes) + 1),
        )
    return metrics


def measure(cfg: Config, way: str) -> dict:
    """Return seconds, bytes and counts of the test, done in one way."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    episodes = build_episodes(cfg, "val", testing=True, progress=False)
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
    start = time.monotonic()
    with Precision(cfg.amp, device).autocast():
        if way == "plain":
            counts = [plain_counts(net, episodes, run, device, cfg.workers) for run in runs]
        else:
            predictor = build_predictor(cfg, net, episodes, device)
            evaluation = evaluate_episodes(predictor, runs, Processes(0, 1, device))
            counts = [run.metrics for run in evaluation.runs]
    return {
        "seconds": time.monotonic() - start,
        "bytes": peak_memory(device),
        "counts": np.array([one.state() for one in counts]),
        "images": len(episodes),
        "classes": len(episodes.classes),
    }


def report(options: argparse.Namespace, cfg: Config, results: dict[str, dict]) -> str:
    """Return the measurements as markdown."""
    number = cfg.test_runs * cfg.test_num
    rows = []
    for way, name in WAYS.items():
        seconds, memory = results[way]["seconds"], results[way]["bytes"] / 2**30
        rows.append([name, f"{seconds:.0f}", f"{number / seconds:.2f}", f"{memory:.2f}"])
    plain, shared = (results[way] for way in WAYS)
    finals = 4 * plain["classes"]
    counts = [result["counts"][:, :finals] for result in (plain, shared)]
    moved = np.abs(counts[0] - counts[1]).sum() // 2
    return "\n".join(
        [
            f"{environment_line()}\n",
            f"{cfg.test_runs} runs of {cfg.test_num} episodes, {cfg.shot}-shot, {cfg.backbone} at "
            f"{cfg.val_size} px, {plain['images']} pictures, feature_cache_gb "
            f"{cfg.feature_cache_gb:g}, one process:\n",
            markdown_table(["", "seconds", "episodes a second", "peak memory, GiB"], rows),
            f"{plain['seconds'] / shared['seconds']:.1f} times as fast. Pixels of the final "
            f"predictions that differ, by rounding: {moved} of {counts[0].sum()}.",
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
            write_demo(options.data, train=1, val=options.pictures)
        settings = [
            f"data_root={options.data}",
            f"val_list={options.data}/val.txt",
            f"list_dir={folder}",
            f"val_size={options.size}",
            f"test_runs={options.runs}",
            f"test_num={options.episodes}",
            *options.opts,
        ]
        cfg = load_config(f"config/demo/demo_split0_{options.net}.yaml", settings)
        results = {}
        for way in WAYS:
            # In a new process each, for the peak of its memory.
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                results[way] = pool.submit(measure, cfg, way).result()
        print(report(options, cfg, results))


if __name__ == "__main__":
    main()
