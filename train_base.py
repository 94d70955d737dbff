"""Stage 1: train the base learner, a PSPNet over the base classes of a fold."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from model import build_pspnet
from util.checkpoint import load_backbone
from util.config import VIZ, load_config, parse_args
from util.distributed import start_processes
from util.engine import (
    distributed,
    keep_best,
    prepare_epoch,
    resume,
    run_epoch,
    save_last,
    start_run,
    to_device,
)
from util.errors import exits_on_user_error
from util.evaluator import evaluate_base
from util.loaders import build_base_data
from util.log import RemainingTime
from util.schedule import base_optimizer, poly_rate
from util.seed import untouched_random_streams

IF_MISSING = ("--if-missing", "do nothing where base_weight or initmodel gives a base learner")


@exits_on_user_error
def main() -> None:
    args = parse_args(__doc__, flags=(VIZ, IF_MISSING))
    cfg = load_config(args.config, args.opts)
    given = cfg.base_weight or Path(cfg.initmodel_base_path).is_file()
    if args.if_missing and given:
        return
    with start_processes() as processes:
        train(cfg, processes, args.viz)


def train(cfg, processes, viz: bool) -> None:
    """Train until `base_epochs`, going on from the last checkpoint."""
    train_loader, val_images = build_base_data(cfg, processes.rank, processes.world_size)
    logger, scalars = start_run(cfg, cfg.base_dir, processes, viz)
    snapshot = Path(cfg.base_dir) / "snapshot"

    net = build_pspnet(cfg.backbone, train_loader.dataset.num_base)
    if cfg.backbone_weight not in (None, "none"):
        load_backbone(net.backbone, cfg.backbone_weight)
    net.to(processes.device)
    optimizer = base_optimizer(
        net,
        cfg.base_rate,
        cfg.base_momentum,
        cfg.base_weight_decay,
        cfg.base_encoder_ratio,
        cfg.base_head_ratio,
    )
    state = resume(cfg.resume, snapshot, net, optimizer, logger)
    if state.epoch >= cfg.base_epochs:
        logger.info(f"base learner: all {cfg.base_epochs} epochs are done, see {snapshot}")
        return

    steps = len(train_loader)
    total = cfg.base_epochs * steps
    logger.info(
        f"base learner: {cfg.backbone}, fold {cfg.split} of {cfg.data_set}, "
        f"{len(train_loader.dataset)} images, batch {cfg.base_batch_size}, {total} iterations"
    )
    if processes.world_size > 1 and processes.device.type == "cuda":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    wrapped = distributed(net, processes)
    remaining = RemainingTime(total, state.epoch * steps)
    details = {"backbone": cfg.backbone}

    def losses_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        batch = to_device(batch, processes.device)
        loss = F.cross_entropy(
            wrapped(batch["image"]), batch["label"], ignore_index=cfg.ignore_label
        )
        return {"loss": loss}

    while state.epoch < cfg.base_epochs:
        prepare_epoch(cfg, state.epoch, train_loader)
        wrapped.train()
        run_epoch(
            train_loader,
            losses_of,
            optimizer,
            lambda iteration: poly_rate(cfg.base_rate, iteration, total, cfg.base_power),
            state.epoch * steps,
            remaining,
            logger,
            scalars,
            cfg.print_freq,
        )
        epoch = state.epoch + 1
        if epoch % cfg.base_val_freq == 0 or epoch == cfg.base_epochs:
            with untouched_random_streams():
                miou = evaluate_base(net, val_images, processes, cfg.workers)
            logger.info(f"epoch {epoch}/{cfg.base_epochs}  mIoU of base classes {miou:.4f}")
            scalars.add("val", {"mIoU_b": miou}, epoch)
            keep_best(snapshot, net, state, miou, details, write=processes.is_main)
        state.epoch = epoch
        if processes.is_main:
            save_last(snapshot, net, optimizer, state, details)
        processes.barrier()
    logger.info(f"base learner: best mIoU {state.best:.4f}, weights in {snapshot}")
    scalars.close()


if __name__ == "__main__":
    main()
