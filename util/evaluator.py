"""Evaluation on episodes; validation during training and the test protocol both run this."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Subset
from tqdm import tqdm

from model import HDMNet, PSPNet
from util.distributed import Processes
from util.draws import Draw, DrawnEpisodes
from util.episodes import EpisodeDataset
from util.loaders import evaluation_loader
from util.metrics import EpisodeMetrics, SegmentationMetrics
from util.prior_baseline import PriorHistograms


class Evaluation(NamedTuple):
    """Counts over all processes, and the first predictions: (draw, final (H, W) in {0, 1}).

    The predictions have the original size of the query.
    """

    metrics: EpisodeMetrics
    prior: PriorHistograms | None
    predictions: list[tuple[Draw, Tensor]]


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (B, C, S, S) at another size (B, C, H, W)."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=True)


@torch.no_grad()
def evaluate_episodes(
    net: HDMNet,
    episodes: EpisodeDataset,
    draws: list[Draw],
    processes: Processes,
    original_size: bool = True,
    workers: int = 0,
    baselines: bool = False,
    keep: int = 0,
    progress: str | None = None,
) -> Evaluation:
    """Run a model on drawn episodes, each process its share; the counts are those of all.

    Args:
        net: the model, put in eval mode and left so.
        episodes: where the draws are loaded from.
        draws: the episodes.
        processes: this process among all.
        original_size: compare at the original size of the query ("ori_resize"), else at S×S.
        workers: loader workers of this process.
        baselines: also gather what the baselines need.
        keep: predictions to return, of the first episodes (main process only).
        progress: label of a progress bar, None for none.
    """
    net.eval()
    metrics = EpisodeMetrics(episodes.classes, len(episodes.base_classes))
    prior = PriorHistograms(episodes.classes) if baselines else None
    kept: list[tuple[Draw, Tensor]] = []
    share = draws[processes.rank :: processes.world_size]
    loader = evaluation_loader(DrawnEpisodes(episodes, share), workers)
    shown = progress is not None and processes.is_main
    # None: a bar on a terminal, nothing in a file.
    bar = tqdm(loader, desc=progress, disable=None if shown else True)
    for draw, batch in zip(share, bar, strict=True):
        out = net(
            *(batch[key].to(processes.device) for key in ("query", "support", "support_mask"))
        )
        label, base_label = batch["query_mask"][0], batch["base_mask"][0]
        if original_size:
            label, base_label = batch["label"][0], batch["base_label"][0]
        fitted = episodes.transform.fitted_size(*batch["label"].shape[-2:])

        def at_label_size(logits, size=label.shape, fitted=fitted):
            if original_size:
                # Where the image fills part of its canvas, the rest has no place in the original.
                logits = resize_logits(logits[..., : fitted[0], : fitted[1]], size)
            return logits[0]

        predictions = [
            at_label_size(logits).argmax(0) for logits in (out.final, out.meta, out.base)
        ]
        metrics.update(draw.class_id, *predictions, label, base_label)
        if prior is not None:
            enlarged = resize_logits(out.prior, batch["query"].shape[-2:])
            prior.update(draw.class_id, at_label_size(enlarged), label)
        if processes.is_main and len(kept) < keep:
            final = out.final[..., : fitted[0], : fitted[1]]
            shape = batch["label"].shape[-2:]
            kept.append((draw, resize_logits(final, shape)[0].argmax(0).cpu()))
    metrics.load_state(processes.sum(metrics.state()))
    if prior is not None:
        prior.load_state(processes.sum(prior.state()))
    return Evaluation(metrics, prior, kept)


@torch.no_grad()
def evaluate_base(net: PSPNet, dataset, processes: Processes, workers: int = 0) -> float:
    """mIoU of the base learner over its base classes, on images at their original size.

    Args:
        net: the base learner, put in eval mode and left so.
        dataset: `BaseDataset` of the val list.
        processes: this process among all.
        workers: loader workers of this process.
    """
    net.eval()
    metrics = SegmentationMetrics(net.base_classes + 1)
    share = Subset(dataset, range(processes.rank, len(dataset), processes.world_size))
    for batch in evaluation_loader(share, workers):
        logits = net(batch["image"].to(processes.device))
        label = batch["label"][0]
        metrics.update(resize_logits(logits, label.shape)[0].argmax(0), label)
    metrics.load_state(processes.sum(metrics.state()))
    return metrics.miou(range(1, net.base_classes + 1))
