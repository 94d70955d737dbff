"""Stage 1: train the base learner, a PSPNet over the base classes of a fold."""

from collections.abc import Callable, Sequence
from typing import cast

import util  # isort: skip  # Before torch, since it says how threads wait.
import torch
import torch.nn.functional as F

from model import build_pspnet
from util.checkpoints.run_files import RunFiles
from util.config import VIZ, Config, config_parser, load_config
from util.data.dataset import BaseDataset
from util.data.loaders import build_base_data, build_train_loader, build_validation_episodes
from util.evaluation.evaluator import evaluate_base
from util.pretrained.places import require_imagenet
from util.runtime.distributed import Processes, start_processes
from util.runtime.errors import UserError
from util.training.engine import Run, Trainer, open_run
from util.training.iteration import Recipe
from util.training.model import needs_stage_1, start_backbone
from util.training.schedule import base_optimizer, poly_rate

IF_MISSING = ("--if-missing", "do nothing where stage 2 finds a complete base learner")


@util.exits_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv`, by default that of this process."""
    args = config_parser(__doc__, flags=(VIZ, IF_MISSING)).parse_args(argv)
    cfg = load_config(args.config, args.opts)
    if args.if_missing:
        if not needs_stage_1(cfg):
            return
        # These are the settings of stage 2, whose `resume` means the other model.
        cfg = cfg.model_copy(update={"resume": "auto"})
    with start_processes() as processes:
        if args.if_missing:
            _require_data_of_stage_2(cfg, processes)
        train(cfg, processes, args.viz)


def _require_data_of_stage_2(cfg: Config, processes: Processes) -> None:
    """Raise the UserErrors of stage 2 about its data, which would come after hours of stage 1."""
    build_train_loader(cfg, processes.rank, processes.world_size)
    if cfg.evaluate:
        build_validation_episodes(cfg)


def train(cfg: Config, processes: Processes, viz: bool) -> None:
    """Train until `base_epochs`, from the last checkpoint if there is one."""
    if cfg.base_learner == "none":
        raise UserError("base_learner is none: there is no stage 1; train stage 2 by train.sh")
    with open_run(cfg, RunFiles(cfg).base_folder, processes, viz) as run:
        if not run.saved:
            require_imagenet(cfg)
        _train(run)


def _train(run: Run) -> None:
    cfg, processes, logger = run.cfg, run.processes, run.logger
    loader, val_images = build_base_data(cfg, processes.rank, processes.world_size)
    classes = list(cast(BaseDataset, loader.dataset).base_classes)

    net = build_pspnet(cfg.backbone, len(classes))
    if not run.saved:
        start_backbone(net.backbone, cfg, logger)
    net.to(processes.device).to(memory_format=torch.channels_last)
    if cfg.compile:
        net.compile()
    optimizer = base_optimizer(
        net,
        cfg.base_rate,
        cfg.base_momentum,
        cfg.base_weight_decay,
        cfg.base_encoder_ratio,
        cfg.base_head_ratio,
    )
    total = cfg.base_epochs * (len(loader) // cfg.grad_accum)

    def losses_of(
        forward: Callable[..., torch.Tensor], batch: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        logits = forward(batch["image"]).float()
        return {"loss": F.cross_entropy(logits, batch["label"], ignore_index=cfg.ignore_label)}

    trainer = Trainer(
        run,
        Recipe(
            net,
            optimizer,
            loader,
            cfg.grad_accum,
            cfg.base_epochs,
            {"backbone": cfg.backbone, "base_classes": classes},
            losses_of,
            lambda iteration: poly_rate(cfg.base_rate, iteration, total, cfg.base_power),
            lambda _: {"mIoU": evaluate_base(net, val_images, processes, cfg.workers)},
            lambda epoch: epoch % cfg.base_val_freq == 0 or epoch == cfg.base_epochs,
        ),
    )
    if trainer.state.epoch >= cfg.base_epochs:
        logger.info(f"base learner: all {cfg.base_epochs} epochs are done, see {run.snapshot}")
        return
    logger.info(f"base learner: {cfg.backbone}, fold {cfg.split} of {cfg.data_set}")
    trainer.train()
    logger.info(f"base learner: best mIoU {trainer.state.best:.4f}, weights in {run.snapshot}")


if __name__ == "__main__":
    main()
