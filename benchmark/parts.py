"""How long each part of the model takes, by timing its calls."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from model import decoder, encoder, frozen, hdmnet, hierarchy, matching, reference

# Each part's functions, those of the fast path and that of the reference.
PLACES = {
    "backbone": [(frozen.FrozenBase, "_features"), (reference, "backbone_features")],
    "base head": [
        (frozen.FrozenBase, "head"),
        (frozen.FrozenBase, "head_at"),
        (reference, "base_head"),
    ],
    "prior": [(hdmnet, "similarity_prior"), (reference, "dense_prior")],
    "hierarchy": [(hierarchy.Hierarchy, "forward"), (reference, "hierarchical_attention")],
    "matching": [
        (matching.MatchingLayer, "encode_support"),
        (matching.MatchingLayer, "forward"),
        (reference, "match"),
    ],
    "style": [(encoder.FeatureEncoder, "_gram"), (reference, "style_distances")],
    "decoder": [(decoder.Decoder, "forward"), (reference, "decode")],
    "backward": [(torch.Tensor, "backward")],
}


@contextmanager
def timed_parts(
    device: torch.device, places: dict = PLACES, clock: Callable[[], float] = time.perf_counter
) -> Iterator[dict[str, float]]:
    """Inside, the seconds spent in each part add up in what is given."""
    seconds = dict.fromkeys(places, 0.0)
    patches = [
        mock.patch.object(owner, name, _timed(getattr(owner, name), part, seconds, device, clock))
        for part, functions in places.items()
        for owner, name in functions
    ]
    for patch in patches:
        patch.start()
    try:
        yield seconds
    finally:
        for patch in patches:
            patch.stop()


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(
    function: Callable,
    part: str,
    seconds: dict[str, float],
    device: torch.device,
    clock: Callable[[], float],
) -> Callable:
    def timed(*args, **kwargs):
        wait_for(device)
        start = clock()
        result = function(*args, **kwargs)
        wait_for(device)
        seconds[part] += clock() - start
        return result

    return timed
