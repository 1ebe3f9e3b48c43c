"""Placements turned into ranks, by hand and over many shapes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import make_cluster, make_strategy
from strategies import examples

from cost_models.strategy import DENSE_ORDER
from planner.errors import BadInput, Unsupported
from planner.ranks import processes_per_host, rank_grid, world_size


def placed(**factors: list[int]):
    """A strategy with these factors and single members on every other axis."""
    levels = len(next(iter(factors.values())))
    placement = {axis: factors.get(axis, [1] * levels) for axis in DENSE_ORDER}
    return make_strategy(placement=placement, **{axis: math.prod(f) for axis, f in placement.items()})


def test_tp_is_innermost_inside_one_domain():
    """2 stages x 3 shards x 2 tp in one domain: tp neighbours, then shards, then stages."""
    grid = rank_grid(placed(tp=[2], dp_shard=[3], pp=[2]))

    assert grid.shape == (2, 1, 3, 1, 2)
    assert grid[0, 0, :, 0, :].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert grid[1, 0, :, 0, :].tolist() == [[6, 7], [8, 9], [10, 11]]


def test_an_axis_across_domains():
    """tp 2 and pp 2 fill domains of 4, dp_shard 3 spans them: shard i is domain i."""
    grid = rank_grid(placed(tp=[2, 1], pp=[2, 1], dp_shard=[1, 3]))

    assert grid[0, 0, :, 0, :].tolist() == [[0, 1], [4, 5], [8, 9]]
    assert grid[1, 0, :, 0, :].tolist() == [[2, 3], [6, 7], [10, 11]]


def test_an_axis_on_two_levels():
    """dp_shard 4 = 2 inside x 2 across, pp 2 across: the inner digit counts faster in the coordinate."""
    grid = rank_grid(placed(dp_shard=[2, 2], pp=[1, 2]))

    # Domains: dp_shard's outer digit is faster than pp's, so domains 0, 1 are stage 0 and 2, 3 stage 1.
    assert grid[:, 0, :, 0, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_three_levels():
    """tp 2 in the domain, dp_replicate 2 on level 1, dp_replicate 2 and pp 2 on level 2."""
    grid = rank_grid(placed(tp=[2, 1, 1], dp_replicate=[1, 2, 2], pp=[1, 1, 2]))

    assert grid[0, :, 0, 0, :].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert grid[1, :, 0, 0, :].tolist() == [[8, 9], [10, 11], [12, 13], [14, 15]]


@examples(200)
@given(st.lists(st.tuples(*[st.integers(1, 3)] * len(DENSE_ORDER)), min_size=1, max_size=3))
def test_every_rank_stands_once_and_ascends_along_every_axis(levels):
    strategy = placed(**{axis: [level[i] for level in levels] for i, axis in enumerate(DENSE_ORDER)})
    grid = rank_grid(strategy)

    assert sorted(grid.ravel().tolist()) == list(range(world_size(strategy)))
    assert all((np.diff(grid, axis=axis) > 0).all() for axis in range(grid.ndim))


@examples(100)
@given(st.lists(st.integers(1, 3), min_size=5, max_size=5), st.lists(st.integers(1, 3), min_size=5, max_size=5))
def test_a_domain_holds_what_level_0_says(inside, across):
    """Ranks of one domain differ only in their inner digits, so they share every outer digit."""
    strategy = placed(**{axis: [i, a] for axis, i, a in zip(DENSE_ORDER, inside, across, strict=True)})
    grid, size = rank_grid(strategy), math.prod(inside)
    coordinates = np.argwhere(grid == grid)
    domain = grid[tuple(coordinates.T)] // size
    outer = coordinates // np.array(list(reversed(inside)))

    for number in range(math.prod(across)):
        assert len({tuple(row) for row in outer[domain == number]}) == 1


@pytest.mark.parametrize(
    ("placement", "text"),
    [
        ({axis: [1] for axis in DENSE_ORDER} | {"tp": [3]}, "placement of tp: 3 = 3, but tp = 2"),
        ({axis: [1] for axis in DENSE_ORDER[1:]}, "no factors for ['tp']"),
        ({axis: [1] for axis in DENSE_ORDER} | {"tp": [2, 1]}, "different numbers of network levels"),
    ],
)
def test_a_placement_that_is_none(placement, text):
    with pytest.raises(BadInput) as refused:
        rank_grid(make_strategy(tp=2, placement=placement))
    assert text in str(refused.value)


def test_processes_per_host():
    """8 devices a domain in hosts of 4: two hosts of four processes each."""
    strategy = placed(tp=[8, 1], pp=[1, 2])

    assert processes_per_host(strategy, make_cluster(strategy, devices_per_host=4)) == 4


def test_uneven_hosts_are_refused():
    strategy = placed(tp=[10])

    with pytest.raises(Unsupported, match="uneven devices per host: 10 ranks on 3 hosts of 4 devices"):
        processes_per_host(strategy, make_cluster(strategy, devices_per_host=4))
