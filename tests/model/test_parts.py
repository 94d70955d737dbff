"""Matching module, decoder and loss replaced, each in one place."""

from functools import partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import hdmnet_loss
from model.decoder import Decoder
from model.features import split_queries, split_supports, stack_queries, stack_supports
from model.hierarchy import to_map, to_tokens
from model.masked import cat_rows
from model.matching import MatchingAttention, MatchingLayer
from tests.model.random_nets import in_double, random_episode, random_net
from util.training.schedule import hdmnet_optimizer

SIZE, MASKS = (57, 73), "bfepbi"


class DotTokens(NamedTuple):
    """Rows (B, K, m, C), of which `inside` (B, K, m, 1) are inside the mask."""

    rows: Tensor
    inside: Tensor

    @classmethod
    def stack(cls, samples, dim):
        return cls(*(cat_rows(tensors, dim) for tensors in zip(*samples, strict=True)))

    def trimmed(self, rows):
        assert rows == self.inside.sum() + 1
        return DotTokens(*(tensor[:, :, :rows] for tensor in self))


class DotMatching(nn.Module):
    """Scaled dot-product attention to the supports, added to the query; the prior is not used."""

    def __init__(self, channels):
        super().__init__()
        self.project = nn.Linear(channels, channels)

    def encode_support(self, support, positions):
        rows = self.project(positions.gather(to_tokens(support)))
        inside = positions.inside[..., None]
        return DotTokens(rows * inside, inside)

    def forward(self, query, support, prior, scale):
        size = query.shape[-2:]
        own = to_tokens(query)
        scores = self.project(own) @ support.rows.flatten(1, 2).transpose(1, 2) / 8
        gathered = (scores * support.inside.flatten(1, 2).transpose(1, 2)).tanh()
        matched = own + scale * gathered @ support.rows.flatten(1, 2)
        return to_map(matched, size), scores.mean(2).unflatten(1, size)


class AverageDecoder(nn.Module):
    """One convolution of the mean of all maps."""

    def __init__(self, channels, stages):
        super().__init__()
        self.stages = stages
        self.classify = nn.Conv2d(channels, 2, 1)

    def forward(self, maps):
        assert len(maps) == self.stages
        resized = [F.interpolate(x, size=maps[0].shape[-2:], mode="bilinear") for x in maps]
        return self.classify(torch.stack(resized).mean(0))


class OwnLoss(NamedTuple):
    total: Tensor
    overlap: Tensor


def overlap_loss(output, query_mask, base_mask, distillation_weight, base_weight):
    foreground = output.meta.softmax(1)[:, 1]
    overlap = foreground[query_mask == 1].mean()
    return OwnLoss(1 - overlap + foreground[query_mask == 0].mean(), overlap)


REPLACED = [
    {"matching": DotMatching},
    {"decoder": AverageDecoder},
    {"matching": DotMatching, "decoder": AverageDecoder},
    {"matching": partial(MatchingLayer, temperature=0.05)},
]


@pytest.fixture(params=REPLACED, ids=["matching", "decoder", "both", "temperature"])
def net(request):
    net = random_net(shot=2, **request.param).double()
    expected = request.param.get("matching", MatchingLayer)
    assert all(isinstance(layer, getattr(expected, "func", expected)) for layer in net.matching)
    assert isinstance(net.decoder, request.param.get("decoder", Decoder))
    return net


@pytest.fixture(scope="module")
def episode():
    return in_double(random_episode(SIZE, 3, 2, MASKS))


@pytest.mark.slow
@torch.no_grad()
def test_features_kept_apart_give_what_one_call_gives(net, episode):
    query, support, mask, _ = episode
    expected = net(query, support, mask)
    queries = split_queries(net.encode_query(query))
    supports = split_supports(net.encode_support(support, mask))
    out = net.segment(stack_queries(queries), stack_supports(supports), SIZE)
    torch.testing.assert_close(out, expected)


@pytest.mark.slow
@torch.no_grad()
def test_the_reference_calls_the_module(net, episode):
    torch.testing.assert_close(net.reference_forward(*episode), net(*episode), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [hdmnet_loss, overlap_loss])
@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_a_training_step_lowers_the_loss(net, loss, checkpoint_activations):
    net.float().train().checkpoint_activations = checkpoint_activations
    episode = random_episode(SIZE, 3, 2, MASKS)
    mask = episode[2][:, 0]
    optimizer = hdmnet_optimizer(net, 1e-4)
    totals = []
    for _ in range(2):
        terms = loss(net(*episode), mask, mask, 1.0, 1.0)
        totals.append(terms.total.item())
        optimizer.zero_grad()
        terms.total.backward()
        replaced = [*net.matching.parameters(), *net.decoder.parameters()]
        assert sum(p.grad.abs().sum() for p in replaced if p.grad is not None) > 0
        optimizer.step()
    assert totals[1] < totals[0]


@pytest.mark.parametrize("temperature", [0.0, -0.1, 1e-7, float("nan")])
def test_a_temperature_that_is_too_small_is_refused(temperature):
    with pytest.raises(ValueError, match=r"temperature .* is not at least 1e-6"):
        MatchingAttention(8, temperature=temperature)


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 1 / 80, 0.1, 10.0])
def test_output_and_gradients_are_finite_at_any_temperature(temperature):
    net = random_net(matching=partial(MatchingLayer, temperature=temperature)).train()
    episode = random_episode(SIZE, 2, masks="bf")
    out = net(*episode)
    with torch.no_grad():
        expected = net.reference_forward(*episode)
    assert all(tensor.isfinite().all() for tensor in (out.final, out.meta, *out.correlations))
    hdmnet_loss(out, episode[2][:, 0], episode[2][:, 0]).total.backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    # At 1e-6 float32 tells cosines apart to a few percent of the temperature.
    if temperature > 1e-3:
        torch.testing.assert_close(out.meta, expected.meta, rtol=1e-3, atol=1e-3)
