"""The training loss: segmentation and correlation-map distillation (paper, sections 3.3 and 3.5)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.hdmnet import HDMNetOutput
from model.mm import resize

IGNORE_LABEL = 255


class Losses(NamedTuple):
    """Scalars: `total` is what is minimised; `main` = CE(final) + CE(meta)."""

    total: Tensor
    main: Tensor
    distillation: Tensor
    base: Tensor


def kl_distillation(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(softmax(teacher) ‖ softmax(student)) over positions, mean over the batch.

    Args:
        teacher: (B, h, w), unnormalised.
        student: (B, h, w), unnormalised.
    """
    p = teacher.float().flatten(1).softmax(dim=1)
    q = student.float().flatten(1).softmax(dim=1)
    return (p * ((p + 1e-12).log() - (q + 1e-12).log())).sum(1).mean()


def correlation_distillation(correlations: list[Tensor], query_mask: Tensor) -> Tensor:
    """Each correlation map learns from the next-coarser one, the coarsest from the ground truth.

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
    """The loss of one batch of episodes.

    `final` holds probabilities and is taken for logits, as in the published model. The base learner is
    frozen, so its term has no gradient: it is there to be watched.

    Args:
        output: of `HDMNet`.
        query_mask: int64 (B, H, W): 1 class, 0 other, 255 ignore.
        base_mask: int64 (B, H, W): 0 background, 1..N base classes, 255 ignore.
        distillation_weight: `aux_weight1`.
        base_weight: `aux_weight2`.
    """
    main = sum(
        F.cross_entropy(logits.float(), query_mask, ignore_index=IGNORE_LABEL)
        for logits in (output.final, output.meta)
    )
    distillation = correlation_distillation(output.correlations, query_mask)
    # As rows of classes: these logits lie channels last, and would be copied.
    base = F.cross_entropy(
        output.base.float().movedim(1, -1).flatten(0, 2),
        base_mask.flatten(),
        ignore_index=IGNORE_LABEL,
    )
    total = main + distillation_weight * distillation + base_weight * base
    return Losses(total, main, distillation, base)
