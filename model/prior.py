"""Training-free guidance: masked prototypes and the similarity prior (paper, section 3.2; PFENet)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.mm import resize


def masked_prototype(feature: Tensor, mask: Tensor) -> Tensor:
    """Mean of a feature map over a mask.

    Args:
        feature: (B, C, h, w).
        mask: (B, 1, H, W) in [0, 1], at any resolution.

    Returns:
        (B, C, 1, 1).
    """
    mask = resize(mask, size=feature.shape[-2:], mode="bilinear", align_corners=True)
    total = (feature * mask).sum((2, 3), keepdim=True)
    return total / (mask.sum((2, 3), keepdim=True) + 0.0005)


def similarity_prior(query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
    """How much each query position resembles its best match inside the supports' masks.

    Args:
        query: features (B, C, h, w).
        support: features (B, K, C, h, w).
        mask: (B, K, H, W) in {0, 1}.

    Returns:
        (B, 1, h, w): the maximum over support positions of the cosine, masked-out positions counting
        as 0, mean over the supports.
    """
    size = query.shape[-2:]
    mask = F.interpolate(mask, size=size, mode="nearest").flatten(2).unsqueeze(2)  # (B, K, 1, hw)
    query = query.flatten(2)  # (B, C, hw)
    support = support.flatten(3) * mask  # (B, K, C, hw)
    norms = query.norm(dim=1)[:, None, :, None] * support.norm(dim=2)[:, :, None, :]
    dots = torch.einsum("bcq,bkcs->bkqs", query, support)
    best = (dots / (norms + 1e-7)).amax(dim=-1)  # (B, K, hw)
    return best.mean(dim=1, keepdim=True).unflatten(2, size)
