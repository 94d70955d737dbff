"""Test HDMNet on episodes of the held-out classes of a fold, by the published protocol."""

import argparse
import datetime
import json
from typing import Any

import numpy as np

import util
from util.checkpoints.run_files import RunFiles
from util.config import Config, config_parser, given_values, load_config
from util.data.draws import PROTOCOL_SEED, DrawnRun, draw_test_episodes, run_seeds
from util.data.episode_list import list_digest, list_text, read_or_write_list
from util.data.episodes import EpisodeDataset
from util.data.hsnet import draw_hsnet_runs
from util.data.lists import ImageLists
from util.data.loaders import build_episodes
from util.evaluation.charts import as_png, class_bars
from util.evaluation.episode_records import episode_records, shown_episodes, slice_tables, write_csv
from util.evaluation.evaluator import evaluate_episodes
from util.evaluation.figures import draw_pictures
from util.evaluation.journal import Journal
from util.evaluation.model import load_tested
from util.evaluation.predictor import Predictor, build_predictor
from util.evaluation.prior_baseline import Threshold, best_threshold
from util.evaluation.protocol_report import (
    build_report,
    read_report,
    report_text,
    result_path,
    settings_of,
    variant_name,
)
from util.evaluation.stopping import ends_on_signals
from util.runtime.distributed import Processes, start_processes
from util.runtime.errors import UserError
from util.runtime.files import write_atomically
from util.runtime.lock import exclusive
from util.runtime.log import get_logger
from util.runtime.machine import environment_line, run_environment
from util.runtime.precision import Precision, compute_as_set

FLAGS = (
    ("--if-missing", "print the table of an earlier test with the same settings if there is one"),
    (
        "--per_episode",
        "also write every episode to a CSV file, tables by size, and the best and worst in pictures",
    ),
)
BASELINE_EPISODES = 200
# What HSNet tests with, over the configuration and below --opts. Its 400 px are 401 for our networks.
HSNET_SETTINGS = (
    *("val_size=401", "resized_val=True", "ori_resize=False"),
    *("test_num=1000", "test_runs=1"),
)
# A process waits for slower ones at the end; where one dies, all of them are ended.
PATIENCE = datetime.timedelta(days=7)


@ends_on_signals()
@util.exits_on_user_error
def main() -> None:
    """Run the command."""
    parser = config_parser(__doc__, flags=FLAGS)
    parser.add_argument(
        "--episodes", metavar="FILE", help="test these drawn episodes; written if there is no file"
    )
    parser.add_argument(
        "--visualize", metavar="N", type=int, help="pictures of the first N episodes (vis_num)"
    )
    args = parser.parse_args()
    opts = args.opts + ([] if args.visualize is None else [f"vis_num={args.visualize}"])
    cfg = load_config(args.config, opts)
    if cfg.protocol == "hsnet":
        # Its lists for COCO have as many images as show a class on 2,048 pixels; others ask for no size.
        any_size = cfg.hsnet_class != "drawn" or cfg.hsnet_list is not None
        rule = ["min_pixels=1"] if any_size else []
        given = given_values(args.config, opts)
        # What asks for the protocol, such as the description of a dataset, may also say how often.
        if "test_num" in given and given["test_num"].origin == given["protocol"].origin:
            rule.append(f"test_num={cfg.test_num}")
        cfg = load_config(args.config, [*HSNET_SETTINGS, *rule, *opts])
    with start_processes(PATIENCE) as processes:
        cfg = compute_as_set(cfg, processes.device)
        with Precision(cfg.amp, processes.device).autocast():
            test(cfg, processes, args)


def test(cfg: Config, processes: Processes, args: argparse.Namespace) -> None:
    """Run the protocol from where it was interrupted, and write its report to result/."""
    files = RunFiles(cfg)
    path, folder = files.find_test_weight(), files.result
    logger = get_logger(folder, processes.is_main)
    episodes = build_episodes(cfg, "test", testing=True)
    runs = _draw_runs(cfg, episodes.lists)
    # A file of episodes is of one protocol.
    data_set = cfg.data_set if cfg.protocol == "hdmnet" else f"{cfg.data_set} by {cfg.protocol}"
    if args.episodes is not None:
        runs = read_or_write_list(args.episodes, episodes, data_set, cfg.split, runs)
        logger.info(f"{len(runs)} × {len(runs[0].draws)} episodes of {args.episodes}")
    settings = settings_of(cfg, str(path), runs)
    identity = {
        "settings": settings,
        "weight_file": [path.stat().st_size, path.stat().st_mtime_ns],
        "drawn": list_digest(list_text(episodes, data_set, cfg.split, runs)),
    }
    if not processes.agree(identity):
        raise UserError(
            "not all processes find the same weights and lists; they have to be on a disk that all "
            "nodes share, which may show a new file only after a minute"
        )
    name = f"{cfg.shot}shot{variant_name(cfg)}-{len(runs)}x{len(runs[0].draws)}-{path.stem}"
    # Two commands may test in one folder at once, but not under one name.
    with exclusive(folder / f".{name}.lock", processes.is_main):
        output = result_path(folder, name, identity)
        earlier = read_report(output, identity)
        missing = args.per_episode and not output.with_suffix(".csv").exists()
        done = processes.is_main and args.if_missing and earlier is not None and not missing
        # The main process decides for all: others may see a file later.
        if processes.sum(np.array([done], np.int64))[0]:
            if earlier is None:
                return
            text = report_text(earlier)
            logger.info(f"tested before, see {output}\n{text.rstrip()}")
            return

        wanted = cfg.model_arguments, cfg.scale_to_trained_shot, cfg.data_set
        loaded = load_tested(path, episodes.base_classes, *wanted)
        if (loaded.net.base.base_classes == 0) != (cfg.base_learner == "none"):
            problem = "has a base" if cfg.base_learner == "none" else "has no base"
            needed = "pspnet" if cfg.base_learner == "none" else "none"
            raise UserError(f"checkpoint {path} {problem} learner; set base_learner {needed}")
        net = loaded.net.to(processes.device)
        if cfg.compile:
            net.compile_parts()
        environment = run_environment()
        logger.info(processes.describe())
        logger.info(environment_line(environment))
        logger.info(
            f"{cfg.backbone}, fold {cfg.split} of {cfg.data_set}, {cfg.shot}-shot, weights {path}"
        )
        for note in loaded.notes:
            logger.info(note)

        def predictor_of(episodes: EpisodeDataset, **options: Any) -> Predictor:
            options |= {"ann_type": cfg.ann_type, "own_classes": loaded.own_classes}
            return build_predictor(cfg, net, episodes, processes.device, **options)

        threshold, journals = None, [Journal(folder, identity)]
        if cfg.baselines:
            journals.append(Journal(folder, [identity, "baselines"]))
            base = build_episodes(cfg, "train", testing=True)
            predictor = predictor_of(base, prior=True)
            threshold = _prior_threshold(cfg, predictor, processes, journals[1])
        evaluation = evaluate_episodes(
            predictor_of(episodes, prior=cfg.baselines),
            [run.draws for run in runs],
            processes,
            threshold,
            journals[0],
            "testing",
            cfg.absent_class == "skip",
        )
        if not processes.is_main:
            return
        report = identity | build_report(cfg, settings, loaded, evaluation, threshold, processes)
        report["environment"] = environment
        text, shown = report_text(report), {}
        if args.per_episode:
            images = [image for image, _ in episodes.lists.entries]
            records = episode_records(runs, evaluation.counts.records, images, cfg.class_names)
            write_csv(output.with_suffix(".csv"), records)
            text += "\n" + slice_tables(records)
            shown = {
                name: [records.index(record) for record in chosen]
                for name, chosen in shown_episodes(records).items()
            }
        artist = predictor_of(episodes, original_size=True, batch_size=1)
        suffix = output.stem.removeprefix("test-")
        draw_pictures(artist, runs, cfg.vis_num, shown, cfg.class_names, folder, suffix)
        bars = as_png(class_bars(report))
        write_atomically(output.with_suffix(".png"), bars)
        write_atomically(output.with_suffix(".md"), text)
        # The last file: a test that has it is complete.
        write_atomically(output, json.dumps(report, indent=1) + "\n")
        for journal in journals:
            journal.remove()
        logger.info(f"\n{text.rstrip()}")
        logger.info(f"results in {output} and beside it")


def _draw_runs(cfg: Config, lists: ImageLists) -> list[DrawnRun]:
    if cfg.protocol == "hsnet":
        sizes = cfg.shot, cfg.test_num, cfg.test_runs
        return draw_hsnet_runs(lists, *sizes, cfg.hsnet_list, cfg.hsnet_class)
    return [
        DrawnRun(seed, draw_test_episodes(lists, cfg.shot, cfg.test_num, seed, cfg.workers))
        for seed in run_seeds(cfg.test_runs)
    ]


def _prior_threshold(
    cfg: Config, predictor: Predictor, processes: Processes, journal: Journal
) -> Threshold:
    """Return the threshold of the similarity prior that is best on episodes of the base classes."""
    lists = predictor.episodes.lists
    draws = draw_test_episodes(lists, cfg.shot, len(lists.entries), PROTOCOL_SEED, cfg.workers)
    draws = draws[:: max(1, len(draws) // BASELINE_EPISODES)]
    evaluation = evaluate_episodes(
        predictor, [draws], processes, journal=journal, progress="baseline on base classes"
    )
    return best_threshold(evaluation.counts.prior[0])


if __name__ == "__main__":
    main()
