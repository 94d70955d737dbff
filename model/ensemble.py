"""Ensemble of the meta learner with the base learner (BAM, CVPR 2022, section 3.4)."""

import torch
from torch import Tensor, nn


def channel_gram(feature: Tensor) -> Tensor:
    """Return the cosines between the channels of feature maps (..., C, h, w): (..., C, C)."""
    rows = feature.flatten(-2)
    products = rows @ rows.transpose(-1, -2)
    norms = products.diagonal(dim1=-2, dim2=-1).sqrt()
    return products / (norms[..., :, None] * norms[..., None, :] + 1e-7)


def style_distance(query: Tensor, support: Tensor) -> Tensor:
    """Return the distance of the query's style to each support's, (19) of docs/method.md.

    Args:
        query: cosines between the channels (B, C, C), see `channel_gram`.
        support: those of the masked supports (B, K, C, C).

    Returns:
        (B, K): Frobenius norm of the difference of the Gram matrices, divided by that of all ones.
    """
    difference = query.unsqueeze(1) - support
    return difference.flatten(2).norm(dim=2) / query.shape[1]


def _merge_pair() -> nn.Conv2d:
    """Return a 1×1 convolution of two maps to one, whose initial output is the first map."""
    conv = nn.Conv2d(2, 1, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))
    return conv


class Ensemble(nn.Module):
    """The ensemble, which corrects the meta learner by style distance and base learner.

    Args:
        shot: number K of supports.
        kshot_trans_dim: hidden width of the net that weighs the supports; 0 is one linear map, None
            gives all supports equal weights.
        kshot_order: "sorted" applies the weights, made for the ascending distances, to the unsorted
            ones, as the published code does; "restored" applies each to the distance it was made for.

    Raises:
        ValueError: kshot_order is neither.
    """

    shot_weights: nn.Module | None

    def __init__(self, shot: int, kshot_trans_dim: int | None, kshot_order: str = "sorted"):
        super().__init__()
        if kshot_order not in ("sorted", "restored"):
            raise ValueError(f"kshot_order {kshot_order!r} is neither 'sorted' nor 'restored'")
        self.shot = shot
        self.kshot_order = kshot_order
        self.adjustment_merge = _merge_pair()
        self.background_merge = _merge_pair()
        self.shot_weights = None
        if shot > 1 and kshot_trans_dim is not None:
            self.shot_weights = _shot_weights(shot, kshot_trans_dim)

    def for_shot(self, shot: int) -> "Ensemble":
        """Return this ensemble for another number of supports, which all have equal weights."""
        other = Ensemble(shot, None, self.kshot_order)
        other.adjustment_merge, other.background_merge = (
            self.adjustment_merge,
            self.background_merge,
        )
        return other.train(self.training)

    def adjustment(self, distances: Tensor) -> Tensor:
        """Return one value per episode (B,) of the style distances to its supports (B, K).

        (20) of docs/method.md: e = Σₖ softmax(ρ(e sorted))ₖ eₖ, where ρ are the `shot_weights`.
        """
        if self.shot_weights is None:
            return distances.mean(1)
        ascending = distances.sort(dim=1).values
        weights = self.shot_weights(ascending[:, :, None, None]).flatten(1).softmax(dim=1)
        return (weights * (distances if self.kshot_order == "sorted" else ascending)).sum(1)

    def forward(
        self, meta: Tensor, base: Tensor, adjustment: Tensor, class_index: Tensor | None = None
    ) -> Tensor:
        """Return the final logits.

        (21), (22) of docs/method.md, with the probabilities μ of meta and β of base:
        final = [δ(α(μ_bg, e), Σ β over the base classes), α(μ_fg, e)].

        Args:
            meta: meta logits (B, 2, h, w).
            base: base logits (B, N+1, h, w).
            adjustment: e (B,), see the method of that name.
            class_index: (B,), rank of each episode's class among the base classes; it is left out of
                the sum. None where the class is none of them.

        Returns:
            (B, 2, h, w).
        """
        probabilities = base.softmax(dim=1)
        known = probabilities[:, 1:].sum(1, keepdim=True)
        if class_index is not None:
            own = (class_index + 1).view(-1, 1, 1, 1).expand(-1, 1, *base.shape[-2:])
            known = known - probabilities.gather(1, own)
        background, foreground = meta.softmax(dim=1).split(1, dim=1)
        e = adjustment[:, None, None, None].expand_as(background)
        background = self.adjustment_merge(torch.cat([background, e], dim=1))
        foreground = self.adjustment_merge(torch.cat([foreground, e], dim=1))
        background = self.background_merge(torch.cat([background, known], dim=1))
        return torch.cat([background, foreground], dim=1)


def _shot_weights(shot: int, hidden: int) -> nn.Module:
    """Return the net of K channels that weighs sorted distances."""
    if hidden > 0:
        return nn.Sequential(nn.Conv2d(shot, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, shot, 1))
    conv = nn.Conv2d(shot, shot, 1, bias=False)
    nn.init.constant_(conv.weight, 1 / shot)
    return conv
