"""The test episodes of a seed, drawn before the test exactly as the published data loader draws them.

Torch's loader draws a base seed per pass over the images and seeds Python's `random` in worker w
with base seed + w; batch b (one episode) goes to worker b mod N. These draws are repeated here
without a loader, so that episodes can be loaded by any number of processes, in any order.
"""

import random
from typing import NamedTuple

import numpy as np
import torch

from util.data.episodes import draw_episode
from util.data.lists import ImageLists

PROTOCOL_SEED = 123


class Draw(NamedTuple):
    """One episode: query and supports (in the order of drawing) as indices into the lists."""

    index: int  # type: ignore[assignment]  # a tuple has a method of this name
    class_id: int
    supports: list[int]


class DrawnRun(NamedTuple):
    """The episodes of one run of the test and their seed."""

    seed: int
    draws: list[Draw]


def run_seeds(runs: int) -> list[int]:
    """Return the seeds of the runs of the published protocol: 510, 365, 382, …"""
    return np.random.RandomState(PROTOCOL_SEED).randint(0, 1000, runs).tolist()


def draw_test_episodes(
    lists: ImageLists, shot: int, number: int, seed: int, workers: int
) -> list[Draw]:
    """Return the first episodes that the published code draws after seeding everything.

    Args:
        lists: Images of the part; every pass takes them in order.
        shot: Supports per episode.
        number: Number of episodes.
        seed: The seed of python, numpy and torch.
        workers: Loader workers of the published configuration (8), which are part of the protocol.
            The number of workers that load the episodes here is independent of it.
    """
    torch_stream = torch.Generator().manual_seed(seed)
    main_stream = random.Random(seed)
    draws: list[Draw] = []
    while len(draws) < number:
        base_seed = int(torch.empty((), dtype=torch.int64).random_(generator=torch_stream))
        streams = [random.Random(base_seed + worker) for worker in range(workers)]
        for index in range(min(len(lists.entries), number - len(draws))):
            stream = streams[index % workers] if workers else main_stream
            class_id, supports = draw_episode(stream, index, lists, shot)
            draws.append(Draw(index, class_id, supports))
    return draws
