"""Detours of longest paths: each is a bound of every other pipeline, its own one's whole step, and bounds labels."""

import itertools
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixed_oracle import simulated
from strategies import examples
from test_mixed_bands import chains, instance, pipeline_of, relaxed_jobs
from test_mixed_search import search_of

from planner.search.mixed import engine, jobs
from planner.search.mixed.detours import Detour, detour_of
from planner.search.mixed.pipelines import Durations, Pipeline, durations

pytestmark = pytest.mark.usefixtures("steady")


@st.composite
def timed(draw, m: int) -> Durations:
    """Stages that are nearly or not at all alike; tails of some are long."""
    pp, spread = draw(st.integers(2, 9)), draw(st.sampled_from([0, 3, 60]))
    ticks = st.lists(st.integers(60, 60 + spread), min_size=pp, max_size=pp)
    tails = st.lists(st.integers(0, draw(st.sampled_from([0, 10, 300]))), min_size=pp, max_size=pp)
    hop = draw(st.lists(st.integers(0, draw(st.sampled_from([0, 2, 30]))), min_size=pp - 1, max_size=pp - 1))
    forward, backward, tail, hop = (np.array(it, dtype=np.int64) for it in (draw(ticks), draw(ticks), draw(tails), hop))
    step = int(simulated(m, *(each[:, None] for each in (forward, backward, tail, hop)))[0])
    return Durations(forward, backward, tail, hop, step)


def told(detour: Detour, it: Durations) -> float:
    """What a detour says of a pipeline's step, of one that is less deep by the passes that it has."""
    time, hop = (it.forward + it.backward)[::-1], 2 * np.append(0, it.hop[::-1])
    depth = np.arange(1, len(time) + 1)
    return time @ (1 + detour.again_at(depth)) + hop @ (1 + detour.hops_at(depth)) + it.tail[0]


@given(st.data(), st.integers(1, 40))
@examples(300)
def test_no_step_is_shorter_than_any_detour_says(data, m):
    one, other = data.draw(timed(m)), data.draw(timed(m))
    detour = detour_of(one, m)

    if detour is None:  # its longest path ends with a tail behind the first stage, or waits where a pipeline fills
        return
    assert told(detour, one) == one.step
    assert told(detour, other) <= other.step


def test_rounds_that_leave_a_rest_are_told_exactly():
    """Two slow rows of unlike length: paths that grow from the last stage on know one of them, the detour both."""
    time, m = np.array([60, 90, 90, 60, 80, 80, 80, 60]), 24
    it = Durations(time // 3, time - time // 3, 0 * time, np.full(7, 9), 0)
    step = int(simulated(m, *(each[:, None] for each in (it.forward, it.backward, it.tail, it.hop)))[0])
    detour = detour_of(it, m)

    assert sum(detour.again) == m - 1
    assert told(detour, it) == step


@pytest.mark.parametrize("room", [0.3, 50.0])
@pytest.mark.parametrize("width", [1, 3, 100_000])
def test_labels_with_detours_bound_every_pipeline(room, width):
    """Of all pipelines' detours at once; a wide beam then says what the best step is."""
    closer = 0
    for stages, devices, start in relaxed_jobs(room):
        m = stages.table.micro_batches
        found = [durations(stages.table, pipeline_of(stages, chain)) for chain in chains(stages, devices)]
        best = min(it.step for it in found)
        known = tuple(dict.fromkeys(it for it in (detour_of(one, m) for one in found) if it is not None))
        job = jobs.job_of(stages, devices, start, 1.3 * best, 0.0, m - 1)
        plain, bound = job.search(1.3 * best).run(width), job.search(1.3 * best, known).run(width)

        assert bound.bound <= best * (1 + 1e-9)
        assert width < 1000 or bound.bound >= plain.bound
        closer += bound.bound > plain.bound
    assert width < 1000 or closer


def test_a_search_that_goes_on_with_detours_keeps_the_best_pipeline():
    for stages, devices, start in relaxed_jobs(0.3):
        m = stages.table.micro_batches
        found = [durations(stages.table, pipeline_of(stages, chain)) for chain in chains(stages, devices)]
        best = min(it.step for it in found)
        job = jobs.job_of(stages, devices, start, 1.3 * best, 0.0, m - 1)
        search = job.search(1.3 * best)
        search.run(100_000)
        search.restrict()
        known = tuple(dict.fromkeys(it for it in (detour_of(one, m) for one in found) if it is not None))
        search.know(best + 0.5, known)

        assert search.run(100_000).bound <= best


def test_a_job_learns_no_longer_than_detours_are_kept():
    """Though every search meets one that is not known, as where more than are kept are met in turn."""
    stages, devices, start = relaxed_jobs(50.0)[0]
    seen = [pipeline_of(stages, next(chains(stages, devices)))]
    job, search = jobs.job_of(stages, devices, start, 1e18, 0.0, 3), search_of(instance(50.0))
    job.left, lengths, lessons = job.search(1e18), itertools.count(1), 0
    with patch.object(engine, "detour_of", lambda *_: Detour((0,) * next(lengths), ())):
        while lessons < 100 and search._learned(_that_saw(job, seen)):
            lessons += 1

    assert lessons == engine.MOST_DETOURS


def _that_saw(job: jobs.Job, seen: list[Pipeline]) -> jobs.Job:
    job.seen = list(seen)
    return job
