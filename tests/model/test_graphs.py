"""The parts of an exported model, put together, give what the reference gives."""

import pytest
import torch

from model.graphs import Encoder, Matcher, SupportEncoder
from tests.model.random_nets import random_episode, random_net


def named(part, **tensors):
    """The tensors that a part gives, by their names."""
    return dict(zip(part.outputs, part(*(tensors[name] for name in part.inputs)), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("shot", [1, 2])  # as other than in training, and as there
@torch.no_grad()
def test_parts_compute_what_the_reference_computes(shot):
    net, size = random_net("resnet18", 2), 57
    query, support, mask, _ = random_episode((size, size), 2, shot, "be"[:shot] * 2)
    support, mask = support[0], (mask[0] == 1).float()  # the same of all queries
    encoder = Encoder(net)
    frozen = named(encoder, image=support * mask[:, None])
    kept = named(SupportEncoder(net), mask=mask, **frozen)
    out = named(Matcher(net, size), **named(encoder, image=query), **kept)
    expected = net.for_shot(shot).reference_forward(
        query, support.expand(2, *support.shape), mask.expand(2, *mask.shape)
    )
    torch.testing.assert_close(out, {"final": expected.final, "meta": expected.meta})
