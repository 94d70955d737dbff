"""Stage 1: train the base learner, a PSPNet over the base classes of a fold."""

import torch
import torch.nn.functional as F

from model import build_pspnet
from util.checkpoints.io import load_backbone
from util.checkpoints.run_files import RunFiles
from util.config import VIZ, load_config, parse_args
from util.data.loaders import build_base_data
from util.evaluation.evaluator import evaluate_base
from util.runtime.distributed import start_processes
from util.runtime.errors import UserError, exits_on_user_error
from util.training.engine import Trainer, distributed, start_run
from util.training.model import needs_stage_1
from util.training.resume import find_saved
from util.training.schedule import base_optimizer, poly_rate

IF_MISSING = ("--if-missing", "do nothing where stage 2 finds a complete base learner")


@exits_on_user_error
def main() -> None:
    args = parse_args(__doc__, flags=(VIZ, IF_MISSING))
    cfg = load_config(args.config, args.opts)
    if args.if_missing:
        if not needs_stage_1(cfg):
            return
        # The settings are those of stage 2: what they say of resuming means the other model.
        cfg = cfg.model_copy(update={"resume": "auto"})
    with start_processes() as processes:
        train(cfg, processes, args.viz)


def train(cfg, processes, viz: bool) -> None:
    """Train until `base_epochs`, going on from the last checkpoint."""
    files = RunFiles(cfg)
    if files.imagenet_weight is None:
        raise UserError(
            "backbone_weight is not set; give ImageNet weights, or none for random ones"
        )
    snapshot = files.base_snapshot
    logger, scalars = start_run(cfg, files.base_folder, processes, viz)
    saved = find_saved(cfg.resume, snapshot, processes, logger)
    train_loader, val_images = build_base_data(cfg, processes.rank, processes.world_size)
    base_classes = train_loader.dataset.base_classes

    net = build_pspnet(cfg.backbone, len(base_classes))
    net.to(processes.device, memory_format=torch.channels_last)
    optimizer = base_optimizer(
        net,
        cfg.base_rate,
        cfg.base_momentum,
        cfg.base_weight_decay,
        cfg.base_encoder_ratio,
        cfg.base_head_ratio,
    )
    details = {"backbone": cfg.backbone, "base_classes": list(base_classes)}
    trainer = Trainer(
        cfg,
        files.base_folder,
        cfg.base_epochs,
        net,
        optimizer,
        train_loader,
        cfg.grad_accum,
        processes,
        logger,
        scalars,
        details,
    )
    if saved:
        trainer.restore(saved, base_classes)
    elif files.imagenet_weight != "none":
        load_backbone(net.backbone, files.imagenet_weight)
    if trainer.state.epoch >= cfg.base_epochs:
        logger.info(f"base learner: all {cfg.base_epochs} epochs are done, see {snapshot}")
        return
    logger.info(f"base learner: {cfg.backbone}, fold {cfg.split} of {cfg.data_set}")
    trainer.describe()
    wrapped = distributed(net, processes)

    def losses_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with trainer.precision.autocast():
            logits = wrapped(batch["image"])
        loss = F.cross_entropy(logits.float(), batch["label"], ignore_index=cfg.ignore_label)
        return {"loss": loss}

    trainer.run(
        wrapped,
        losses_of,
        rate_of=lambda iteration: poly_rate(
            cfg.base_rate, iteration, trainer.total, cfg.base_power
        ),
        validate=lambda: {"mIoU": evaluate_base(net, val_images, processes, cfg.workers)},
        validates=lambda epoch: epoch % cfg.base_val_freq == 0 or epoch == cfg.base_epochs,
    )
    logger.info(f"base learner: best mIoU {trainer.state.best:.4f}, weights in {snapshot}")
    scalars.close()


if __name__ == "__main__":
    main()
