"""Points of a front by hand: what they cover, and which of them stay."""

from __future__ import annotations

import numpy as np
import pytest

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
