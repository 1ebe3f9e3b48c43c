"""Ways best first, against all their dearer bounds put in order at once."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.search.best_first import Sort, best_first


@st.composite
def sorts(draw):
    """``(virtual, clock, cheap bounds, dearer bounds or None)`` of a few sorts; small numbers, so that bounds tie."""
    found = []
    for virtual in range(1, draw(st.integers(2, 4))):
        bounds = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30))
        cheap, dearer = np.array(bounds, dtype=float).reshape(-1, 2).T
        found.append((virtual, 1.0, cheap, dearer if draw(st.booleans()) else None))
    return found


def every_way(cases):
    return sorted(
        (float(max(cheap[r], cheap[r] if dearer is None else dearer[r])), r, virtual, clock)
        for virtual, clock, cheap, dearer in cases
        for r in range(len(cheap))
    )


def asked(cases, seen=None):
    """The sorts of some cases; ``seen`` counts rows whose dearer bounds were found."""

    def finder(dearer):
        def find(rows):
            if seen is not None:
                seen.extend(rows.tolist())
            return dearer[rows]

        return None if dearer is None else find

    return [Sort(v, clock, np.arange(len(cheap)), cheap, finder(dearer)) for v, clock, cheap, dearer in cases]


@settings(max_examples=200, deadline=None)
@given(sorts(), st.integers(0, 10))
def test_ways_come_as_if_all_dearer_bounds_were_known(cases, below):
    found = list(best_first(asked(cases), lambda: below))

    assert found == [way for way in every_way(cases) if way[0] < below]


@settings(max_examples=100, deadline=None)
@given(sorts(), st.data())
def test_below_may_fall_on_the_way(cases, data):
    """Each way that comes is below what the limit is then; none that is below the last limit is left out."""
    limits, came = [10], []
    for way in best_first(asked(cases), lambda: limits[-1]):
        assert way[0] < limits[-1]
        came.append(way)
        limits.append(min(limits[-1], data.draw(st.integers(0, 10))))

    assert came == [way for way in every_way(cases) if way in came or way[0] < limits[-1]]


def test_dearer_bounds_of_ways_that_never_come_first_are_not_asked_for():
    cheap = np.arange(100.0)
    seen = []
    first = next(best_first(asked([(2, 1.0, cheap, cheap + 0.5)], seen), lambda: 1000.0))

    assert first == (0.5, 0, 2, 1.0)
    assert len(seen) < 20


def test_without_refining_ways_come_by_the_bounds_that_are_known():
    cheap, seen = np.array([3.0, 1.0, 2.0]), []
    found = list(best_first(asked([(2, 1.0, cheap, cheap + 5)], seen), lambda: 1000.0, lambda: False))

    assert [row for _, row, *_ in found] == [1, 2, 0] and not seen
