"""Sums over cuts against every cut, and return paths below every plan."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from oracle import all_rows, rows_of
from strategies import examples, instances

from cost_models.chain import Chain
from cost_models.estimate import evaluate
from cost_models.price import price
from planner.search.certificate import runs_of
from planner.search.columns import stage_columns
from planner.search.cut_sums import column_places, least_total, return_ticks, sums_after, sums_before


def chain_of(it, pick):
    """One row of a space; ``None`` where there is none."""
    found = list(all_rows(it))
    if not found:
        return None
    rows = rows_of(it, [found[pick % len(found)]])
    return Chain(it.model, price(it.model, it.cluster, it.workload, rows, it.fits, it.ticks), 0)


def all_columns(chain, limit):
    """The quickest column of every segment of every stage."""
    i, j = np.array(list(itertools.combinations(range(chain.layers + 1), 2))).T
    stage, at = np.repeat(np.arange(chain.pp), len(i)), np.tile(np.arange(len(i)), chain.pp)
    first, last = (stage == 0) == (i[at] == 0), (stage == chain.pp - 1) == (j[at] == chain.layers)
    some = first & last
    return stage_columns(chain, stage[some], i[at][some], j[at][some], limit)


def every_plan(chain, columns):
    """Positions of the columns of every cut, each where the one before ends."""
    n, by_stage = columns.j - columns.i, [np.flatnonzero(columns.stage == s) for s in range(chain.pp)]
    for picked in itertools.product(*by_stage):
        ends = np.cumsum([0, *n[list(picked)]])
        same = chain.places[ends[:-1]] == chain.places[columns.i[list(picked)]] if ends[-1] == chain.layers else False
        if np.all(same):
            yield list(picked)


@examples(120)
@given(instances(most_layers=7, most_devices=4), st.integers(0, 10**6))
def test_sums_and_return_paths_against_every_cut(it, pick):
    chain = chain_of(it, pick)
    if chain is None:
        return
    columns = all_columns(chain, it.limit_bytes)
    places, plans = column_places(chain, columns), list(every_plan(chain, columns))
    cost = (columns.forward + columns.backward).astype(float)
    wanted = min((cost[picked].sum() for picked in plans), default=np.inf)
    assert least_total(chain, places, cost) == wanted
    assert sums_before(chain, places, cost)[-1][-1] == sums_after(chain, places, cost)[0][0] == wanted
    steps = [evaluate(chain, runs_of(columns, picked)).step for picked in plans]
    assert return_ticks(chain, columns, places) <= min(steps, default=np.inf)
