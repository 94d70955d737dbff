import random
from itertools import combinations

import pytest

from util.data.draws import Draw
from util.evaluation.plan import plan_units, share_units


def drawn(episodes=200, images=40, classes=4, shot=1, seed=0):
    """Episodes of `images` queries; a query shows one or two classes."""
    rng = random.Random(seed)
    draws = []
    for number in range(episodes):
        index = number % images
        class_id = 1 + (index + rng.choice((0, 0, 0, 1))) % classes
        files = [image for image in range(images) if image % classes == class_id - 1]
        draws.append(Draw(index, class_id, rng.sample([f for f in files if f != index], shot)))
    return draws


def flat(unit):
    return [position for batch in unit for position in batch]


@pytest.mark.parametrize("batch_size", [1, 3, 5, 12])
def test_units_hold_every_episode_once_and_no_query_is_in_two(batch_size):
    draws = drawn()
    units = plan_units(draws, batch_size, range(len(draws)))
    assert sorted(p for unit in units for p in flat(unit)) == list(range(len(draws)))
    queries = [{draws[p].index for p in flat(unit)} for unit in units]
    assert sum(map(len, queries)) == len(set().union(*queries)) == 40
    for unit in units:
        assert all(len(batch) == batch_size for batch in unit[:-1])
        assert 1 <= len(unit[-1]) <= batch_size
    assert all(len(flat(unit)) >= batch_size for unit in units[:-1])
    # Without the units that are finished, the others stay as they are.
    left = [unit for number, unit in enumerate(units) if number % 3]
    positions = sorted(p for unit in left for p in flat(unit))
    assert plan_units(draws, batch_size, positions) == left


def test_queries_of_a_class_follow_each_other_as_do_the_classes_of_a_query():
    draws = drawn(episodes=400)
    mains = []
    for unit in plan_units(draws, 5, range(len(draws))):
        # A query that fills a batch is a unit.
        assert len({draws[p].index for p in flat(unit)}) == 1
        classes = [draws[p].class_id for p in flat(unit)]
        assert classes == sorted(classes)
        mains.append(max(sorted(set(classes)), key=classes.count))
    assert mains == sorted(mains) and set(mains) == {1, 2, 3, 4}


def cost_of(draws, share):
    positions = [p for unit in share for p in flat(unit)]
    supports = {(s, draws[p].class_id) for p in positions for s in draws[p].supports}
    return len({draws[p].index for p in positions}) + len(supports) + 0.1 * len(positions)


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_processes_get_stretches_of_like_cost(processes):
    draws = drawn(episodes=2000, images=200, shot=2)
    units = plan_units(draws, 1, range(len(draws)))
    shares = share_units(draws, units, processes)
    assert [unit for share in shares for unit in share] == units
    costs = [cost_of(draws, share) for share in shares]
    assert len(costs) == processes and max(costs) < 1.1 * sum(costs) / processes


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_share_is_as_small_as_can_be(seed):
    draws = drawn(episodes=24, images=12, shot=2, seed=seed)
    units = plan_units(draws, 2, range(len(draws)))

    def largest(shares):
        return round(10 * max(cost_of(draws, share) for share in shares))

    cuts = combinations(range(1, len(units)), 2)
    least = min(largest([units[:a], units[a:b], units[b:]]) for a, b in cuts)
    assert largest(share_units(draws, units, 3)) == least


@pytest.mark.parametrize(("more", "shares"), [(10, [2, 1]), (11, [1, 2])])
def test_an_image_costs_as_much_as_ten_episodes(more, shares):
    """Of three queries, the first has more episodes, and the last one image more, a support."""
    draws = [Draw(0, 1, [9])] * (1 + more) + [Draw(1, 1, [9]), Draw(2, 1, [8, 9])]
    units = plan_units(draws, 1, range(len(draws)))
    assert [len(share) for share in share_units(draws, units, 2)] == shares


def test_some_processes_may_have_no_work():
    draws = drawn(episodes=8, images=8)
    shares = share_units(draws, plan_units(draws, 1, range(4)), 7)
    assert len(shares) == 7 and sorted(map(len, shares)) == [0, 0, 0, 1, 1, 1, 1]
    assert share_units(draws, plan_units(draws, 2, []), 3) == [[], [], []]
