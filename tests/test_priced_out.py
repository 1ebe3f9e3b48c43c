"""Columns that are priced out belong to no better plan, and the bound is below every plan."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from oracle import all_rows, rows_of
from searching import options_of, search_of
from test_search_clocks import pipeline

from cost_models.chain import Chain
from cost_models.estimate import evaluate
from cost_models.price import price
from planner.search.bounds import objective_of
from planner.search.columns import Columns, column_joules, stage_columns
from planner.search.priced_out import Cuts, price_out


def row_of(it):
    """The first row's chain, objective, and columns of every segment of every stage."""
    rows = rows_of(it, list(all_rows(it))[:1])
    chain = Chain(it.model, price(it.model, it.cluster, it.workload, rows, it.fits, it.ticks, clocks=it.clocks), 0)
    i, j = (np.array(a) for a in zip(*itertools.combinations(range(chain.layers + 1), 2), strict=True))
    parts = [stage_columns(chain, np.full_like(i, s), i, j, it.limit_bytes, joules=True) for s in range(chain.pp)]
    columns, pp = Columns.concat(parts), chain.pp
    first, last = (columns.stage == 0) == (columns.i == 0), (columns.stage == pp - 1) == (columns.j == chain.layers)
    return chain, objective_of(rows, it.cluster, options_of(it)), columns.take(first & last), int(rows.stage_size[0])


def every_plan(chain, columns):
    """Positions of the columns of every plan."""
    by_stage = [np.flatnonzero(columns.stage == s) for s in range(chain.pp)]
    for picked in itertools.product(*by_stage):
        if all(columns.j[a] == columns.i[b] for a, b in itertools.pairwise(picked)):
            yield list(picked)


def values_of(chain, objective, columns, spent, plans, size):
    for picked in plans:
        runs, clocks = [columns.runs(k) for k in picked], tuple(columns.clock[picked].tolist())
        step_s = evaluate(chain, runs, clocks).step * chain.prices.ticks.second
        yield float(objective.value(np.array([step_s]), np.array([spent[picked].sum()]))[0])


@pytest.mark.parametrize(("objective", "cap"), [("energy", None), ("time", 0.77), ("energy", 0.75)])
def test_what_goes_is_in_no_better_plan(objective, cap):
    it = pipeline(objective, cap)
    chain, goal, columns, size = row_of(it)
    spent = column_joules(chain, columns) * size
    plans = list(every_plan(chain, columns))
    values = np.array(list(values_of(chain, goal, columns, spent, plans, size)))
    for incumbent in (values.min() * (1 + 1e-9), float(np.quantile(values, 0.05)), float(np.quantile(values, 0.5))):
        keep, bound = price_out([chain], columns, spent, goal, incumbent)
        used = np.unique([k for k, value in zip(plans, values, strict=True) if value < incumbent])

        assert bound <= values.min()
        assert keep[used.astype(int)].all()
        assert bound > 0.9 * values.min()
    assert not keep.all() or incumbent > values.min() * 1.2


def test_the_least_total_by_enumeration():
    it = pipeline("energy", None)
    chain, _, columns, _ = row_of(it)
    cost = np.random.default_rng(3).uniform(1, 2, len(columns))
    total, through = Cuts.of(chain, columns).least_through(cost)
    best = np.full(len(columns), np.inf)
    for picked in every_plan(chain, columns):
        best[picked] = np.minimum(best[picked], cost[picked].sum())

    assert total == pytest.approx(best.min())
    # Layers are alike, so a column stands for every place of its length; by enumeration each has one.
    assert (through <= best + 1e-12).all()


def test_the_search_hands_fewer_columns_to_the_solver():
    search = search_of(pipeline("time", 0.77))
    search.run()

    assert search.counts["literals"] < 40
