"""Stage 2: train HDMNet on episodes of the base classes of a fold."""

import logging
from pathlib import Path

import torch
from torch import nn

from model import build_hdmnet, hdmnet_loss
from util.checkpoint import check_classes, load_weights, read_checkpoint
from util.config import VIZ, load_config, parse_args
from util.distributed import Processes, start_processes
from util.draws import draw_test_episodes
from util.engine import (
    distributed,
    keep_best,
    keep_config,
    prepare_epoch,
    resume,
    run_epoch,
    save_last,
    start_run,
    to_device,
)
from util.errors import UserError, exits_on_user_error
from util.evaluator import evaluate_episodes
from util.loaders import build_episodes, build_train_loader
from util.log import RemainingTime
from util.precision import Precision
from util.schedule import hdmnet_optimizer, poly_rate
from util.seed import untouched_random_streams
from util.snapshots import find_base_learner, script, snapshot_dir


@exits_on_user_error
def main() -> None:
    args = parse_args(__doc__, flags=(VIZ,))
    cfg = load_config(args.config, args.opts)
    with start_processes() as processes:
        train(cfg, processes, args.viz)


def build_model(cfg, base_classes: tuple[int, ...], logger: logging.Logger) -> nn.Module:
    """HDMNet as `pre_weight` holds it, or around the trained base learner.

    Raises:
        UserError: there is no base learner, or a checkpoint does not fit.
    """
    net = build_hdmnet(base_classes=len(base_classes), **cfg.model_arguments)
    if cfg.pre_weight:
        path, part = Path(cfg.pre_weight), net
    else:
        found = find_base_learner(cfg)
        if found is None:
            raise UserError(
                f"no base learner in {snapshot_dir(cfg.base_dir)} or at {cfg.initmodel_base_path}; "
                f"train it by `{script(cfg, 'train_base.sh')}` or set base_weight"
            )
        path, part = found.path, net.base
        logger.info(
            f"base learner: {path}" + ("" if found.complete else " (training not complete)")
        )
    content = read_checkpoint(path)
    check_classes(content, base_classes, str(path))
    load_weights(part, content["state_dict"], str(path))
    return net


def train(cfg, processes: Processes, viz: bool) -> None:
    """Train until `epochs`, going on from the last checkpoint; validate and keep the best."""
    train_loader = build_train_loader(cfg, processes.rank, processes.world_size)
    val_episodes = build_episodes(cfg, "val", testing=True) if cfg.evaluate else None
    base_classes = train_loader.dataset.classes
    logger, scalars = start_run(cfg, cfg.run_dir, processes, viz)
    snapshot = snapshot_dir(cfg.run_dir)

    net = build_model(cfg, base_classes, logger).to(processes.device)
    precision = Precision(cfg.amp, processes.device)
    optimizer = hdmnet_optimizer(net, cfg.base_lr, cfg.weight_decay, cfg.train_kshot_rw)
    state = resume(cfg.resume, snapshot, net, optimizer, base_classes, processes, logger)
    state.epoch = max(state.epoch, cfg.start_epoch)
    if state.epoch >= cfg.epochs or state.waited(cfg.stop_interval):
        logger.info(f"training is done after {state.epoch} epochs, see {snapshot}")
        return
    keep_config(cfg, cfg.run_dir, processes)

    steps = len(train_loader)
    total = cfg.epochs * steps
    warmup_steps = steps / 2 if cfg.warmup else 0
    trained = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    logger.info(
        f"HDMNet: {cfg.backbone}, fold {cfg.split} of {cfg.data_set}, {cfg.shot}-shot, "
        f"{trained / 1e6:.2f} M trained parameters, {len(train_loader.dataset)} images, "
        f"batch {cfg.batch_size * processes.world_size}, {total} iterations"
    )
    if not cfg.fix_bn and processes.world_size > 1 and processes.device.type == "cuda":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    # The frozen base learner's buffers never change: no need to send them round every step.
    wrapped = distributed(net, processes, broadcast_buffers=not cfg.fix_bn)
    remaining = RemainingTime(total, state.epoch * steps)
    details = {"backbone": cfg.backbone, "shot": cfg.shot, "base_classes": list(base_classes)}

    def losses_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        batch = to_device(batch, processes.device)
        with precision.autocast():
            out = wrapped(
                batch["query"], batch["support"], batch["support_mask"], batch["class_index"]
            )
        losses = hdmnet_loss(
            out, batch["query_mask"], batch["base_mask"], cfg.aux_weight1, cfg.aux_weight2
        )
        return {
            "loss": losses.total,
            "main": losses.main,
            "distillation": losses.distillation,
            "base": losses.base,
        }

    def validate(epoch: float) -> None:
        """Evaluate and keep the best; `epoch` counts the epochs trained, halves included."""
        seed = (cfg.manual_seed or 0) + (0 if cfg.fix_random_seed_val else state.epoch)
        draws = draw_test_episodes(val_episodes.lists, cfg.shot, cfg.val_num, seed, cfg.workers)
        with untouched_random_streams(), precision.autocast():
            metrics = evaluate_episodes(
                net, val_episodes, draws, processes, cfg.ori_resize, cfg.workers
            ).metrics
        values = {key: value for key, value in metrics.results().items() if key != "class_iou"}
        text = "  ".join(f"{key} {value:.4f}" for key, value in values.items())
        logger.info(f"epoch {epoch:g}/{cfg.epochs}  {text}")
        scalars.add("val", values, round(epoch * steps))
        keep_best(snapshot, net, state, values["mIoU"], details, write=processes.is_main)

    def validate_halfway() -> None:
        validate(state.epoch + 0.5)
        wrapped.train()

    # Only short trainings are validated within the epochs, as in the published code.
    halves = cfg.evaluate and cfg.SubEpoch_val and cfg.epochs <= 100
    while state.epoch < cfg.epochs:
        prepare_epoch(cfg, state.epoch, train_loader)
        wrapped.train()
        run_epoch(
            train_loader,
            losses_of,
            optimizer,
            precision.scaler,
            lambda iteration: poly_rate(cfg.base_lr, iteration, total, cfg.power, warmup_steps),
            state.epoch * steps,
            remaining,
            logger,
            scalars,
            cfg.print_freq,
            validate_halfway if halves and state.epoch > 0 else None,
        )
        epoch = state.epoch + 1
        validates = cfg.evaluate and (epoch % cfg.val_freq == 0 or epoch == cfg.epochs)
        if validates:
            validate(epoch)
        state.epoch = epoch
        stops = validates and state.waited(cfg.stop_interval)
        saves = stops or epoch % cfg.save_freq == 0 or epoch in (cfg.epochs, state.best_epoch)
        if processes.is_main and saves:
            save_last(snapshot, net, optimizer, state, details)
        processes.barrier()
        if stops:
            logger.info(f"no better mIoU for {cfg.stop_interval} epochs: stopping")
            break
    logger.info(f"best mIoU {state.best:.4f} (epoch {state.best_epoch}), weights in {snapshot}")
    scalars.close()


if __name__ == "__main__":
    main()
