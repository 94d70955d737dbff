"""Training-free guidance: masked prototypes and the similarity prior (paper, section 3.2; PFENet)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.mm import resize
from model.precision import full_precision, widened

# Elements of one tile of cosines: few enough to stay in a cache, many enough to fill a GPU.
CPU_TILE = 2**20
GPU_TILE = 2**26


def masked_prototype(feature: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of each feature map over its mask, the prototype (3) of docs/method.md.

    Args:
        feature: (B, C, h, w).
        mask: (B, 1, H, W) in [0, 1], at any resolution.

    Returns:
        (B, C, 1, 1).
    """
    mask = resize(mask, size=feature.shape[-2:], mode="bilinear", align_corners=True)
    with full_precision(feature.device):
        total = widened(feature).flatten(2) @ mask.flatten(2).transpose(1, 2)  # (B, C, 1)
        return (total / (mask.flatten(2).sum(2, keepdim=True) + 0.0005))[..., None]


def product_type(feature: Tensor) -> torch.dtype:
    """Return the type that the prior's products of a backbone's features are computed in.

    It is bfloat16 for features of that type, since rounding unit vectors once more moves a cosine by
    far less. Products in float16 could overflow.
    """
    if feature.dtype == torch.bfloat16:
        return torch.bfloat16
    return torch.promote_types(feature.dtype, torch.float32)


def unit_rows(tokens: Tensor) -> Tensor:
    """Return tokens (..., C) at unit length, in float32 or wider; zeros stay zeros."""
    return F.normalize(widened(tokens), dim=-1)


def stretched(prior: Tensor) -> Tensor:
    """Return maps (..., h, w), each brought to the range from 0 to 1."""
    low, high = prior.amin((-2, -1), keepdim=True), prior.amax((-2, -1), keepdim=True)
    return (prior - low) / (high - low + 1e-7)


def similarity_prior(query: Tensor, support: Tensor) -> Tensor:
    """Return how similar each query position is to its best match inside the supports' masks.

    This is (4) of docs/method.md; see docs/fast_path.md, "The similarity prior".

    Args:
        query: features (B, n, C), of any length.
        support: features (B, K, m, C) of the support positions inside the masks, of unit length. A
            row of zeros represents the positions outside.

    Returns:
        (B, n): the maximum of the cosine over support positions, those outside the mask counting as
        0, and its mean over the supports.
    """
    if support.dtype != product_type(query):
        query, support = widened(query), widened(support)
    columns = support.flatten(1, 2).transpose(1, 2)  # (B, C, K·m)
    rows = max(1, (GPU_TILE if query.is_cuda else CPU_TILE) // (len(query) * columns.shape[2]))
    best = []
    for part in query.split(rows, dim=1):
        part = part.to(support.dtype)
        products = (part @ columns).unflatten(2, support.shape[1:3])
        highest = widened(products.amax(-1)).mean(-1)
        best.append(highest / widened(part).norm(dim=-1).clamp(min=1e-12))
    return torch.cat(best, dim=1)
