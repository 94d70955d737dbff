"""HDMNet as the paper states it, one step after the other: the file to read first.

The functions take the weights of an `HDMNet` and compute its output as the equations are written:
query and supports pass the backbone separately, matching and prior compare every query position with
every support position, and every layer is called as a module. `HDMNet.forward` computes the same
numbers by the shorter ways of docs/fast_path.md, which tests compare with this file.

Numbers in brackets are those of the equations in docs/method.md. Superscripts q and s mark query and
support, k is one of K supports, f2 to f5 are frozen features, p is a position of the query, and j a
position of all supports together. Sections are those of the paper.
"""

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbone import BackboneFeatures
from model.decoder import Decoder
from model.features import map_tensors
from model.hierarchy import (
    Hierarchy,
    HierarchyStage,
    MixFFN,
    SelfAttention,
    TransformerLayer,
    merge_heads,
    split_heads,
    to_map,
    to_tokens,
)
from model.masked import MaskGrids
from model.matching import MatchingLayer
from model.mm import resize
from model.pspnet import PSPNet

if TYPE_CHECKING:
    from model.hdmnet import HDMNet
    from model.parts import Matching


class HDMNetOutput(NamedTuple):
    """Output of one forward pass.

    Attributes:
        final: (B, 2, H, W), the ensemble of meta and base learner; its argmax is the prediction.
        meta: (B, 2, H, W), logits of the meta learner.
        base_map: (B, N+1, h, w), logits of the base learner on the query; N is 0 where there is none.
        correlations: maps (B, h_i, w_i), coarsest first.
        adjustment: (B,), style distance between query and supports.
        prior: (B, 2, h, w), similarity prior of f5 (f3 without a base learner) and of f4.
    """

    final: Tensor
    meta: Tensor
    base_map: Tensor
    correlations: list[Tensor]
    adjustment: Tensor
    prior: Tensor

    @property
    def base(self) -> Tensor:
        """`base_map` at full size, (B, N+1, H, W); computed at each call, since few need it."""
        size = self.final.shape[-2:]
        return resize(self.base_map, size=size, mode="bilinear", align_corners=True)


class FrozenFeatures(NamedTuple):
    """What the frozen part of the model computes of N images, all on one grid.

    Attributes:
        middle: [f3, f2] (N, C3+C2, h, w).
        f5: (N, 512, h, w); f3 without a base learner.
        f4: (N, C4, h, w).
    """

    middle: Tensor
    f5: Tensor
    f4: Tensor


class Supports(NamedTuple):
    """What a query is matched with; K supports of each of B queries.

    Attributes:
        f5, f4: fˢₖ Mₖ (B, K, C, h, w).
        gram: G(fˢₖ) of the low-level feature (B, K, C, C).
        prototype: Pₖ (B, K, 256, 1, 1).
        maps: Tˢ of each stage (B, K, 64, h_i, w_i), finest first.
        masks: Mₖ on the grid of each stage (B, K, h_i, w_i).
    """

    f5: Tensor
    f4: Tensor
    gram: Tensor
    prototype: Tensor
    maps: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]


def reference_forward(
    net: "HDMNet",
    query: Tensor,
    support: Tensor,
    support_mask: Tensor,
    class_index: Tensor | None = None,
) -> HDMNetOutput:
    """Return the output of `HDMNet.forward`, computed equation by equation (paper, figure 2).

    (1)  Ĩˢₖ = Iˢₖ ⊙ Mₖ

    Args:
        net: the model, whose weights and mode are used, but not its `backbone_dtype`.
        query: normalised images I^q (B, 3, H, W).
        support: normalised images Iˢₖ (B, K, 3, H, W).
        support_mask: (B, K, H, W): 1 class, 0 other, 255 ignore. Mₖ is 1 on the class, 0 elsewhere.
        class_index: (B,), see `HDMNet.forward`.
    """
    episodes = support.shape[:2]  # (B, K)
    mask = (support_mask == 1).to(query.dtype)
    masked = (support * mask[:, :, None]).flatten(0, 1)  # (1)
    queries = frozen_features(net, query)
    encoded = encode_supports(net, frozen_features(net, masked), mask.flatten(0, 1))
    supports = map_tensors(encoded, lambda tensor: tensor.unflatten(0, episodes))
    # Equations (20) to (22) are written out in model/ensemble.py.
    adjustment = net.ensemble.adjustment(style_distances(net, queries, supports))
    size = query.shape[-2], query.shape[-1]
    return segment(net, queries, supports, size, net.match_scale, adjustment, class_index)


@torch.no_grad()
def frozen_features(net: "HDMNet", images: Tensor) -> FrozenFeatures:
    """Return the features of images (N, 3, H, W): of queries, or of supports that are masked."""
    f2, f3, f4 = backbone_features(net.base, images)
    f5 = base_head(net.base, f4) if net.base.base_classes else f3
    if f2.shape[-2:] != f3.shape[-2:]:  # VGG16
        f2 = resize(f2, size=f3.shape[-2:], mode="bilinear", align_corners=True)
    return FrozenFeatures(torch.cat([f3, f2], dim=1), f5, f4)


def encode_supports(net: "HDMNet", features: FrozenFeatures, mask: Tensor) -> Supports:
    """Return what queries are matched with, of N supports; their axis takes the place of B and K.

    Masks are brought to the grids by nearest neighbours.

    (2)  F = Dropout(ReLU(W_red [f3, f2]))
    (5)  Xˢₖ = ReLU(W_s [Fˢₖ, Pₖ])

    Args:
        net: the model.
        features: of the masked images.
        mask: (N, H, W) in {0, 1}.
    """
    feature = net.reduce_support(features.middle)  # (2)
    prototypes = prototype(feature, mask[:, None])
    support_map = net.merge_support(  # (5)
        torch.cat([feature, prototypes.expand_as(feature)], dim=1)
    )
    maps = tuple(hierarchical_attention(net.hierarchy, support_map))
    masks = tuple(nearest(mask, x) for x in maps)
    f5, f4 = (feature * masks[0][:, None] for feature in (features.f5, features.f4))
    return Supports(f5, f4, channel_cosines(low_level(net, features)), prototypes, maps, masks)


def segment(
    net: "HDMNet",
    query: FrozenFeatures,
    supports: Supports,
    size: tuple[int, int],
    scale: float,
    adjustment: Tensor,
    class_index: Tensor | None = None,
) -> HDMNetOutput:
    """Return the output for queries and supports, all of which are encoded.

    (2)  F = Dropout(ReLU(W_red [f3, f2]))
    (6)  X^q = ReLU(W_q [F^q, P̄, 10 R]),  P̄ = mean over k of Pₖ

    Args:
        net: the model.
        query: features of B queries.
        supports: K of each query.
        size: (H, W) of the logits.
        scale: γ of (12).
        adjustment: e of (20), (B,).
        class_index: (B,), see `HDMNet.forward`.
    """
    with torch.no_grad():
        base = base_logits(net.base, query.f5)
        pairs = (query.f5, supports.f5), (query.f4, supports.f4)
        prior = torch.cat([dense_prior(*pair) for pair in pairs], dim=1)
        if net.prior == "minmax":
            low, high = prior.amin((2, 3), keepdim=True), prior.amax((2, 3), keepdim=True)
            prior = (prior - low) / (high - low + 1e-7)

    feature = net.reduce_query(query.middle)  # (2)
    mean_prototype = supports.prototype.mean(1)
    query_map = net.merge_query(  # (6)
        torch.cat([feature, mean_prototype.expand_as(feature), 10 * prior], dim=1)
    )
    query_maps = hierarchical_attention(net.hierarchy, query_map)
    matched, correlations = [], []
    stages = zip(net.matching, query_maps, supports.maps, supports.masks, strict=True)
    for layer, own, others, mask in stages:
        fused, correlation = match(layer, own, others, mask, prior, scale)
        matched.append(fused)
        correlations.append(correlation)
    meta = decode(net.decoder, matched)
    final = net.ensemble(meta, base, adjustment, class_index) if net.base.base_classes else meta
    final, meta = (
        resize(logits, size=size, mode="bilinear", align_corners=True) for logits in (final, meta)
    )
    return HDMNetOutput(final, meta, base, correlations[::-1], adjustment, prior)


def backbone_features(base: PSPNet, images: Tensor) -> BackboneFeatures:
    """Return f2, f3 and f4 of images (N, 3, H, W)."""
    return base.backbone(images)


def base_head(base: PSPNet, f4: Tensor) -> Tensor:
    """Return f5 (N, 512, h, w), the head of the base learner after its batch norm."""
    return base.head(base.pyramid(f4))


def base_logits(base: PSPNet, f5: Tensor) -> Tensor:
    """Return the logits (N, classes + 1, h, w) of the base learner; zeros where there is none."""
    return base.classifier(f5) if base.base_classes else torch.zeros_like(f5[:, :1])


def dense_prior(query: Tensor, support: Tensor) -> Tensor:
    """Return the similarity prior of one feature f (section 3.2; PFENet).

    (4)  R(p) = mean over k of max over r of ⟨f^q(p), fˢₖ(r) Mₖ(r)⟩ / (‖f^q(p)‖ ‖fˢₖ(r) Mₖ(r)‖ + 1e-7)

    Args:
        query: f^q (B, C, h, w).
        support: fˢ M (B, K, C, h, w).

    Returns:
        (B, 1, h, w).
    """
    size = query.shape[-2:]
    query = query.flatten(2)  # (B, C, hw)
    support = support.flatten(3)  # (B, K, C, hw)
    norms = query.norm(dim=1)[:, None, :, None] * support.norm(dim=2)[:, :, None, :]
    products = torch.einsum("bcp,bkcr->bkpr", query, support)
    best = (products / (norms + 1e-7)).amax(dim=-1)  # (B, K, hw)
    return best.mean(dim=1, keepdim=True).unflatten(2, size)


def prototype(feature: Tensor, mask: Tensor) -> Tensor:
    """Return the prototype of each support, the mean of its feature over its mask (section 3.2).

    (3)  P = Σ_r F(r) M(r) / (Σ_r M(r) + 0.0005)

    Args:
        feature: F (N, C, h, w).
        mask: M (N, 1, H, W) in {0, 1}, brought to the grid by bilinear interpolation.

    Returns:
        (N, C, 1, 1).
    """
    mask = resize(mask, size=feature.shape[-2:], mode="bilinear", align_corners=True)
    return (feature * mask).sum((2, 3), keepdim=True) / (mask.sum((2, 3), keepdim=True) + 0.0005)


def channel_cosines(feature: Tensor) -> Tensor:
    """Return G(f), the cosines between the channels of maps f (N, C, h, w): (N, C, C)."""
    rows = feature.flatten(-2)
    norms = rows.norm(dim=-1)
    return rows @ rows.transpose(-1, -2) / (norms[..., :, None] * norms[..., None, :] + 1e-7)


def nearest(mask: Tensor, like: Tensor) -> Tensor:
    """Return masks (N, H, W) on the grid of maps (N, C, h, w), by nearest neighbours."""
    # What `F.interpolate` computes. It is written out for `util.export`: ONNX divides by h/H instead,
    # whose rounding leads to the pixel before where H/h is a whole number.
    for axis in (1, 2):
        old, new = mask.shape[axis], like.shape[axis + 1]
        index = (torch.arange(new, device=mask.device) * (old / new)).floor().long()
        mask = mask.index_select(axis, index)
    return mask


def low_level(net: "HDMNet", features: FrozenFeatures) -> Tensor:
    """Return the low-level feature (N, C, h, w), whose style is compared."""
    channels = net.base.backbone.channels[0]
    f3, f2 = features.middle[:, :-channels], features.middle[:, -channels:]
    return {"layer2": f2, "layer3": f3, "layer4": features.f4}[net.low_fea]


@torch.no_grad()
def style_distances(net: "HDMNet", query: FrozenFeatures, supports: Supports) -> Tensor:
    """Return the distance of each support's style from the query's (B, K) (section 3.4; BAM).

    (19)  eₖ = ‖G(f^q) − G(fˢₖ)‖_F / ‖1‖_F,  where f is the low-level feature
    """
    gram = channel_cosines(low_level(net, query))
    difference = gram.unsqueeze(1) - supports.gram
    return difference.flatten(2).norm(dim=2) / gram.shape[1]


def hierarchical_attention(hierarchy: Hierarchy, x: Tensor) -> list[Tensor]:
    """Return one map per stage, finest first, of X (N, C, h, w) (section 3.2).

    Each stage embeds patches, applies its transformer layers and LN, and feeds the next one.
    """
    maps = []
    for module in hierarchy.stages:
        stage = cast(HierarchyStage, module)
        tokens, size = stage.embed(x)
        for layer in stage.layers:
            tokens = transformer_layer(cast(TransformerLayer, layer), tokens, size)
        x = to_map(stage.norm(tokens), size)
        maps.append(x)
    return maps


def transformer_layer(layer: TransformerLayer, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Return one layer's tokens (N, n, C) of a grid `size` = (h, w).

    (7)  T ← T + Dropout(SA(LN₁(T))),  T ← T + FFN(LN₂(T))
    """
    tokens = tokens + layer.dropout(self_attention(layer.attention, layer.norm1(tokens), size))
    return tokens + mix_ffn(layer.ffn, layer.norm2(tokens), size)


def self_attention(attention: SelfAttention, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the multi-head attention of tokens (N, n, C) to their own reduced grid.

    (8)  SA(T) = W_o softmax(T W_Q (T̃ W_K)ᵀ / (√d + 1e-9)) T̃ W_V,  softmax over the keys;
         T̃ is T after a strided convolution and LN, or T itself
    """
    source = tokens
    if attention.reduction > 1:
        source = attention.norm(to_tokens(attention.reduce(to_map(tokens, size))))
    query = split_heads(attention.query(tokens), attention.heads)  # (N, heads, n, d)
    key = split_heads(attention.key(source), attention.heads)
    value = split_heads(attention.value(source), attention.heads)
    scores = query @ key.transpose(-1, -2) / (query.shape[-1] ** 0.5 + 1e-9)
    return attention.project(merge_heads(scores.softmax(dim=-1) @ value))


def mix_ffn(ffn: MixFFN, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the Mix-FFN of tokens (N, n, C), with a depthwise 3×3 convolution DW on the grid.

    (9)  FFN(T) = Dropout(W₂ Dropout(GELU(DW(W₁ T))))
    """
    x = F.gelu(ffn.depthwise(ffn.expand(to_map(tokens, size))))
    return to_tokens(ffn.dropout(ffn.project(ffn.dropout(x))))


def match(
    layer: nn.Module, query: Tensor, support: Tensor, mask: Tensor, prior: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Match one stage of the query with all supports together (section 3.3).

    (10)  C_pj = cosine(W_Q T^q_p, W_K Tˢ_j) / τ, in each head
    (11)  A_pj = M_j exp(C_pj) / Σ_p' exp(C_p'j): the softmax runs over the *query* positions
    (12)  T ← T^q + Dropout(γ W_o A V),  V = W_V Tˢ,  then T ← T + FFN(LN₂(T))
    (13)  x = ReLU(BN(W [T, R]))
    (14)  c(p) = mean over the heads of Σ_j M_j C_pj / (Σ_j M_j + 1e-9)

    Args:
        layer: the matching module of the stage. One that is no `MatchingLayer` is called.
        query: maps T^q (B, C, h, w).
        support: maps Tˢ (B, K, C, h, w).
        mask: M (B, K, h, w) in {0, 1}.
        prior: R (B, 2, h', w'), resized to the stage's grid.
        scale: γ.

    Returns:
        The matched map x (B, C, h, w) and the correlation map c (B, h, w).
    """
    height, width = query.shape[-2:]
    size = height, width
    prior = resize(prior, size=size, mode="bilinear", align_corners=True)
    if type(layer) is not MatchingLayer:
        return _match_by_module(cast("Matching", layer), query, support, mask, prior, scale)
    attention = layer.attention
    mask = mask.flatten(1)[:, None, None]  # (B, 1, 1, m)
    query = to_tokens(query)  # (B, n, C)
    support = to_tokens(support.transpose(1, 2).flatten(2, 3))  # (B, m, C)
    normed_query, normed_support = layer.norm1(query), layer.norm1(support)
    q = F.normalize(split_heads(attention.query(normed_query), attention.heads), dim=-1)
    k = F.normalize(split_heads(attention.key(normed_support), attention.heads), dim=-1)
    v = split_heads(attention.value(normed_support), attention.heads)
    similarity = q @ k.transpose(-1, -2) / attention.temperature  # (10): (B, heads, n, m)
    weights = similarity.softmax(dim=2) * mask  # (11)
    gathered = attention.project(merge_heads(weights @ v))  # (12)
    query = query + layer.dropout(gathered * scale)
    query = to_map(query + mix_ffn(layer.ffn, layer.norm2(query), size), size)
    matched = layer.fuse(torch.cat([query, prior], dim=1))  # (13)
    correlation = (similarity * mask).sum(-1) / (mask.sum(-1) + 1e-9)  # (14)
    return matched, correlation.mean(1).unflatten(1, size)


def _match_by_module(
    layer: "Matching", query: Tensor, support: Tensor, mask: Tensor, prior: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Match one stage by a module that takes the place of `MatchingLayer`."""
    height, width = query.shape[-2:]
    (positions,) = MaskGrids(mask.flatten(0, 1), [(height, width)]).positions
    tokens = layer.encode_support(support.flatten(0, 1), positions)
    tokens = map_tensors(tokens, lambda tensor: tensor.unflatten(0, mask.shape[:2]))
    return layer(query, tokens, prior, scale)


def decode(decoder: nn.Module, maps: list[Tensor]) -> Tensor:
    """Return the logits m (B, 2, h, w) of the meta learner (section 3.2).

    (17)  o₂ = ReLU(L₂(x₂)),  oᵢ = uᵢ + ReLU(Lᵢ(xᵢ + uᵢ)),  uᵢ = oᵢ₊₁ resized to the grid of xᵢ
    (18)  m = L_cls(o₀)

    Each L is a sequence of convolutions and batch norms without activations.

    Args:
        decoder: the decoder. One that is no `Decoder` is called.
        maps: matched maps xᵢ (B, C, h_i, w_i), finest first.
    """
    if type(decoder) is not Decoder:
        return decoder(maps)
    in_turn = nn.Sequential.forward  # without multiplying the layers out
    *finer, out = maps
    *parses, coarsest = cast(list[nn.Sequential], list(decoder.parse))
    out = F.relu(in_turn(coarsest, out))
    for parse, x in zip(reversed(parses), reversed(finer), strict=True):
        out = resize(out, size=x.shape[-2:], mode="bilinear", align_corners=False)
        out = out + F.relu(in_turn(parse, x + out))
    return in_turn(decoder.classifier, out)
