"""The test episodes of a seed, drawn up front exactly as the published data loader draws them.

There, torch's loader draws a base seed per pass over the images and seeds Python's `random` in
worker w with base seed + w; batch b (one episode) goes to worker b mod N. Replaying that here frees
the tests from the loader: episodes can be loaded by any number of processes, in any order.
"""

import random
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from util.episodes import EpisodeDataset, draw_episode
from util.lists import ImageLists


class Draw(NamedTuple):
    """One episode: position of the query in the lists, its class, the supports as drawn."""

    index: int
    class_id: int
    supports: list[int]


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


class DrawnEpisodes(Dataset):
    """Loads drawn episodes; items as of `EpisodeDataset`, whose transform must not draw."""

    def __init__(self, episodes: EpisodeDataset, draws: list[Draw]):
        self.episodes, self.draws = episodes, draws

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, position: int) -> dict:
        return self.episodes.load(*self.draws[position], rng=None)
