"""Points of a front by hand: what they cover, and which of them stay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from planner.search.cover import Cover, Point


def at(step_s: float, joules: float, devices: int) -> Point:
    return Point(step_s, joules, devices, None)


def test_points_cover_what_is_no_better_by_more_than_the_tolerance_on_as_many_devices():
    cover = Cover(0.1, [at(10.0, 100.0, 8)])
    bounds = np.array([[9.1, 91.0, 8.0], [9.0, 100.0, 8.0], [10.0, 90.0, 8.0], [50.0, 500.0, 7.0], [9.1, 91.0, 16.0]])

    assert cover.covered(bounds).tolist() == [True, False, False, False, True]
    assert cover.distances(bounds)[:3] == pytest.approx([10 / 9.1, 10 / 9.0, 100 / 90])
    assert cover.distances(bounds)[3] == np.inf


def test_a_point_as_good_in_everything_takes_the_place_of_others():
    cover = Cover(0.0)
    for point in (at(10.0, 100.0, 8), at(9.0, 110.0, 8), at(9.0, 100.0, 8), at(9.0, 100.0, 16), at(8.0, 100.0, 16)):
        cover.add(point)

    assert sorted(point.vector for point in cover.points) == [(8.0, 100.0, 16.0), (9.0, 100.0, 8.0)]


def test_seconds_from_which_on_plans_are_covered():
    """Only points count that need no more joules than the vector allows, on as many devices or fewer."""
    cover = Cover(0.1, [at(10.0, 100.0, 8), at(5.0, 120.0, 8), at(4.0, 90.0, 16)])

    assert cover.known_s(np.array([1.0, 95.0, 8.0])) == pytest.approx(10.0 / 1.1)
    assert cover.known_s(np.array([1.0, 110.0, 8.0])) == pytest.approx(5.0 / 1.1)
    assert cover.known_s(np.array([1.0, 90.0, 16.0])) == pytest.approx(4.0 / 1.1)
    assert cover.known_s(np.array([1.0, 80.0, 8.0])) == np.inf


@examples(80)
@given(st.data())
def test_sums_cover_a_row_where_points_cover_every_plan_above_them(data):
    """Plans on a grid above the least seconds, the least joules and the least weighed sums of a row."""
    grid = st.integers(1, 12)
    found = data.draw(st.lists(st.tuples(grid, grid, st.sampled_from([4, 8])), max_size=5))
    eps, watts = data.draw(st.sampled_from([0.0, 0.25, 1.0])), (0.125, 0.5)
    cover = Cover(eps, watts=watts)
    for step_s, joules, devices in found:
        cover.add(at(float(step_s), float(joules), devices))
    least = data.draw(st.tuples(grid, grid))
    sums = [data.draw(st.integers(1, 40)) for _ in watts]
    every = [(t / 2, e / 2) for t in range(2 * least[0], 180) for e in range(2 * least[1], 90)]
    plans = [(t, e) for t, e in every if all(e + w * 4 * t >= most for w, most in zip(watts, sums, strict=True))]

    def is_covered(t, e):
        points = [p for p in cover.points if p.devices <= 4]
        return any(p.step_s <= (1 + eps) * t and p.joules <= (1 + eps) * e for p in points)

    # The grid ends above all points and sums, so that what it misses lies between two of its lines.
    if cover.covered(np.array([[*least, 4.0, *sums]], dtype=float))[0]:
        assert all(is_covered(t, e) for t, e in plans)
    else:
        near = [(t, e) for t, e in every if all(e + w * 4 * t > most - 2 for w, most in zip(watts, sums, strict=True))]
        assert not all(is_covered(t, e) for t, e in near)
