"""Paths that grow with a pipeline from its last stage on: no step is shorter than the longest of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixed_oracle import simulated
from strategies import examples

from cost_models.critical_paths import seed_paths
from planner.search.mixed.certificate import crossing_seeds
from planner.search.mixed.paths import joined, least_steps, once_more, round_and_round


def added(m: int, time: np.ndarray, hop: np.ndarray, longest: float) -> tuple[float, list[float]]:
    """Work and twice the hops of all stages, last one first, and the most that paths add after each."""
    work, most, ring, length, found = np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(1, dtype=np.int64), []
    for depth, (t, h) in enumerate(zip(time.astype(float), 2.0 * hop, strict=True), 1):
        work = work + t + h
        most = np.maximum(most, once_more(m, depth, work, np.array([t]), longest))
        ring, length = joined(ring, length, t, h, (most - work) / max(1, m - 1 - depth))
        most = np.maximum(most, round_and_round(m, depth, work, np.array([t]), h, ring, length, longest))
        found.append(float(most[0]))
    return float(work[0]), found


@st.composite
def pipelines(draw) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Micro-batches, forwards, backwards and hops of stages that are nearly or not at all alike, first stage first."""
    pp, spread = draw(st.integers(1, 9)), draw(st.sampled_from([0, 3, 60]))
    ticks = st.lists(st.integers(60, 60 + spread), min_size=pp, max_size=pp)
    hop = draw(st.lists(st.integers(0, draw(st.sampled_from([0, 2, 30]))), min_size=pp - 1, max_size=pp - 1))
    return draw(st.integers(1, 40)), np.array(draw(ticks)), np.array(draw(ticks)), np.array(hop, dtype=np.int64)


@given(pipelines())
@examples(400)
def test_no_step_is_shorter_than_a_path(pipeline):
    m, forward, backward, hop = pipeline
    none = np.zeros_like(forward)
    step = int(simulated(m, *(each[:, None] for each in (forward, backward, none, hop)))[0])
    work, most = added(m, (forward + backward)[::-1], np.append(0, hop[::-1]), 2.0 * hop.max(initial=0))

    assert work + most[-1] <= step + 1e-6


@given(pipelines(), st.integers(0, 200))
@examples(400)
def test_no_step_is_shorter_than_said_of_several_at_once(pipeline, tail):
    """A pipeline, the same back to front, and one with a slow first stage, which waits for no other."""
    m, forward, backward, hop = pipeline
    slow = np.where(np.arange(len(forward)) == 0, 5, 1)
    forward, backward = (np.stack([it, it[::-1], slow * it]) for it in (forward, backward))
    hop, tails = np.stack([hop, hop[::-1], hop]), np.zeros_like(forward)
    tails[:, 0] = tail
    steps = simulated(m, *(each.T for each in (forward, backward, tails, hop)))
    found = least_steps(m, (forward + backward).astype(float), hop.astype(float), tails[:, 0].astype(float))

    assert (found <= steps).all()
    assert len(slow) > 1 or (found >= steps - 1e-6 * steps).all()
    assert m <= len(slow) or found[2] >= 0.9 * steps[2]


@examples(200)
@given(pipelines())
def test_no_step_is_shorter_than_a_seed_path_with_the_hops_it_crosses(pipeline):
    """Every seed path of 1F1B has its hops boundary by boundary, however many rounds it goes past all stages."""
    m, forward, backward, hop = pipeline
    step = int(simulated(m, *(each[:, None] for each in (forward, backward, 0 * forward, hop)))[0])
    seeds = list(crossing_seeds(len(forward), m))

    assert len(seeds) == len(seed_paths(len(forward), 1, m))
    for path, crossed in seeds:
        assert path.forward @ forward + path.backward @ backward + crossed @ hop <= step


def test_rounds_of_a_slow_row_are_the_whole_step():
    """Of nine stages two in a row are slow: their hops stretch every round, and that is what the step is longer by."""
    time, hop, m = np.array([60, 60, 60, 90, 90, 60, 60, 60, 60]), np.full(8, 10), 41
    step = int(simulated(m, *(each[:, None] for each in (time // 3, time - time // 3, 0 * time, hop)))[0])
    work, most = added(m, time[::-1], np.append(0, hop[::-1]), 20.0)

    assert 0.995 * step <= work + most[-1] <= step


@pytest.mark.parametrize("slow", [4, 5, 6])
@pytest.mark.parametrize("m", [20, 29, 41])
def test_rounds_that_do_not_come_out_even_leave_out_a_stage(m, slow):
    """Stages of a slow row are alike: the longest path goes round all of them, and in some rounds all but one."""
    time, hop = np.array([60] * (8 - slow) + [90] * slow + [60]), np.full(8, 10)
    step = int(simulated(m, *(each[:, None] for each in (time // 3, time - time // 3, 0 * time, hop)))[0])
    work, most = added(m, time[::-1], np.append(0, hop[::-1]), 20.0)

    assert work + most[-1] == step
