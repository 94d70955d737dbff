"""HDMNet written down as the paper has it, nothing saved: what the fast path is measured against.

It takes the weights of an `HDMNet` and computes the same numbers: the query and the supports pass
the backbone one after the other, batch norms are not folded, the head convolves the resized pools,
matching and prior compare every query position with every support position and then mask, and the
decoder applies its convolutions in turn.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbone import Features
from model.decoder import Decoder
from model.hdmnet import HDMNet, HDMNetOutput
from model.hierarchy import Hierarchy, TransformerLayer, merge_heads, split_heads, to_map, to_tokens
from model.matching import MatchingLayer
from model.mm import resize
from model.pspnet import PSPNet


def plain_forward(
    net: HDMNet,
    query: Tensor,
    support: Tensor,
    support_mask: Tensor,
    class_index: Tensor | None = None,
) -> HDMNetOutput:
    """What `net(query, support, support_mask, class_index)` gives, computed plainly."""
    batch, shot = support.shape[:2]
    size = query.shape[-2:]
    mask = (support_mask == 1).to(query.dtype)  # (B, K, H, W)
    masked = (support * mask[:, :, None]).flatten(0, 1)
    with torch.no_grad():
        query_middle, query_low, query_f4, query_f5 = _frozen(net, query)
        support_middle, support_low, support_f4, support_f5 = _frozen(net, masked)
        base = net.base.classifier(query_f5)
        distances = _style_distance(query_low, support_low.unflatten(0, (batch, shot)))
        prior = torch.cat(
            [
                _prior(query_f5, support_f5.unflatten(0, (batch, shot)), mask),
                _prior(query_f4, support_f4.unflatten(0, (batch, shot)), mask),
            ],
            dim=1,
        )

    query_feature = net.reduce_query(query_middle)
    support_feature = net.reduce_support(support_middle)
    prototype = _prototype(support_feature, mask.flatten(0, 1)[:, None])
    mean_prototype = prototype.unflatten(0, (batch, shot)).mean(1)
    query_map = net.merge_query(
        torch.cat([query_feature, mean_prototype.expand_as(query_feature), 10 * prior], dim=1)
    )
    support_map = net.merge_support(
        torch.cat([support_feature, prototype.expand_as(support_feature)], dim=1)
    )
    query_maps = _hierarchy(net.hierarchy, query_map)
    support_maps = _hierarchy(net.hierarchy, support_map)

    matched, correlations = [], []
    for layer, own, others in zip(net.matching, query_maps, support_maps, strict=True):
        grid = own.shape[-2:]
        fused, correlation = _match(
            layer,
            own,
            others.unflatten(0, (batch, shot)),
            F.interpolate(mask, size=grid, mode="nearest"),
            resize(prior, size=grid, mode="bilinear", align_corners=True),
            net.match_scale,
        )
        matched.append(fused)
        correlations.append(correlation)
    meta = _decode(net.decoder, matched)
    adjustment = net.ensemble.adjustment(distances)
    final = net.ensemble(meta, base, adjustment, class_index)
    logits = (
        resize(logits, size=size, mode="bilinear", align_corners=True)
        for logits in (final, meta, base)
    )
    return HDMNetOutput(*logits, correlations[::-1], adjustment, prior)


def _frozen(net: HDMNet, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[f3, f2], the low-level feature, f4 and f5."""
    f2, f3, f4 = _backbone(net.base, images)
    f5 = _head(net.base, f4)
    if f2.shape[-2:] != f3.shape[-2:]:
        f2 = resize(f2, size=f3.shape[-2:], mode="bilinear", align_corners=True)
    low = {"layer2": f2, "layer3": f3, "layer4": f4}[net.low_fea]
    return torch.cat([f3, f2], dim=1), low, f4, f5


def _backbone(base: PSPNet, images: Tensor) -> Features:
    return base.backbone(images)


def _head(base: PSPNet, f4: Tensor) -> Tensor:
    return base.head(base.pyramid(f4))


def _gram(feature: Tensor) -> Tensor:
    rows = feature.flatten(-2)
    norms = rows.norm(dim=-1)
    return rows @ rows.transpose(-1, -2) / (norms[..., :, None] * norms[..., None, :] + 1e-7)


def _style_distance(query: Tensor, support: Tensor) -> Tensor:
    difference = _gram(query).unsqueeze(1) - _gram(support)
    return difference.flatten(2).norm(dim=2) / query.shape[1]


def _prior(query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
    size = query.shape[-2:]
    mask = F.interpolate(mask, size=size, mode="nearest").flatten(2).unsqueeze(2)  # (B, K, 1, hw)
    query = query.flatten(2)  # (B, C, hw)
    support = support.flatten(3) * mask  # (B, K, C, hw)
    norms = query.norm(dim=1)[:, None, :, None] * support.norm(dim=2)[:, :, None, :]
    dots = torch.einsum("bcq,bkcs->bkqs", query, support)
    best = (dots / (norms + 1e-7)).amax(dim=-1)  # (B, K, hw)
    return best.mean(dim=1, keepdim=True).unflatten(2, size)


def _prototype(feature: Tensor, mask: Tensor) -> Tensor:
    mask = resize(mask, size=feature.shape[-2:], mode="bilinear", align_corners=True)
    return (feature * mask).sum((2, 3), keepdim=True) / (mask.sum((2, 3), keepdim=True) + 0.0005)


def _hierarchy(hierarchy: Hierarchy, x: Tensor) -> list[Tensor]:
    maps = []
    for stage in hierarchy.stages:
        tokens, size = stage.embed(x)
        for layer in stage.layers:
            tokens = _transformer_layer(layer, tokens, size)
        x = to_map(stage.norm(tokens), size)
        maps.append(x)
    return maps


def _transformer_layer(layer: TransformerLayer, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    attention = layer.attention
    normed = layer.norm1(tokens)
    source = normed
    if attention.reduction > 1:
        source = attention.norm(to_tokens(attention.reduce(to_map(normed, size))))
    query = split_heads(attention.query(normed), attention.heads)
    key = split_heads(attention.key(source), attention.heads)
    value = split_heads(attention.value(source), attention.heads)
    scale = 1 / (query.shape[-1] ** 0.5 + 1e-9)
    weights = (query @ key.transpose(-1, -2) * scale).softmax(dim=-1)
    tokens = tokens + layer.dropout(attention.project(merge_heads(weights @ value)))
    return tokens + _ffn(layer.ffn, layer.norm2(tokens), size)


def _ffn(ffn: nn.Module, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    x = F.gelu(ffn.depthwise(ffn.expand(to_map(tokens, size))))
    return to_tokens(ffn.dropout(ffn.project(ffn.dropout(x))))


def _match(
    layer: MatchingLayer, query: Tensor, support: Tensor, mask: Tensor, prior: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    attention = layer.attention
    size = query.shape[-2:]
    query = to_tokens(query)  # (B, n, C)
    support = to_tokens(support.transpose(1, 2).flatten(2, 3))  # (B, m, C)
    normed_query, normed_support = layer.norm1(query), layer.norm1(support)
    q = F.normalize(split_heads(attention.query(normed_query), attention.heads), dim=-1)
    k = F.normalize(split_heads(attention.key(normed_support), attention.heads), dim=-1)
    v = split_heads(attention.value(normed_support), attention.heads)
    mask = mask.flatten(1)[:, None, None]  # (B, 1, 1, m)
    similarity = q @ k.transpose(-1, -2) / attention.temperature  # (B, heads, n, m)
    weights = similarity.softmax(dim=2) * mask
    gathered = attention.project(merge_heads(weights @ v))
    correlation = (similarity * mask).sum(-1) / (mask.sum(-1) + 1e-9)
    query = query + layer.dropout(gathered * scale)
    query = to_map(query + _ffn(layer.ffn, layer.norm2(query), size), size)
    return layer.fuse(torch.cat([query, prior], dim=1)), correlation.mean(1).unflatten(1, size)


def _decode(decoder: Decoder, maps: list[Tensor]) -> Tensor:
    in_turn = nn.Sequential.forward
    *finer, out = maps
    *parses, coarsest = decoder.parse
    out = F.relu(in_turn(coarsest, out))
    for parse, x in zip(reversed(parses), reversed(finer), strict=True):
        out = resize(out, size=x.shape[-2:], mode="bilinear", align_corners=False)
        out = out + F.relu(in_turn(parse, x + out))
    return in_turn(decoder.classifier, out)
