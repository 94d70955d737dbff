"""The order in which drawn episodes are executed, and how processes share them.

Episodes of a query go together, over all runs, so that its features are computed once; queries of a
class go together, so that the features of few supports have to be in memory at a time.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from util.data.draws import Draw

# Positions of episodes among all drawn ones, in batches that are executed at once. One process does
# all of a unit and writes a line of its journal; no two units have a query in common.
Unit = tuple[tuple[int, ...], ...]

# The cost of an episode beside the features of its images, in images (473 px, ResNet-50).
EPISODE_COST = 0.1
PRECISION = 0.01  # of the cost of the largest share


def plan_units(draws: Sequence[Draw], batch_size: int, positions: Iterable[int]) -> list[Unit]:
    """Return units of whole groups, a group being all the episodes of a query.

    Groups that are smaller than a batch are joined until they fill one. So without the positions of
    some whole units, the other units stay as they are.

    Args:
        draws: All drawn episodes.
        batch_size: Episodes that are executed at once.
        positions: The positions of the draws that are to be executed.
    """
    groups = defaultdict(list)
    for position in positions:
        groups[draws[position].index].append(position)
    units, waiting = [], []
    for group in sorted(groups.values(), key=lambda group: _place(group, draws)):
        waiting += sorted(group, key=lambda position: (draws[position].class_id, position))
        if len(waiting) >= batch_size:
            units.append(_batches(waiting, batch_size))
            waiting = []
    return [*units, _batches(waiting, batch_size)] if waiting else units


def _place(group: list[int], draws: Sequence[Draw]) -> tuple[int, int]:
    """Return what groups are sorted by: the class of most of their episodes, then the query."""
    classes = Counter(draws[position].class_id for position in group)
    return min(classes, key=lambda c: (-classes[c], c)), draws[group[0]].index


def _batches(positions: list[int], size: int) -> Unit:
    return tuple(tuple(positions[start : start + size]) for start in range(0, len(positions), size))


def share_units(draws: Sequence[Draw], units: Sequence[Unit], processes: int) -> list[list[Unit]]:
    """Return the units of each process, consecutive ones, the largest share as small as can be.

    The cost of a share is the images whose features it needs, and its episodes.
    """
    needs = [_needed(draws, unit) for unit in units]
    shares = _stretches(units, needs, math.inf)
    low, high = 0.0, EPISODE_COST * len(draws) + sum(map(len, needs))
    while processes > 1 and high - low > PRECISION * high:
        middle = (low + high) / 2
        found = _stretches(units, needs, middle)
        if len(found) <= processes:
            shares, high = found, middle
        else:
            low = middle
    return [*shares, *([] for _ in range(processes - len(shares)))]


def _needed(draws: Sequence[Draw], unit: Unit) -> set[tuple[int, int]]:
    """Return the images of a unit: queries as (index, 0), supports as (index, class)."""
    needed: set[tuple[int, int]] = set()
    for draw in (draws[position] for batch in unit for position in batch):
        needed.add((draw.index, 0))
        needed.update((support, draw.class_id) for support in draw.supports)
    return needed


def _stretches(
    units: Sequence[Unit], needs: Sequence[set[tuple[int, int]]], most: float
) -> list[list[Unit]]:
    """Return shares of consecutive units; each costs at most `most` or is a single unit."""
    shares: list[list[Unit]] = []
    seen: set[tuple[int, int]] = set()
    cost = 0.0
    for unit, needed in zip(units, needs, strict=True):
        episodes = EPISODE_COST * sum(map(len, unit))
        added = episodes + len(needed - seen)
        if not shares or cost + added > most:
            shares.append([])
            seen, cost, added = set(), 0.0, episodes + len(needed)
        shares[-1].append(unit)
        seen |= needed
        cost += added
    return shares
