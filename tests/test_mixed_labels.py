"""The search over labels on costs written by hand, against every pipeline that there is."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from planner.search.mixed.bands import LEANING
from planner.search.mixed.labels import LabelSearch
from planner.search.mixed.pipelines import Pipeline, durations
from planner.search.mixed.relaxation import Relaxation
from planner.search.mixed.stages import Slots, Stages
from planner.search.mixed.table import IMPOSSIBLE, QUICKEST
from planner.search.mixed.weighing import Weighing

LAYERS = 4
SEGMENTS = [(i, j) for i in range(LAYERS) for j in range(i + 1, LAYERS + 1) if j - i < LAYERS]
RATE, SIZE, PART = np.array([1, 2]), np.array([2, 1]), np.array([0, 1])
CUTS = [(2, 1), (1, 2)]
"""Layers of the second and third of three stages; the first has one."""


class Table:
    """Two ways to run layers: quick with a long tail, and slow without one, which holds one layer at the front."""

    micro_batches, layers, flights = 10, LAYERS, LAYERS
    part, size, joules = PART, SIZE, None
    told_apart, wait_rate = np.zeros_like(PART), np.zeros(len(PART))

    def __init__(self, tail: int, hop: int):
        index = np.full((LAYERS + 1, LAYERS + 1), -1)
        for k, at in enumerate(SEGMENTS):
            index[at] = k
        i, j = np.array(SEGMENTS).T
        self.tail, self.segments = np.array([tail, 0]), SimpleNamespace(i=i, j=j, index=index)
        self.same = self.across = np.full(2, hop, dtype=np.int64)
        self.base = 2 * RATE[:, None] * (j - i)
        self.chains = [SimpleNamespace(forward=lambda i, j, rate=rate: rate * (j - i)) for rate in RATE.tolist()]

    def flight(self, depth):
        return np.minimum(depth, self.flights)

    def needed(self, ways, flight, segment):
        return np.ones(np.broadcast(ways, segment).shape, dtype=bool)

    def learn(self, way, flight, segments):
        """Knows all."""

    def one(self, way, flight, segment, recompute=QUICKEST):
        i, j = SEGMENTS[segment]
        if way == 1 and i == 0 and j > 1:
            return IMPOSSIBLE
        return RATE[way] * (j - i), RATE[way] * (j - i), self.tail[way] * (j - i), 0, 0, 0.0

    def each(self, way, flight, segment):
        return {QUICKEST: self.one(way, flight, segment)}

    def some(self, way, depth, i, j, recompute):
        each = zip(way.tolist(), depth.tolist(), self.segments.index[i, j].tolist(), strict=True)
        return np.array([self.one(*it)[:5] for it in each]).reshape(-1, 5).T, np.zeros(len(way))


def stages_of(table: Table, hop: int) -> Stages:
    """What stands in any of the pipelines: a slow stage, a quick one, a slow one, cut as in ``CUTS``."""
    rows = {(1, LAYERS, last, 1) for _, last in CUTS} | {(2, LAYERS - last, n, 0) for n, last in CUTS} | {(3, 1, 1, 1)}
    depth, j, n, way = np.array(sorted(rows)).T
    slots = Slots.of(table)
    slot = np.searchsorted(slots.part, PART[way])
    tail = np.where(n == j, table.tail[way] * n, 0).astype(float)
    return Stages(table, slots, depth, j, n, slot, 2.0 * RATE[way] * n, np.where(depth > 1, 2.0 * hop, 0.0), tail)


@pytest.mark.parametrize("together", [False, True])
def test_no_label_stands_for_one_that_waits_less(together):
    """Two pipelines alike but for how their last stage runs: quick, and waiting for its watts longer than the slow one
    takes at all."""
    hop, quick, slow, wait = 0, 2.0, 3.0, 200.0
    weighing = Weighing(minimised=False, waits=True, lines=np.ones((1, 2)))
    slots = Slots.of(Table(0, hop)).weighed(weighing)
    depth, j, n, slot = np.array([(1, LAYERS, 1, 1), (1, LAYERS, 1, 1), (2, LAYERS - 1, 2, 0), (3, 1, 1, 1)]).T
    time, waits, zero = np.array([quick, slow, 2.0, 2.0]), np.array([wait, 0.0, 0.0, 0.0]), np.zeros(4)
    load = waits[:, None] * together
    how = {"way": np.array([1, 1, 0, 1]), "recompute": np.full(4, QUICKEST)}
    stages = Stages(slots.table, slots, depth, j, n, slot, time, zero, zero, zero, waits * (not together), load, **how,
                    upto=1e3)  # fmt: skip
    relaxed = Relaxation(stages, np.array([2, 2]), "returning")
    relaxed.bound(np.ones(2), 1e3)
    found = LabelSearch([relaxed], 1e3).run(10_000)

    shorter = slots.table.micro_batches * slow + quick + 2.0
    assert found.bound <= shorter < wait


@pytest.mark.parametrize("tail", [40, 60])
@pytest.mark.parametrize("hop", [0, 1, 3, 6, 12])
def test_no_label_stands_for_one_whose_second_stage_has_a_shorter_tail(tail, hop):
    table = Table(tail, hop)
    stages = stages_of(table, hop)
    cuts = [(np.array([0, 1, 1 + n]), np.array([1, 1 + n, LAYERS])) for n, _ in CUTS]
    steps = [durations(table, Pipeline(np.array([1, 0, 1]), i, j)).step for i, j in cuts]
    relaxed = [Relaxation(stages, np.array([2, 2]), kind) for kind in ("returning", "staying")]
    for it in relaxed:
        it.bound(np.ones(2), 1e9)

    for incumbent in (min(steps) + 0.5, 2.0 * max(steps)):
        found = LabelSearch(relaxed, incumbent).run(10_000)
        assert found.bound <= min(steps)
        assert found.bound >= 0.8 * min(steps)


@pytest.mark.parametrize("lean", LEANING.leans)
def test_a_quick_last_stage_says_nothing_of_the_slowest(lean):
    """Stages ahead may bring ``M`` up to the cap of the band, whether prices lean on the mean or not.

    Four stages of one layer, of which the last takes 2 ticks and the others 4: ``M`` is 10 + 6 x 4, the step 14 more.
    """
    table = Table(0, 0)
    way, depth = np.array([0, 1, 1, 1]), np.arange(1, 5)
    slots, none, one = Slots.of(table), np.zeros(4), np.ones(4, dtype=int)
    stages = Stages(
        table, slots, depth, 5 - depth, one, np.searchsorted(slots.part, PART[way]), 2.0 * RATE[way], none, none
    )
    step = durations(table, Pipeline(way[::-1], np.arange(4), np.arange(1, 5))).step
    relaxed = [Relaxation(stages, np.array([2, 3]), "band", lean=by) for by in (0.0, lean)]
    for it in relaxed:
        it.bound(np.ones(2), step)

    assert step == 48
    assert 40 < LabelSearch(relaxed, step + 0.5, 0.0, 34.5).run(100).bound <= step
