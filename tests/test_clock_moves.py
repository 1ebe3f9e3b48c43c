"""Moves of clocks and layers between stages: none is better where they end, and what is learned on the way holds."""

from __future__ import annotations

import dataclasses
import itertools
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import best_of_all
from searching import close, options_of, search_of
from strategies import examples
from test_neighbours import layers as of_layers
from test_neighbours import picks
from test_search_clocks import clocked, pipeline

from cost_models.chain import Chain
from planner.search import certificate, clock_moves
from planner.search.bounds import objective_of
from planner.search.budget import Budget
from planner.search.certificate import open_row
from planner.search.clock_moves import better_clocks
from planner.search.incumbent import quick
from planner.search.kept import Kept
from planner.search.proof import prove


def opened(it):
    """Every 1F1B row of an instance with several stages, each with all columns that fit at any clock; at most 4."""
    answer = best_of_all(it)
    if answer.rows is None:
        return
    for r in np.flatnonzero((answer.rows.pp > 1) & (answer.rows.pp < it.model.layers))[:4]:
        prices = answer.prices.take(np.array([r]))
        objective = objective_of(prices.rows, it.cluster, options_of(it))
        size, pin = int(prices.rows.stage_size[0]), dict(it.pins).get("recompute")
        row = open_row(Chain(it.model, prices, 0), objective, size, 0.0, 1e30, it.limit_bytes, pin, [])
        if row is not None:
            yield row


def value(it, row, picked):
    found = row.judge(list(picked), it.limit_bytes)
    return np.inf if found is None else found.value


def ladder(row, stage, begin, n):
    """Columns of one stage by time, then joules."""
    columns, places = row.columns, row.chain.places
    here = (columns.stage == stage) & (columns.j - columns.i == n) & (places[columns.i] == places[begin])
    some = np.flatnonzero(here)
    return sorted(some.tolist(), key=lambda k: (columns.forward[k] + columns.backward[k], row.dynamic[k]))


def a_move_away(row, picked):
    """Every plan that differs by one clock's step, by two in opposite directions, or by one layer at the same steps."""
    counts, pp = of_layers(row, picked), len(picked)

    def rungs(counts):
        begins = [0, *itertools.accumulate(counts)]
        return [ladder(row, s, begins[s], n) for s, n in enumerate(counts)]

    here = rungs(counts)
    steps = [rung.index(k) for rung, k in zip(here, picked, strict=True)]
    changes = [{s: d} for s in range(pp) for d in (1, -1)]
    changes += [{a: 1, b: -1} for a, b in itertools.permutations(range(pp), 2)]
    for change in changes:
        at = [step + change.get(s, 0) for s, step in enumerate(steps)]
        if all(0 <= k < len(rung) for k, rung in zip(at, here, strict=True)):
            yield [rung[k] for k, rung in zip(at, here, strict=True)]
    for a, b in itertools.permutations(range(pp), 2):
        there = rungs([n - (s == a) + (s == b) for s, n in enumerate(counts)])
        if counts[a] > 1 and all(there):
            yield [rung[min(step, len(rung) - 1)] for step, rung in zip(steps, there, strict=True)]


@examples(14)
@given(clocked(), st.integers(0, 2**16))
def test_it_ends_where_no_move_is_better(it, seed):
    for row in opened(it):
        some = list(picks(row))
        start = some[seed % len(some)] if some else None
        if start is None or value(it, row, start) == np.inf:
            continue
        around = better_clocks(row, start, np.inf, Budget())
        reached = value(it, row, around.picked)

        assert reached <= value(it, row, start)
        assert all(value(it, row, other) >= reached * (1 - 1e-9) for other in a_move_away(row, around.picked))
        assert better_clocks(row, start, reached, Budget()).picked is None


@pytest.mark.parametrize(("objective", "cap"), [("energy", None), ("time", 0.77), ("time", 0.8), ("energy", 0.75)])
@pytest.mark.parametrize("layers", [6, 9])
def test_moves_alone_end_where_no_move_is_better(objective, cap, layers, monkeypatch):
    """From anywhere, without the plans that spread fast and slow stages evenly."""
    monkeypatch.setattr(clock_moves, "_spread", lambda row, ladders, counts: np.zeros((0, len(counts)), dtype=np.int64))
    it = pipeline(objective, cap, layers)
    for row in opened(it):
        some, random = list(picks(row)), np.random.default_rng(0)
        for _ in range(12):
            start = some[random.integers(len(some))]
            begins = np.cumsum([0, *(row.columns.j - row.columns.i)[start]])[:-1]
            rungs = (ladder(row, s, b, n) for s, (b, n) in enumerate(zip(begins, of_layers(row, start), strict=True)))
            start = [int(random.choice(rung)) for rung in rungs]
            around = better_clocks(row, start, np.inf, Budget()).picked
            reached = value(it, row, around)

            assert all(value(it, row, other) >= reached * (1 - 1e-9) for other in a_move_away(row, around))


@examples(20)
@given(clocked())
def test_the_proof_needs_no_good_plan_to_begin_with(it):
    """Given some rows, no bound of any, and the worst plan that a balanced cut has, it ends with the best of them."""
    it = dataclasses.replace(it, pins=tuple((dict(it.pins) | {"virtual_stages": 1}).items()))
    answer, search = best_of_all(it), search_of(it)
    if answer.rows is None or search is None:
        return
    some = np.random.default_rng(len(answer.rows)).permutation(len(answer.rows))[:8]
    search.kept = [balanced(it, answer.prices.take(np.array([r]))) for r in some]
    known = [kept for kept in search.kept if kept.found is not None]
    if not known:
        return
    search.best = max(known, key=lambda kept: kept.found.value)
    with mock.patch.object(certificate, "CLOCKS_AFTER", 1):
        bound, settled = prove(search, np.inf)

    assert settled and close(search.value, min(answer.by_row[r] for r in some)) and bound == search.value


def balanced(it, prices):
    """One row with the best of its balanced cuts at full clock, and no bound."""
    objective = objective_of(prices.rows, it.cluster, options_of(it))
    size, pin = int(prices.rows.stage_size[0]), dict(it.pins).get("recompute")
    found = quick(Chain(it.model, prices.only(1.0), 0), objective, size, it.limit_bytes, pin)
    return Kept(prices, 0, 1, 0.0, found)


@pytest.mark.parametrize(("objective", "cap"), [("energy", None), ("time", 0.77), ("energy", 0.75)])
def test_paths_that_are_learned_bound_every_plan(objective, cap):
    it = pipeline(objective, cap)
    for row in opened(it):
        columns, random = row.columns, np.random.default_rng(0)
        around = better_clocks(row, next(picks(row)), np.inf, Budget())
        assert around.paths
        for _ in range(200):
            plan = np.array([random.choice(np.flatnonzero(columns.stage == s)) for s in range(row.chain.pp)])
            work = columns.forward[plan][None], columns.backward[plan][None], None
            step = row.chain.schedule.step_ticks(*work, np.array([row.chain.hop]), columns.tail[plan][None])[0]
            for path in around.paths:
                assert int(columns.along(path)[plan].sum()) + path.hops * row.chain.hop <= step


def test_a_spent_budget_ends_it():
    row = next(opened(pipeline("energy", None)))
    budget = Budget(units=1e-6)
    better_clocks(row, next(picks(row)), np.inf, budget)

    assert 0 < budget.spent < 1
