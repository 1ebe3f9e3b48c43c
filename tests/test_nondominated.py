"""The points that stay are those of the definition, whatever the blocks that they are looked at in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from planner.search import nondominated as sieve
from planner.search.nondominated import nondominated


def by_definition(points):
    """Positions of points that no other is at most as large as everywhere; of equal ones the first."""
    stays = []
    for k, point in enumerate(points):
        others = [j for j in range(len(points)) if all(a <= b for a, b in zip(points[j], point, strict=True))]
        if all(points[j] == point and j >= k for j in others):
            stays.append(k)
    return stays


@examples(60)
@given(st.data())
def test_what_stays_is_what_the_definition_says(data):
    """Few values, so that points are often equal and often below each other; blocks of a few points and of many."""
    width = data.draw(st.integers(1, 5))
    point = st.lists(st.integers(-3, 3), min_size=width, max_size=width)
    points = data.draw(st.lists(point, min_size=1, max_size=150))
    block = data.draw(st.sampled_from((1, 3, 64, 65, 1024)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sieve, "BLOCK", block)
        assert nondominated(np.array(points, dtype=float)).tolist() == by_definition(points)


@pytest.mark.parametrize("quantities", (2, 6))
def test_more_points_than_a_block(quantities):
    """Thousands of points, of small integers and of reals, against comparisons of all pairs."""
    random = np.random.default_rng(quantities)
    for points in (random.integers(0, 9, (2600, quantities)).astype(float), random.random((2600, quantities))):
        below = (points[:, None] <= points[None]).all(axis=2)
        equal, first = below & below.T, np.arange(2600)
        beaten = (below & ~equal) | (equal & (first[:, None] < first))

        assert nondominated(points).tolist() == np.flatnonzero(~beaten.any(axis=0)).tolist()


def test_no_points_and_equal_points():
    assert nondominated(np.zeros((0, 3))).tolist() == []
    assert nondominated(np.ones((5, 3))).tolist() == [0]
