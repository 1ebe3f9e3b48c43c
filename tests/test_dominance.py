"""Dropping dominated rows never loses the best plan; of equal rows one stays."""

from __future__ import annotations

import dataclasses
import functools
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Instance, all_rows, best_of_all, rows_of
from searching import options_of
from strategies import coarse_ticks, examples, instances, small_cluster, tiny_config

from cost_models.calibration import calibrate
from cost_models.price import price
from cost_models.workload import Training
from planner.read_model import read_config
from planner.search import dominance
from planner.search.bounds import objective_of
from planner.search.dominance import undominated


@examples(16)
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


@examples(18)
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


def made_worse(prices, name, row):
    """The prices with that quantity of one row a little greater."""

    def more(table):
        table = table.copy()
        table[row] += 1
        return table

    value = getattr(prices, name)
    changed = {k: more(v) for k, v in value.items()} if isinstance(value, dict) else more(value)
    return dataclasses.replace(prices, **{name: changed})


QUANTITIES = (
    "forward", "backward", "extra", "hop", "reduce", "gather", "update", "states", "saved", "fixed", "logits",
    "tied_states", "joules_pass", "joules_extra", "joules_step",
)  # fmt: skip


@pytest.mark.parametrize("name", QUANTITIES)
def test_every_quantity_counts(name):
    """Of two rows that differ in one quantity the lesser stays; worse in this and better in another, both stay."""
    model, cluster = read_config(tiny_config(), "tiny"), small_cluster(1)
    workload = Training(seq_len=64, global_batch=1)
    it = Instance(model, cluster, workload, calibrate(cluster), coarse_ticks(model, cluster, workload))
    rows = rows_of(it, list(all_rows(it))[:1] * 2)
    alike = price(model, cluster, workload, rows, it.fits, it.ticks)
    objective, both = objective_of(rows, cluster, options_of(it)), np.arange(2)
    other = "backward" if name != "backward" else "forward"

    assert undominated(made_worse(alike, name, 0), both, objective).tolist() == [1]
    assert undominated(made_worse(made_worse(alike, name, 0), other, 1), both, objective).tolist() == [0, 1]


@pytest.mark.parametrize("at_once", [0, 2**40])
@examples(80)
@given(st.integers(1, 1400), st.integers(1, 6), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_exactly_the_rows_that_none_dominates_stay(at_once, rows, quantities, values, seed):
    """Against every pair, of tables longer and shorter than what is held against all others at once, many ties.

    By tables of bits, and compared as they are.
    """
    costs = np.random.default_rng(seed).integers(0, values, (rows, quantities)).astype(float)
    no_worse = (costs[:, None] <= costs[None]).all(axis=2)
    earlier = np.arange(rows)[:, None] < np.arange(rows)[None]
    dominated = (no_worse & (~no_worse.T | earlier)).any(axis=0)
    prices, objective = one_row_often(rows)

    with mock.patch.object(dominance, "COMPARED_AT_ONCE", at_once):
        kept = undominated(prices, np.arange(rows), objective, costs)

    assert kept.tolist() == np.flatnonzero(~dominated).tolist()


@functools.cache
def one_row_priced():
    model, cluster = read_config(tiny_config(), "tiny"), small_cluster(1)
    workload = Training(seq_len=64, global_batch=1)
    it = Instance(model, cluster, workload, calibrate(cluster), coarse_ticks(model, cluster, workload))
    rows = rows_of(it, list(all_rows(it))[:1])
    return price(model, cluster, workload, rows, it.fits, it.ticks), objective_of(rows, cluster, options_of(it))


def one_row_often(count):
    """Prices and objective of one row, so many times."""
    prices, objective = one_row_priced()
    again = np.zeros(count, dtype=np.int64)
    return prices.take(again), objective.take(again)
