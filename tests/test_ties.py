"""The first of a row's equally good splits, against every split of the row."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Instance, best_of_all
from searching import options_of, search_of
from strategies import examples
from test_certificate import opened
from test_order import tied_instances

import planner.search.engine as engine
from cost_models.chain import Chain
from cost_models.price import Prices
from planner.search.bounds import objective_of
from planner.search.budget import Budget
from planner.search.incumbent import Found, best_of_cut
from planner.search.order import split_key
from planner.search.ties import first_of_equals


def equals(chain: Chain, *limits: Any) -> list[Found]:
    """Of every cut of one row those of the least value, in the order of their splits."""
    cuts = [(0, *inner, chain.layers) for inner in itertools.combinations(range(1, chain.layers), chain.pp - 1)]
    every = [best_of_cut(chain, np.array(cut), *limits, beat=np.inf) for cut in cuts]
    every = [found for found in every if found is not None]
    best = min((found.value for found in every), default=np.inf)
    return sorted((found for found in every if found.value == best), key=lambda found: split_key(found.runs))


def equals_of(it: Instance, prices: Prices) -> list[Found]:
    """The same from prices."""
    objective = objective_of(prices.rows, it.cluster, options_of(it))
    stage_size, pinned = int(prices.rows.stage_size[0]), dict(it.pins).get("recompute")
    return equals(Chain(it.model, prices, 0), objective, stage_size, it.limit_bytes, pinned)


def last_of_equals(chain: Chain, _: Any, *limits: Any) -> Found | None:
    """The least fortunate finder: of a row's best plans always the last."""
    *limits, beat = limits
    found = equals(chain, *limits)
    return found[-1] if found and found[-1].value <= beat else None


@examples(12)
@given(tied_instances(most_layers=8, stages=True), st.integers(0, 10**6))
def test_the_first_of_all_equal_splits(it, pick):
    answer = best_of_all(it)
    many = np.flatnonzero((answer.rows.pp > 1) & np.isfinite(answer.by_row)) if answer.rows is not None else []
    if not len(many):
        return
    prices = answer.prices.take(many[[pick % len(many)]])
    if not (equal := equals_of(it, prices)):
        return
    row = opened(it, prices, equal[0].value * (1 + 1e-9))
    found = first_of_equals(row, equal[-1], it.limit_bytes, Budget())
    assert found is not None
    assert found.value == equal[0].value
    assert split_key(found.runs) == split_key(equal[0].runs)


@examples(22)
@given(tied_instances(most_layers=7, stages=True))
def test_a_plan_has_the_first_split_of_its_row(it):
    """Even where the last of them was found first."""
    search = search_of(it)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "best_of_cuts", last_of_equals)
        if search is None or search.run().best is None or search.best.virtual > 1:
            return
    assert split_key(search.best.found.runs) == split_key(equals_of(it, search.best.prices)[0].runs)
