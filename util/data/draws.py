"""The test episodes of a seed, drawn up front exactly as the published data loader draws them.

There, torch's loader draws a base seed per pass over the images and seeds Python's `random` in
worker w with base seed + w; batch b (one episode) goes to worker b mod N. Replaying that here frees
the tests from the loader: episodes can be loaded by any number of processes, in any order.
"""

import random
from typing import NamedTuple

import numpy as np
import torch

from util.data.episodes import draw_episode
from util.data.lists import ImageLists

PROTOCOL_SEED = 123


class Draw(NamedTuple):
    """One episode: position of the query in the lists, its class, the supports as drawn."""

    index: int
    class_id: int
    supports: list[int]


class DrawnRun(NamedTuple):
    """The episodes of one run of the test, and the seed they come from."""

    seed: int
    draws: list[Draw]


def run_seeds(runs: int) -> list[int]:
    """Seeds of the runs of the published protocol: 510, 365, 382, …"""
    return np.random.RandomState(PROTOCOL_SEED).randint(0, 1000, runs).tolist()


def draw_test_episodes(
    lists: ImageLists, shot: int, number: int, seed: int, workers: int
) -> list[Draw]:
    """The first `number` episodes after seeding everything with `seed`.

    Args:
        lists: images of the part; walked in order, pass after pass.
        shot: supports per episode.
        number: episodes.
        seed: what python, numpy and torch would be seeded with.
        workers: loader workers of the published configuration (8); part of the protocol, not of
            how the episodes are loaded here.
    """
    torch_stream = torch.Generator().manual_seed(seed)
    main_stream = random.Random(seed)
    draws: list[Draw] = []
    while len(draws) < number:
        base_seed = torch.empty((), dtype=torch.int64).random_(generator=torch_stream).item()
        streams = [random.Random(base_seed + worker) for worker in range(workers)]
        for index in range(min(len(lists.entries), number - len(draws))):
            stream = streams[index % workers] if workers else main_stream
            draws.append(Draw(index, *draw_episode(stream, index, lists, shot)))
    return draws
