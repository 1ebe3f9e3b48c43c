"""Bounds that weigh time against joules never exceed what enumeration with every clock finds."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given
from oracle import best_of_all
from searching import options_of
from strategies import examples
from test_search_clocks import clocked, pipeline

from planner.search.bounds import dynamic_joules, objective_of, step_bound
from planner.search.trade_off import trade_off_bound


def least_by_row(it):
    """Prices and the least objective of every 1F1B row."""
    answer = best_of_all(it)
    return answer.prices, None if answer.rows is None else np.array(answer.by_row)


@examples(12)
@given(clocked(most_layers=3))
def test_the_bound_holds(it):
    it = dataclasses.replace(it, pins=tuple((dict(it.pins) | {"virtual_stages": 1}).items()))
    prices, least = least_by_row(it)
    if prices is None:
        return
    bound = trade_off_bound(prices, it.model, objective_of(prices.rows, it.cluster, options_of(it)))

    assert (bound * (1 - 1e-9) <= least).all()


def test_it_is_sharper_than_either_by_itself():
    """Without it a row would be promised the time of the full clock with the joules of the lowest."""
    for it in (pipeline("energy", None), pipeline("time", 0.77)):
        prices, least = least_by_row(it)
        objective = objective_of(prices.rows, it.cluster, options_of(it))
        weighed = trade_off_bound(prices, it.model, objective)
        ticks = step_bound(prices, it.model, np.ones_like(prices.rows.pp))
        apart = objective.value(ticks * it.ticks.second, dynamic_joules(prices, it.model))
        fits = np.isfinite(least)

        assert (weighed <= least)[fits].all()
        assert (weighed > apart)[fits].all()
