"""Positions inside masks."""

import pytest
import torch

from model.masked import MaskGrids, cat_rows, fixed_lengths
from tests.model.random_nets import in_double, random_episode, random_net


def test_positions_inside_come_first_in_order_and_one_row_stands_for_the_rest():
    mask = torch.zeros(3, 8, 8)
    mask[0, 2:4, 4:8] = 1  # positions 6 and 7 of a grid of 4 by 4
    mask[1] = 1
    fine, coarse = MaskGrids(mask[:1], [(4, 4), (2, 2)]).positions
    assert fine.index[0, :2].tolist() == [6, 7] and fine.inside.tolist() == [[1, 1, 0]]
    assert fine.count.tolist() == [2]
    assert coarse.inside.sum() == coarse.count.sum()

    (both,) = MaskGrids(mask, [(4, 4)]).positions
    # A full mask has no position outside to stand for.
    assert both.index.shape == (3, 16)
    assert both.count.tolist() == [2, 16, 0]
    assert both.inside.sum(1).tolist() == [2, 16, 0]
    assert both.only(slice(1, 3)).count.tolist() == [16, 0]

    tokens = torch.arange(32.0).view(1, 16, 2)
    assert fine.gather(tokens)[0, :2].tolist() == [[12, 13], [14, 15]]


def test_rows_are_padded_to_the_longest():
    short, long = torch.ones(1, 2, 1, 3), torch.ones(1, 2, 4, 3)
    both = cat_rows([short, long], 0)
    assert both.shape == (2, 2, 4, 3)
    assert both.sum((1, 2, 3)).tolist() == [6, 24]


def test_lengths_are_fixed_while_entered_the_innermost_ones():
    mask, sizes = torch.ones(1, 8, 8), [(4, 4), (2, 2)]

    def found():
        return [positions.index.shape[1] for positions in MaskGrids(mask, sizes).positions]

    with fixed_lengths((15, 4)):
        assert found() == [15, 4]
        with pytest.raises(KeyError), fixed_lengths((9, 3)):
            assert found() == [9, 3]
            raise KeyError
        assert found() == [15, 4]
    assert found() == [16, 4]


class OnDevice(torch.Tensor):
    """A tensor of the CPU that says that it lies on another device."""

    copies: list

    def to(self, *arguments, non_blocking=False):
        self.copies.append(non_blocking)
        return super().to(*arguments)


@pytest.mark.parametrize("device", ["cuda:1", "xpu:0", "mps"])
def test_counts_are_waited_for_on_the_stream_that_copies_them(device, monkeypatch):
    events = []

    class Event:
        def record(self, stream="of the current device"):
            events.append(stream)

        def synchronize(self):
            events.append("waited")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"of {device}")
    monkeypatch.setattr(OnDevice, "device", torch.device(device), raising=False)
    monkeypatch.setattr(OnDevice, "is_cuda", device.startswith("cuda"), raising=False)
    monkeypatch.setattr(OnDevice, "copies", [], raising=False)
    mask = torch.ones(1, 8, 8).as_subclass(OnDevice)
    (positions,) = MaskGrids(mask, [(4, 4)]).positions
    assert positions.count.tolist() == [16]
    if device == "cuda:1":
        # The copy is asynchronous, so it is waited for, on the stream of its own device.
        assert (OnDevice.copies, events) == ([True], ["of cuda:1", "waited"])
    else:
        assert (OnDevice.copies, events) == ([False], [])


@pytest.mark.slow
@pytest.mark.parametrize("masks", ["bbbb", "epep", "fbpi", "eeee"])
def test_fixed_lengths_are_eighths_of_the_grids_and_change_nothing(masks):
    net = random_net(shot=2).double().train()
    episode = in_double(random_episode((57, 73), 2, 2, masks))
    lengths = net.mask_lengths(episode[2])
    needed = MaskGrids((episode[2] == 1).float().flatten(0, 1), [(8, 10), (4, 5), (2, 3)]).lengths()
    assert all(length >= n for length, n in zip(lengths, needed, strict=True))
    assert lengths[0] % 10 == 0 and (lengths[0] < 80) is ("f" not in masks)
    expected = net(*episode)
    # Reading the lengths would be an error while a CUDA graph is captured.
    with pytest.MonkeyPatch.context() as patch, fixed_lengths(lengths):
        patch.setattr(MaskGrids, "_longest_counts", None)
        actual = net(*episode)
    assert net(*episode).final.equal(expected.final)
    for name in ("final", "meta", "base", "adjustment", "prior"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), msg=name)
    torch.testing.assert_close(actual.correlations, expected.correlations)
