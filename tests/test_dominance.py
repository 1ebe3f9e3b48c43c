"""Dropping dominated rows never loses the best plan; of equal rows one stays."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from oracle import best_of_all
from searching import options_of
from strategies import examples, instances

from planner.search.bounds import objective_of
from planner.search.dominance import undominated


@examples(80)
@given(instances())
def test_the_best_row_of_every_kind_stays(it):
    """In each group of pp, micro-batches and stage size the least value of all rows is that of the rows kept."""
    answer = best_of_all(it)
    if answer.rows is None:
        return
    objective = objective_of(answer.rows, it.cluster, options_of(it))
    kept = undominated(answer.prices, np.arange(len(answer.rows)), objective)
    values = np.array(answer.by_row)
    names = ("pp", "micro_batches", "stage_size", "micro_batch")
    groups = np.stack([getattr(answer.rows, name) for name in names], axis=1)

    for group in np.unique(groups, axis=0):
        mine = (groups == group).all(axis=1)
        assert values[mine].min() == values[kept][mine[kept]].min()


@examples(30)
@given(instances())
def test_of_equal_rows_one_stays(it):
    answer = best_of_all(it)
    if answer.rows is None:
        return
    twice = answer.prices.take(np.repeat(np.arange(len(answer.rows)), 2))
    objective = objective_of(twice.rows, it.cluster, options_of(it))
    kept = undominated(twice, np.arange(len(twice.rows)), objective)

    assert (kept % 2 == 0).all()
    assert len(undominated(twice, np.arange(0), objective)) == 0
