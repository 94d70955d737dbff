"""Matching and prior alone, forward and backward, on random features of the model's sizes."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmark.cases import random_masks
from model import reference
from model.masked import MaskGrids
from model.matching import MatchingLayer, SupportTokens
from model.prior import similarity_prior, unit_rows

CHANNELS = (64, 512, 2048)  # of the hierarchy's finest stage, of f5 and of f4 with ResNet-50


def matching_step(
    size: int, shot: int, share: float, way: str, device: torch.device
) -> tuple[Callable[[], None], int]:
    """A function that matches one query with K supports at the finest stage, and computes both priors.

    Args:
        size: of the images, in pixels.
        shot: K.
        share: part of each support that its mask covers.
        way: "fast" or "reference".
        device: where.

    Returns:
        The function, and the number of support positions inside the masks.
    """
    torch.manual_seed(0)
    side = (size - 1) // 8 + 1
    grid = (side, side)
    full = torch.ones(shot, size, size)
    masks = full if share >= 1 else (random_masks(shot, size, share) == 1).float()
    masks = masks.to(device)
    (positions,) = MaskGrids(masks, [grid]).positions
    layer = MatchingLayer(CHANNELS[0]).to(device)
    query = torch.randn(1, CHANNELS[0], *grid, device=device)
    prior = torch.rand(1, 2, *grid, device=device)
    count = int(positions.count.sum())

    def maps(number: int, channels: int) -> Tensor:
        return torch.randn(number, channels, *grid, device=device)

    if way == "reference":
        support = maps(shot, CHANNELS[0]).requires_grad_()
        frozen = [(maps(1, channels), maps(shot, channels)[None]) for channels in CHANNELS[1:]]

        def step() -> None:
            with torch.no_grad():
                for own, others in frozen:
                    reference.dense_prior(own, others, masks[None])
            matched, _ = reference.match(layer, query, support[None], masks[None], prior, 1.0)
            matched.sum().backward()

        return step, count

    gathered = torch.randn(shot, positions.index.shape[1], CHANNELS[0], device=device)
    gathered.requires_grad_()
    rows = [
        (
            torch.randn(1, side**2, channels, device=device),
            unit_rows(torch.randn(1, *gathered.shape[:2], channels, device=device)),
        )
        for channels in CHANNELS[1:]
    ]

    def step() -> None:
        with torch.no_grad():
            for own, others in rows:
                similarity_prior(own, others)
        tokens = layer.attention.encode_support(layer.norm1(gathered), positions)
        tokens = SupportTokens(*(tensor[None] for tensor in tokens))
        layer(query, tokens, prior)[0].sum().backward()

    return step, count
