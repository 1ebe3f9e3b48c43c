"""The first of a row's equally good splits, against every split of the row."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from searching import options_of
from strategies import examples
from test_certificate import opened
from test_order import tied_instances

from cost_models.chain import Chain
from oracle import best_of_all
from planner.search.bounds import objective_of
from planner.search.budget import Budget
from planner.search.incumbent import best_of_cut
from planner.search.order import split_key
from planner.search.ties import first_of_equals


@examples(60)
@given(tied_instances(most_layers=8), st.integers(0, 10**6))
def test_the_first_of_all_equal_splits(it, pick):
    answer = best_of_all(it)
    if answer.rows is None:
        return
    many = np.flatnonzero((answer.rows.pp > 1) & np.isfinite(answer.by_row))
    if not len(many):
        return
    prices = answer.prices.take(many[[pick % len(many)]])
    chain, objective = Chain(it.model, prices, 0), objective_of(prices.rows, it.cluster, options_of(it))
    limits = (int(prices.rows.stage_size[0]), it.limit_bytes, dict(it.pins).get("recompute"))
    cuts = [(0, *inner, chain.layers) for inner in itertools.combinations(range(1, chain.layers), chain.pp - 1)]
    every = [best_of_cut(chain, np.array(cut), objective, *limits, beat=np.inf) for cut in cuts]
    every = [found for found in every if found is not None]
    if not every:
        return
    best = min(found.value for found in every)
    equal = sorted((found for found in every if found.value == best), key=lambda found: split_key(found.runs))

    row = opened(it, prices, best * (1 + 1e-9))
    found = first_of_equals(row, equal[-1], it.limit_bytes, Budget())
    assert found is not None
    assert found.value == best
    assert split_key(found.runs) == split_key(equal[0].runs)
