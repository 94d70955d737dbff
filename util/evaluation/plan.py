"""The order in which drawn episodes are executed, and how processes share them.

Episodes of a query go together, over all runs, so that its features are computed once; queries of a
class go together, so that the features of few supports have to be in memory at a time.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from util.data.draws import Draw

# Positions of episodes among all drawn ones, in batches that are executed at once. One process does
# all of a unit and writes a line of its journal; no two units have a query in common.
Unit = tuple[tuple[int, ...], ...]

# Costs of an image, for its features, and of an episode beside those (473 px, ResNet-50).
IMAGE_COST, EPISODE_COST = 10, 1


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
    # Queries are (index, 0), supports (index, class).
    needs: list[set[tuple[int, int]]] = []
    for unit in units:
        of_unit = [draws[position] for batch in unit for position in batch]
        needs.append({(draw.index, 0) for draw in of_unit})
        needs[-1].update((support, draw.class_id) for draw in of_unit for support in draw.supports)

    def shares(most: int) -> list[list[Unit]]:
        """Return shares that each cost at most `most` or are a single unit."""
        found: list[list[Unit]] = []
        seen: set[tuple[int, int]] = set()
        cost = 0
        for unit, needed in zip(units, needs, strict=True):
            episodes = EPISODE_COST * sum(map(len, unit))
            added = episodes + IMAGE_COST * len(needed - seen)
            if not found or cost + added > most:
                found.append([])
                seen, cost, added = set(), 0, episodes + IMAGE_COST * len(needed)
            found[-1].append(unit)
            seen |= needed
            cost += added
        return found

    highest = EPISODE_COST * len(draws) + IMAGE_COST * sum(map(len, needs))
    fits = bisect_left(range(highest), True, key=lambda most: len(shares(most)) <= processes)
    found = shares(fits if processes > 1 else highest)
    return [*found, *([] for _ in range(processes - len(found)))]
