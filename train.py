"""Stage 2: train HDMNet on episodes of the base classes of a fold."""

from collections.abc import Callable, Sequence
from typing import cast

import util  # isort: skip  # Before torch, since it says how threads wait.
import torch

from model import HDMNetOutput, build_hdmnet, hdmnet_loss
from model.parts import Loss
from util.checkpoints.run_files import RunFiles
from util.config import VIZ, Config, config_parser, load_config
from util.data.draws import draw_test_episodes
from util.data.episodes import EpisodeDataset
from util.data.loaders import build_train_loader, build_validation_episodes, learner_classes
from util.evaluation.evaluator import evaluate_episodes
from util.evaluation.predictor import build_predictor
from util.runtime.distributed import Processes, start_processes
from util.training.engine import Run, Trainer, open_run
from util.training.iteration import Recipe
from util.training.model import initial_model, require_start_files
from util.training.resume import LIST_SETTINGS, plan_batches
from util.training.schedule import hdmnet_optimizer, poly_rate


@util.exits_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv`, by default that of this process."""
    args = config_parser(__doc__, flags=(VIZ,)).parse_args(argv)
    cfg = load_config(args.config, args.opts)
    with start_processes() as processes:
        train(cfg, processes, args.viz)


def train(cfg: Config, processes: Processes, viz: bool, loss: Loss = hdmnet_loss) -> None:
    """Train until `epochs`, from the last checkpoint if there is one; validate and keep the best.

    Args:
        cfg: The settings.
        processes: This process among all.
        viz: Whether to write TensorBoard's files too.
        loss: The loss of a batch, see `model.parts.Loss`; all its terms are logged.

    Raises:
        UserError: There is no base learner, or a checkpoint does not fit.
    """
    with open_run(cfg, RunFiles(cfg).folder, processes, viz) as run:
        if not run.saved:
            require_start_files(cfg)
        _train(run, loss)


def _train(run: Run, loss: Loss) -> None:
    cfg, processes, logger = run.cfg, run.processes, run.logger
    rank, world_size = processes.rank, processes.world_size
    batch_size, grad_accum = plan_batches(cfg.batch_size, cfg.grad_accum, world_size, run.saved)
    loader = build_train_loader(cfg, rank, world_size, (batch_size, grad_accum))
    val_episodes = build_validation_episodes(cfg) if cfg.evaluate else None
    classes = list(cast(EpisodeDataset, loader.dataset).classes)

    if run.saved:  # It brings the weights.
        net = build_hdmnet(base_classes=learner_classes(cfg), **cfg.model_arguments)
    else:
        net = initial_model(cfg, logger)
    net.to(processes.device)
    if cfg.compile:
        net.compile_parts()
    optimizer = hdmnet_optimizer(net, cfg.base_lr, cfg.weight_decay, cfg.train_kshot_rw)
    steps = len(loader) // grad_accum

    def losses_of(
        forward: Callable[..., HDMNetOutput], batch: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        out = forward(batch["query"], batch["support"], batch["support_mask"], batch["class_index"])
        terms = loss(out, batch["query_mask"], batch["base_mask"], cfg.aux_weight1, cfg.aux_weight2)
        others = {name: value for name, value in terms._asdict().items() if name != "total"}
        return {"loss": terms.total, **others}

    def lengths_of(batch: dict[str, torch.Tensor]) -> tuple[int, ...]:
        return net.mask_lengths(batch["support_mask"])

    def rate_of(iteration: int) -> float:
        warmup_steps = steps / 2 if cfg.warmup else 0
        return poly_rate(cfg.base_lr, iteration, cfg.epochs * steps, cfg.power, warmup_steps)

    def validate(epoch: int) -> dict[str, float]:
        assert val_episodes is not None  # It is called only where `cfg.evaluate` is set.
        seed = (cfg.manual_seed or 0) + (0 if cfg.fix_random_seed_val else epoch)
        draws = draw_test_episodes(val_episodes.lists, cfg.shot, cfg.val_num, seed, cfg.workers)
        predictor = build_predictor(cfg, net, val_episodes, processes.device)
        skips = cfg.absent_class == "skip"
        scores = evaluate_episodes(predictor, [draws], processes, skip_absent=skips).runs[0]
        return {key: value for key, value in scores.items() if key != "class_iou"}

    trainer = Trainer(
        run,
        Recipe(
            net,
            optimizer,
            loader,
            grad_accum,
            cfg.epochs,
            {
                "backbone": cfg.backbone,
                "data_set": cfg.data_set,
                "shot": cfg.shot,
                "base_classes": classes,
                # What segmenter.py needs besides, to use the checkpoint without its settings.
                "size": cfg.val_size,
                "low_fea": cfg.low_fea,
                "kshot_order": cfg.kshot_order,
                "prior": cfg.prior,
                **{key: getattr(cfg, key) for key in LIST_SETTINGS},
            },
            losses_of,
            rate_of,
            validate,
            lambda epoch: cfg.evaluate and (epoch % cfg.val_freq == 0 or epoch == cfg.epochs),
            # Only short trainings are validated within the epochs, as in the published code.
            halves=cfg.evaluate and cfg.SubEpoch_val and cfg.epochs <= 100,
            lengths_of=lengths_of if cfg.cuda_graphs else None,
        ),
    )
    state = trainer.state
    state.epoch = max(state.epoch, cfg.start_epoch)
    if state.epoch >= cfg.epochs or state.waited(cfg.stop_interval):
        logger.info(f"training is done after {state.epoch} epochs, see {run.snapshot}")
        return
    logger.info(f"HDMNet: {cfg.backbone}, fold {cfg.split} of {cfg.data_set}, {cfg.shot}-shot")
    trainer.train()
    best = f"best mIoU {state.best:.4f} (epoch {state.best_epoch})" if cfg.evaluate else "done"
    logger.info(f"{best}, weights in {run.snapshot}")


if __name__ == "__main__":
    main()
