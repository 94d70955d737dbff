"""Test HDMNet on episodes of the held-out classes of a fold, by the published protocol."""

import json
import time
from pathlib import Path

import numpy as np
from torch import nn

from model import build_hdmnet
from util.checkpoint import check_classes, load_weights, read_checkpoint
from util.config import load_config, parse_args
from util.dataset import read_pair
from util.distributed import Processes, start_processes
from util.draws import draw_test_episodes
from util.errors import exits_on_user_error
from util.evaluator import Evaluation, evaluate_episodes
from util.files import write_atomically
from util.folds import class_label_table
from util.loaders import build_episodes
from util.log import get_logger
from util.metrics import results_table, summarise
from util.precision import Precision
from util.snapshots import find_test_weight
from util.visualize import draw_episode

PROTOCOL_SEED = 123
IF_MISSING = ("--if-missing", "print the table of an earlier test with the same settings if any")
BASELINE_EPISODES = 200


def run_seeds(runs: int) -> list[int]:
    """Seeds of the runs of the published protocol: 510, 365, 382, …"""
    return np.random.RandomState(PROTOCOL_SEED).randint(0, 1000, runs).tolist()


@exits_on_user_error
def main() -> None:
    args = parse_args(__doc__, flags=(IF_MISSING,))
    cfg = load_config(args.config, args.opts)
    with start_processes() as processes, Precision(cfg.amp, processes.device).autocast():
        test(cfg, processes, args.if_missing)


def build_model(cfg, base_classes: tuple[int, ...], path: Path) -> tuple[nn.Module, int]:
    """The model of a checkpoint of ours or of the published code, and the shot of its training."""
    content = read_checkpoint(path)
    check_classes(content, base_classes, str(path))
    state = content["state_dict"]
    trained_shot = content.get("shot", cfg.shot)
    net = build_hdmnet(
        base_classes=len(base_classes), trained_shot=trained_shot, **cfg.model_arguments
    )
    if trained_shot != cfg.shot:
        state = {k: v for k, v in state.items() if not k.startswith("ensemble.shot_weights.")}
    load_weights(net, state, str(path))
    return net, trained_shot


def test(cfg, processes: Processes, if_missing: bool = False) -> None:
    """Run the protocol, print its table, and write both to result/test-*."""
    path = find_test_weight(cfg)
    settings = {
        "weight": str(path),
        "dataset": cfg.data_set,
        "split": cfg.split,
        "shot": cfg.shot,
        "backbone": cfg.backbone,
        "size": cfg.val_size,
        "episodes": cfg.test_num,
        "seeds": run_seeds(cfg.test_runs),
        "workers": cfg.workers,
        "amp": cfg.amp,
        "baselines": cfg.baselines,
    }
    folder = Path(cfg.run_dir) / "result"
    output = folder / f"test-{cfg.shot}shot-{path.stem}.json"
    logger = get_logger(folder, processes.is_main)
    if if_missing and output.is_file():
        report = json.loads(output.read_text())
        if report["settings"] == settings:
            logger.info(f"tested before, see {output}\n{report_table(report, cfg.class_names)}")
            return

    episodes = build_episodes(cfg, "val", testing=True)
    net, trained_shot = build_model(cfg, episodes.base_classes, path)
    net.to(processes.device)
    logger.info(processes.describe())
    logger.info(
        f"{cfg.backbone}, fold {cfg.split} of {cfg.data_set}, {cfg.shot}-shot, weights {path}"
        + (f" trained with {trained_shot}-shot" if trained_shot != cfg.shot else "")
    )
    threshold = _prior_threshold(cfg, net, processes) if cfg.baselines else None
    report = {"settings": settings, "trained_shot": trained_shot, "runs": []}
    for number, seed in enumerate(settings["seeds"]):
        start = time.monotonic()
        draws = draw_test_episodes(episodes.lists, cfg.shot, cfg.test_num, seed, cfg.workers)
        evaluation = evaluate_episodes(
            net,
            episodes,
            draws,
            processes,
            cfg.ori_resize,
            cfg.workers,
            cfg.baselines,
            keep=0 if number else cfg.vis_num,
            progress=f"run {number + 1}/{cfg.test_runs}",
        )
        run = {"seed": seed, **evaluation.metrics.results()}
        if threshold is not None:
            run["baselines"] = evaluation.prior.baselines(threshold)
        report["runs"].append(run)
        rate = cfg.test_num / (time.monotonic() - start)
        logger.info(f"seed {seed}: mIoU {run['mIoU']:.4f}, {rate:.1f} episodes/s")
        if processes.is_main and number == 0:
            _draw_pictures(cfg, episodes, evaluation, folder)
    report |= summarise(report["runs"])
    if threshold is not None:
        report["prior_threshold"] = threshold.describe()
    if processes.is_main:
        write_atomically(output, json.dumps(report, indent=1) + "\n")
    logger.info(f"\n{report_table(report, cfg.class_names)}")
    logger.info(f"results in {output}, pictures in {folder}")


def report_table(report: dict, class_names: list[str] | None) -> str:
    """The table of a report, in percent, with the mean of the baselines where they were tested."""
    lines = [results_table(report["runs"], class_names)]
    if "prior_threshold" in report:
        rows = {"HDMNet": report["mean"]["mIoU"]}
        names = {"all_foreground": "everything foreground", "prior": report["prior_threshold"]}
        for key, name in names.items():
            rows[name] = float(np.mean([run["baselines"][key] for run in report["runs"]]))
        width = max(map(len, rows))
        lines += ["", f"{'method':{width}}     mIoU", "-" * (width + 9)]
        lines += [f"{name:{width}} {100 * value:8.2f}" for name, value in rows.items()]
    return "\n".join(lines)


def _prior_threshold(cfg, net: nn.Module, processes: Processes):
    """The threshold of the similarity prior that is best on episodes of the base classes."""
    base = build_episodes(cfg, "train", testing=True)
    draws = draw_test_episodes(base.lists, cfg.shot, len(base), PROTOCOL_SEED, cfg.workers)
    step = max(1, len(draws) // BASELINE_EPISODES)
    evaluation = evaluate_episodes(
        net,
        base,
        draws[::step],
        processes,
        cfg.ori_resize,
        cfg.workers,
        baselines=True,
        progress="baseline on base classes",
    )
    return evaluation.prior.best()


def _draw_pictures(cfg, episodes, evaluation: Evaluation, folder: Path) -> None:
    """One PNG per kept episode, at the original sizes."""
    for number, (draw, prediction) in enumerate(evaluation.predictions):
        to_class = class_label_table(draw.class_id)
        pairs = [
            read_pair(cfg.data_root, episodes.lists.entries[index])
            for index in (draw.index, *draw.supports)
        ]
        (query, mask), *supports = [
            (image.astype(np.uint8), to_class[mask]) for image, mask in pairs
        ]
        name = cfg.class_names[draw.class_id - 1] if cfg.class_names else f"class {draw.class_id}"
        draw_episode(
            folder / f"episode-{cfg.shot}shot-{number}.png",
            query,
            [image for image, _ in supports],
            [mask for _, mask in supports],
            mask,
            prediction.numpy(),
            name,
        )


if __name__ == "__main__":
    main()
