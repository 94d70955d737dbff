"""Features of single images, kept apart and put together to episodes."""

import pytest
import torch

from model import frozen
from model.features import (
    feature_bytes,
    map_tensors,
    split_queries,
    split_supports,
    stack_queries,
    stack_supports,
)
from tests.model.random_nets import random_episode, random_net

SIZE = (57, 73)


@pytest.fixture(scope="module")
def net():
    return random_net(shot=2)


@pytest.fixture(scope="module")
def episode():
    return random_episode(SIZE, batch=3, shot=2, masks="bfepbi")[:3]


@pytest.fixture(scope="module")
def expected(net, episode):
    with torch.no_grad():
        return net(*episode)


def assert_same(actual, expected):
    for name in ("final", "meta", "base", "adjustment", "prior"):
        torch.testing.assert_close(
            getattr(actual, name), getattr(expected, name), rtol=1e-4, atol=1e-5
        )
    torch.testing.assert_close(actual.correlations, expected.correlations, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_pieces_give_what_one_call_gives(net, episode, expected):
    query, support, mask = episode
    out = net.segment(net.encode_query(query), net.encode_support(support, mask), SIZE)
    assert_same(out, expected)


@pytest.mark.parametrize("images", [2, 4, 6, 8])  # Of six supports, then three queries.
@torch.no_grad()
def test_slices_of_supports_and_queries_change_nothing(images, net, episode, expected, monkeypatch):
    monkeypatch.setattr(frozen, "CPU_PIXELS", images * SIZE[0] * SIZE[1])
    assert_same(net(*episode), expected)


@torch.no_grad()
def test_samples_encoded_alone_make_up_a_batch(net, episode, expected):
    query, support, mask = episode
    queries = [net.encode_query(image[None]) for image in query]
    supports = [
        [
            net.encode_support(support[b : b + 1, k : k + 1], mask[b : b + 1, k : k + 1])
            for k in range(2)
        ]
        for b in range(3)
    ]
    assert_same(net.segment(stack_queries(queries), stack_supports(supports), SIZE), expected)


@pytest.mark.slow
@torch.no_grad()
def test_a_batch_splits_into_samples_that_need_no_more_than_alone(net, episode, expected):
    query, support, mask = episode
    queries = split_queries(net.encode_query(query))
    supports = split_supports(net.encode_support(support, mask))
    assert [len(row) for row in supports] == [2, 2, 2]
    for b, row in enumerate(supports):
        assert feature_bytes(queries[b]) == feature_bytes(net.encode_query(query[b : b + 1]))
        for k, sample in enumerate(row):
            alone = net.encode_support(support[b : b + 1, k : k + 1], mask[b : b + 1, k : k + 1])
            assert feature_bytes(sample) == feature_bytes(alone)
            held = []
            map_tensors(sample, lambda t: held.append(t.untyped_storage().nbytes()) or t)  # noqa: B023
            assert sum(held) == feature_bytes(sample)
    assert_same(net.segment(stack_queries(queries), stack_supports(supports), SIZE), expected)
    # Other episodes of the same samples: the second query with the supports of the third.
    mixed = net.segment(queries[1], stack_supports(supports[2:]), SIZE)
    assert_same(mixed, net(query[1:2], support[2:], mask[2:]))


@torch.no_grad()
def test_two_samples_are_kept_apart_and_put_together(net, episode):
    whole = net.encode_query(episode[0][:2])
    apart = split_queries(whole)
    assert [len(sample.f4) for sample in apart] == [1, 1]
    assert all(a.equal(b) for a, b in zip(stack_queries(apart), whole, strict=True))
    alone = net.encode_query(episode[0][:1])
    assert split_queries(alone)[0] is stack_queries([alone]) is alone, "one needs no copy"


@torch.no_grad()
def test_a_support_keeps_the_positions_inside_its_mask_alone(net):
    _, support, mask, _ = random_episode((64, 64), shot=2, masks="ee")
    mask[0, 0, 16:32, 24:40] = 1  # two by two positions of the grid
    small, empty = split_supports(net.encode_support(support, mask))[0]
    # One row more stands for all positions outside.
    assert small.f4.shape == (1, 1, 5, 512) and empty.f4.shape == (1, 1, 1, 512)
    assert small.stages[0].keys.shape == (1, 1, 5, 64)
    assert [int(stage.count) for stage in small.stages] == [4, 1, 0]
    assert (empty.f4 == 0).all() and (small.f4[:, :, -1] == 0).all()


def test_lengths_of_masks_are_the_same_share_of_each_grid(net):
    masks = torch.zeros(1, 2, 64, 64).long()
    # With the row for the positions outside: 33 of 64 positions, 9 of 16 and 3 of 4.
    masks[0, 0, :, :32] = 1
    assert net.mask_lengths(masks) == (48, 12, 3)
    masks[0, 1] = 1
    assert net.mask_lengths(masks) == (64, 16, 4)


@torch.no_grad()
def test_features_move_to_another_type(net, episode):
    features = net.encode_support(*episode[1:])
    halved = map_tensors(features, lambda tensor: tensor.half())
    assert type(halved) is type(features) and type(halved.stages[1]) is type(features.stages[1])
    assert halved.stages[2].values.dtype == torch.float16
    assert feature_bytes(halved) * 2 == feature_bytes(features)


@torch.no_grad()
def test_any_number_of_supports_can_be_encoded_but_not_matched(net, episode):
    _, support, mask = episode
    one = net.encode_support(support[:, :1], mask[:, :1])
    with pytest.raises(ValueError, match="built for 2 supports, got 1"):
        net.segment(net.encode_query(episode[0]), one, SIZE)
    with pytest.raises(ValueError, match="expected support"):
        net.encode_support(support, mask[:, :1])
