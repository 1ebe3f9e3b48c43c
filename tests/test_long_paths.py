"""Longest paths made longer, against the whole graph, event by event."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from cost_models.critical_paths import critical_path
from cost_models.long_paths import longest_path
from cost_models.pipeline import step_ticks
from cost_models.schedules import Schedule
from planner.checks.verify_schedule import run_order, work_order


@st.composite
def durations(draw: st.DrawFn, pp: int) -> tuple:
    most = draw(st.sampled_from([2, 30, 10**6]))
    some = st.lists(st.integers(1, most), min_size=pp, max_size=pp).map(np.array)
    return draw(some), draw(some), draw(st.integers(0, 3 * most)), draw(some)


@examples(60)
@given(st.data())
def test_it_is_as_long_as_the_step_and_never_longer_than_another(data):
    """Exact where it was taken, a lower bound for all other durations."""
    pp, m = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 300))
    forward, backward, hop, tail = data.draw(durations(pp))
    schedule = Schedule("1f1b", pp, 1, m)
    path, order = longest_path(schedule, forward, backward, hop, tail), work_order("1f1b", pp, 1, m)
    simulated = run_order(order, forward.tolist(), backward.tolist(), None, hop, tail.tolist())

    assert path.ticks(forward, backward, hop, tail) == simulated
    assert step_ticks(pp, 1, m, forward[None], backward[None], np.array([hop]), tail[None])[0] == simulated
    for _ in range(3):
        other = data.draw(durations(pp))
        steps = run_order(order, other[0].tolist(), other[1].tolist(), None, other[2], other[3].tolist())
        assert path.ticks(*other) <= steps


@examples(60)
@given(st.data())
def test_interleaved_cycles_are_whole_periods(data):
    """Its order of work repeats after ``pp`` micro-batches: a path made longer by fewer would be none of its own."""
    pp, virtual, groups = data.draw(st.integers(2, 4)), data.draw(st.integers(2, 3)), data.draw(st.integers(16, 60))
    schedule = Schedule("1f1b", pp, virtual, pp * groups)

    def draw() -> tuple:
        wide = data.draw(durations(pp * virtual))
        return (*wide[:3], wide[3][:pp])

    def step(given: tuple) -> int:
        return critical_path(schedule.graph(), *given).ticks(*given)

    mine, other = draw(), draw()
    path = longest_path(schedule, *mine)
    assert path.ticks(*mine) == step(mine)
    assert path.ticks(*other) <= step(other)


def test_a_step_of_many_micro_batches_needs_no_graph_of_them():
    """One device twice as slow: it decides all but the ends."""
    forward, backward, tail = np.array([1, 4, 1, 1]), np.array([2, 8, 2, 2]), np.zeros(4, dtype=int)
    m = 10**9
    path = longest_path(Schedule("1f1b", 4, 1, m), forward, backward, 0, tail)

    assert path.forward[1] + path.backward[1] == 2 * m
    assert path.ticks(forward, backward, 0, tail) == 1 + 12 * m + 2
