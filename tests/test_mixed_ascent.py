"""Prices of mixed relaxations against the best of all: linear programs over every plane, over every chain of stages."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from test_mixed_bands import chains, relaxed_jobs

from planner.search.mixed.ascent import climbed
from planner.search.mixed.relaxation import Relaxation

pytestmark = pytest.mark.usefixtures("steady")  # as where the jobs come from, which keeps them


def highest(at_zero: np.ndarray, slope: np.ndarray, most: float | None = None) -> float:
    """The most of ``min_k at_zero_k + slope_k . mu`` over ``0 <= mu <= most``."""
    rows, n = slope.shape
    found = linprog(
        np.append(np.zeros(n), -1.0), np.hstack([-slope, np.ones((rows, 1))]), at_zero,
        bounds=[(0, most)] * n + [(None, None)],
    )  # fmt: skip
    assert found.success
    return -found.fun


@st.composite
def planes(draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values at 0 and slopes of planes, the last of which falls in every direction; and prices to start at."""
    n = draw(st.integers(1, 4))
    number = st.integers(-50, 50)
    slope = np.array(draw(st.lists(st.lists(number, min_size=n, max_size=n), min_size=1, max_size=12)), dtype=float)
    at_zero = np.array(draw(st.lists(st.integers(100, 400), min_size=len(slope) + 1, max_size=len(slope) + 1)), float)
    start = np.array(draw(st.lists(st.integers(0, 30), min_size=n, max_size=n)), float)
    return at_zero, np.vstack([slope, np.full(n, -1.0)]), start * draw(st.sampled_from([1.0, 1e-6]))


@given(planes())
def test_the_highest_price_is_found(case):
    at_zero, slope, start = case
    asked = []

    def ask(mu):
        assert (mu >= 0).all()
        values = at_zero + slope @ mu
        asked.append(values.min())
        return float(values.min()), slope[values.argmin()]

    climbed(ask, start, np.inf, 200)
    most = highest(at_zero, slope)

    assert max(asked) == pytest.approx(most, rel=1e-4)


@pytest.mark.parametrize(
    ("target", "steps", "slope", "most"), [(5.0, 50, 1.0, 8), (np.inf, 7, 1.0, 7), (np.inf, 50, 0.0, 1)]
)
def test_no_more_is_asked_than_needed(target, steps, slope, most):
    """A value that will do ends it, and so do as many steps as are allowed, and a value that no price changes."""
    asked = []

    def ask(mu):
        asked.append(slope * float(mu[0]))
        return asked[-1], np.array([slope])

    climbed(ask, np.ones(1), target, steps)
    assert 1 <= len(asked) <= most
    assert target == np.inf or asked[-1] >= target


@pytest.mark.parametrize("kind", ["returning", "staying", "band"])
@pytest.mark.parametrize("room", [0.3, 50.0])
def test_a_relaxation_is_as_high_as_its_dual(room, kind):
    """The dual over every chain of stages, whatever devices it takes: not above it, and near it in a few steps."""
    for stages, devices, start in relaxed_jobs(room):
        relaxed = Relaxation(stages, devices, kind)
        every = [np.array(chain) for chain in chains(stages, 100 * devices)]
        part, size = stages.slots.part[stages.slot], stages.slots.size[stages.slot]
        used = np.array([np.bincount(part[chain], size[chain], len(devices)) for chain in every])
        cost = np.array([relaxed.terms[chain].sum() for chain in every])
        dual = highest(cost, used - devices)

        found = relaxed.bound(0.3 * start, np.inf)
        assert (1 - 2e-3) * dual <= found <= (1 + 1e-9) * dual
        assert relaxed.best == found
