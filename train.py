"""Stage 2: train HDMNet on episodes of the base classes of a fold."""

import logging
from typing import cast

import torch

import util  # noqa: F401  first, for the model loads OpenCV as well
from model import HDMNet, build_hdmnet, hdmnet_loss
from model.parts import Loss
from util.checkpoints.run_files import RunFiles
from util.config import VIZ, Config, load_config, parse_args
from util.data.draws import draw_test_episodes
from util.data.episodes import EpisodeDataset
from util.data.loaders import build_train_loader, build_validation_episodes
from util.evaluation.evaluator import evaluate_episodes
from util.evaluation.predictor import build_predictor
from util.runtime.distributed import Processes, start_processes
from util.runtime.errors import exits_on_user_error
from util.training.engine import Run, Trainer, distributed, open_run
from util.training.iteration import Recipe
from util.training.model import initial_model
from util.training.resume import Saved, find_saved, plan_batches
from util.training.schedule import hdmnet_optimizer, poly_rate


@exits_on_user_error
def main() -> None:
    args = parse_args(__doc__, flags=(VIZ,))
    cfg = load_config(args.config, args.opts)
    with start_processes() as processes:
        train(cfg, processes, args.viz)


def build_model(
    cfg: Config, base_classes: tuple[int, ...], saved: Saved | None, logger: logging.Logger
) -> HDMNet:
    """Return the model that training starts from; `saved` gives it its weights later.

    Raises:
        UserError: There is no base learner, or a checkpoint does not fit.
    """
    if saved:
        return build_hdmnet(base_classes=len(base_classes), **cfg.model_arguments)
    return initial_model(cfg, logger)


def train(cfg: Config, processes: Processes, viz: bool, loss: Loss = hdmnet_loss) -> None:
    """Train until `epochs`, from the last checkpoint if there is one; validate and keep the best.

    Args:
        cfg: The settings.
        processes: This process among all.
        viz: Whether to write TensorBoard's files too.
        loss: The loss of a batch, see `model.parts.Loss`; all its terms are logged.
    """
    with open_run(cfg, RunFiles(cfg).folder, processes, viz) as run:
        _train(cfg, run, loss)


def _train(cfg: Config, run: Run, loss: Loss) -> None:
    processes, logger, snapshot = run.processes, run.logger, run.snapshot
    saved = find_saved(cfg.resume, snapshot, processes, logger)
    batches = plan_batches(cfg.batch_size, cfg.grad_accum, processes.world_size, saved)
    train_loader = build_train_loader(cfg, processes.rank, processes.world_size, batches)
    val_episodes = build_validation_episodes(cfg) if cfg.evaluate else None
    base_classes = cast(EpisodeDataset, train_loader.dataset).classes

    net = build_model(cfg, base_classes, saved, logger).to(processes.device)
    optimizer = hdmnet_optimizer(net, cfg.base_lr, cfg.weight_decay, cfg.train_kshot_rw)
    details = {"backbone": cfg.backbone, "shot": cfg.shot, "base_classes": list(base_classes)}
    trainer = Trainer(
        run, Recipe(net, optimizer, train_loader, batches.grad_accum, cfg.epochs, details)
    )
    if saved:
        trainer.restore(saved)
    state = trainer.state
    state.epoch = max(state.epoch, cfg.start_epoch)
    if state.epoch >= cfg.epochs or state.waited(cfg.stop_interval):
        logger.info(f"training is done after {state.epoch} epochs, see {snapshot}")
        return
    logger.info(f"HDMNet: {cfg.backbone}, fold {cfg.split} of {cfg.data_set}, {cfg.shot}-shot")
    trainer.describe()
    wrapped = distributed(net, processes)
    warmup_steps = trainer.steps / 2 if cfg.warmup else 0

    def losses_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with trainer.precision.autocast():
            out = wrapped(
                batch["query"], batch["support"], batch["support_mask"], batch["class_index"]
            )
        terms = loss(out, batch["query_mask"], batch["base_mask"], cfg.aux_weight1, cfg.aux_weight2)
        others = {name: value for name, value in terms._asdict().items() if name != "total"}
        return {"loss": terms.total, **others}

    def validate() -> dict[str, float]:
        assert val_episodes is not None  # It is called only where `cfg.evaluate` is set.
        seed = (cfg.manual_seed or 0) + (0 if cfg.fix_random_seed_val else state.epoch)
        draws = draw_test_episodes(val_episodes.lists, cfg.shot, cfg.val_num, seed, cfg.workers)
        predictor = build_predictor(cfg, net, val_episodes, processes.device)
        scores = evaluate_episodes(predictor, [draws], processes).runs[0]
        return {key: value for key, value in scores.items() if key != "class_iou"}

    trainer.run(
        wrapped,
        losses_of,
        rate_of=lambda iteration: poly_rate(
            cfg.base_lr, iteration, trainer.total, cfg.power, warmup_steps
        ),
        validate=validate,
        validates=lambda epoch: cfg.evaluate and (epoch % cfg.val_freq == 0 or epoch == cfg.epochs),
        # Only short trainings are validated within the epochs, as in the published code.
        halves=cfg.evaluate and cfg.SubEpoch_val and cfg.epochs <= 100,
    )
    best = f"best mIoU {state.best:.4f} (epoch {state.best_epoch})" if cfg.evaluate else "done"
    logger.info(f"{best}, weights in {snapshot}")


if __name__ == "__main__":
    main()
