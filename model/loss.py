"""The training loss: segmentation and correlation-map distillation (paper, sections 3.3 and 3.5)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.mm import resize
from model.reference import HDMNetOutput

IGNORE_LABEL = 255


class Losses(NamedTuple):
    """Terms of the loss, all scalars.

    Attributes:
        total: the weighted sum, which is minimised.
        main: CE(final) + CE(meta).
        distillation: D, see `correlation_distillation`.
        base: CE(base).
    """

    total: Tensor
    main: Tensor
    distillation: Tensor
    base: Tensor


def kl_distillation(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(softmax(teacher) ‖ softmax(student)) over positions, mean over the batch.

    This is one term of (15) of docs/method.md.

    Args:
        teacher: (B, h, w), before the softmax.
        student: (B, h, w), before the softmax.
    """
    p = teacher.float().flatten(1).softmax(dim=1)
    q = student.float().flatten(1).softmax(dim=1)
    return (p * ((p + 1e-12).log() - (q + 1e-12).log())).sum(1).mean()


def correlation_distillation(correlations: list[Tensor], query_mask: Tensor) -> Tensor:
    """Return the distillation term D.

    Each correlation map learns from the next-coarser one, and the coarsest from the ground truth:
    (15), (16) of docs/method.md.

    Args:
        correlations: maps (B, h_i, w_i), coarsest first.
        query_mask: (B, H, W), 1 on the class.
    """
    teacher = torch.where(query_mask == 1, 1.0, -1e9)
    loss = torch.zeros((), device=query_mask.device)
    for student in correlations:
        resized = resize(
            teacher.float()[:, None],
            size=student.shape[-2:],
            mode="bilinear",
            align_corners=False,
        )
        loss = loss + kl_distillation(resized[:, 0], student)
        teacher = student.detach()
    return loss / len(correlations)


def hdmnet_loss(
    output: HDMNetOutput,
    query_mask: Tensor,
    base_mask: Tensor,
    distillation_weight: float = 1.0,
    base_weight: float = 1.0,
) -> Losses:
    """Return the loss of one batch of episodes, (23) of docs/method.md.

    `final` holds probabilities that the cross-entropy takes as logits, as in the published model. The
    base learner is frozen, so its term has no gradient and is only reported. Without a base learner,
    `final` are the logits of `meta`, which count once, and CE(base) is 0.

    Args:
        output: of `HDMNet`.
        query_mask: int64 (B, H, W): 1 class, 0 other, 255 ignore.
        base_mask: int64 (B, H, W): 0 background, 1..N base classes, 255 ignore.
        distillation_weight: factor of D, the setting `aux_weight1`.
        base_weight: factor of CE(base), the setting `aux_weight2`.
    """
    final, meta = (
        F.cross_entropy(logits.float(), query_mask, ignore_index=IGNORE_LABEL)
        for logits in (output.final, output.meta)
    )
    distillation = correlation_distillation(output.correlations, query_mask)
    if output.base_map.shape[1] == 1:
        return Losses(
            meta + distillation_weight * distillation, meta, distillation, 0 * meta.detach()
        )
    main, base = final + meta, _base_cross_entropy(output, base_mask)
    total = main + distillation_weight * distillation + base_weight * base
    return Losses(total, main, distillation, base)


@torch.no_grad()
def _base_cross_entropy(output: HDMNetOutput, base_mask: Tensor) -> Tensor:
    """Return CE(base), whose logits at full size would be the largest tensor of a training step."""
    total = torch.zeros((), device=base_mask.device)
    for one in range(len(base_mask)):
        logits = resize(
            output.base_map[one : one + 1].float(),
            size=base_mask.shape[-2:],
            mode="bilinear",
            align_corners=True,
        )
        # These logits lie in memory channels last. As rows of classes they need no copy.
        rows = logits.movedim(1, -1).flatten(0, 2)
        label = base_mask[one].flatten()
        total += F.cross_entropy(rows, label, ignore_index=IGNORE_LABEL, reduction="sum")
    return total / (base_mask != IGNORE_LABEL).sum()
