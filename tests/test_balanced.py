"""Many rows at once are each row by itself: their columns, their balanced cuts; least values are below the plans."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from oracle import Instance, all_rows, rows_of
from searching import options_of
from strategies import coarse_ticks, examples, instances, small_cluster, tiny_config

from cost_models.calibration import calibrate
from cost_models.chain import Chain
from cost_models.chains import Chains
from cost_models.clocks import FULL
from cost_models.price import price
from cost_models.workload import Training
from planner.read_model import read_config
from planner.search.balanced import Balanced, balanced_cuts
from planner.search.bounds import objective_of
from planner.search.columns import Columns, Segments, column_joules, quickest_columns, stage_columns
from planner.search.incumbent import best_of_cut, stage_need_bytes

MOST_ROWS = 40


def priced(it):
    """Prices of some rows of a space, of all kinds; ``None`` where there is none."""
    found = list(all_rows(it))
    some = found[:: max(1, len(found) // MOST_ROWS)]
    return price(it.model, it.cluster, it.workload, rows_of(it, some), it.fits, it.ticks) if some else None


@examples(80)
@given(instances(most_layers=7, most_devices=4))
def test_columns_of_many_rows_are_those_of_each(it):
    prices, pin = priced(it), dict(it.pins).get("recompute")
    if prices is None:
        return
    every = range(it.model.layers + 1)
    table = [
        (r, s, i, j)
        for r, pp in enumerate(prices.rows.pp.tolist())
        for s in range(pp)
        for i, j in itertools.combinations(every, 2)
    ]
    row, stage, i, j = np.array(table, dtype=np.int64).T
    chains = Chains(it.model, prices, row)
    many, fits = quickest_columns(chains, FULL, Segments.alike(stage, i, j), it.limit_bytes, pin)
    spent = column_joules(chains, many)
    for r in range(len(prices.rows)):
        chain, mine = Chain(it.model, prices, r), np.flatnonzero(row == r)
        one = stage_columns(chain, stage[mine], i[mine], j[mine], it.limit_bytes, pin)
        here = mine[fits[mine]]
        for name in Columns.__dataclass_fields__:
            assert (getattr(one, name) == getattr(many, name)[here]).all()
        assert (column_joules(chain, one) == spent[here]).all()


def by_number(chain):
    """Numbers of layers that differ by one at most, the longer stages in the middle."""
    base, spare = divmod(chain.layers, chain.pp)
    first = (chain.pp - spare) // 2
    return [base + (first <= s < first + spare) for s in range(chain.pp)]


def by_work(chain):
    """Boundaries nearest to equal shares of all work, moved as little as leaves every stage a layer."""
    work = [0, *(int(chain.forward(0, k) + chain.backward(0, k)) for k in range(1, chain.layers + 1))]
    cut = [0]
    for s in range(1, chain.pp):
        share = work[-1] * s / chain.pp
        after = next(k for k, done in enumerate(work) if done >= share)
        before = max(after - 1, 0)
        cut.append(before if abs(work[before] - share) < abs(work[after] - share) else after)
    cut.append(chain.layers)
    for s in range(1, chain.pp + 1):
        cut[s] = max(cut[s], cut[s - 1] + 1)
    return [min(b, chain.layers - chain.pp + s) for s, b in enumerate(cut)]


def by_memory(chain, limit):
    """From the last stage on as many layers as fit recomputed, but no more than an equal share of those that are left.

    ``None`` where layers are left over.
    """
    cut, end = [chain.layers], chain.layers
    for s in range(chain.pp - 1, -1, -1):
        begin = end
        while begin > s and stage_need_bytes(chain, s, np.array(begin - 1), np.array(end), "full") <= limit:
            begin -= 1
        if begin == end:
            return None
        end = begin if s == 0 else max(begin, end - max(1, -(-end // (s + 1))))
        cut.append(end)
    return cut[::-1] if end == 0 else None


@examples(120)
@given(instances(most_layers=8, most_devices=6))
def test_balanced_cuts_one_by_one(it):
    prices = priced(it)
    if prices is None:
        return
    found, some = balanced_cuts(Chains(it.model, prices, np.arange(len(prices.rows))), it.limit_bytes)
    for r, pp in enumerate(prices.rows.pp.tolist()):
        chain = Chain(it.model, prices, r)
        wanted = [by_work(chain), np.cumsum([0, *by_number(chain)]).tolist(), by_memory(chain, it.limit_bytes)]
        distinct = {tuple(cut): None for cut in wanted if cut is not None}
        assert [tuple(cut[: pp + 1].tolist()) for cut in found[r][some[r]]] == list(distinct)
        assert (found[r][:, pp:] == it.model.layers).all()


@pytest.mark.parametrize("limits", [(), (("host-power", 900.0),)])
@examples(80)
@given(instances(most_layers=7, most_devices=4))
def test_least_values_are_the_longest_paths_of_the_plans(limits, it):
    it = dataclasses.replace(it, limits=limits)
    prices, pin = priced(it), dict(it.pins).get("recompute")
    if prices is None:
        return
    objective = objective_of(prices.rows, it.cluster, options_of(it))
    balanced = Balanced.of(it.model, prices, objective, it.limit_bytes, pin)
    for r, (pp, size) in enumerate(zip(prices.rows.pp.tolist(), prices.rows.stage_size.tolist(), strict=True)):
        chain, own = Chain(it.model, prices.take(np.array([r])), 0), objective.take(np.array([r]))
        _, some = balanced_cuts(Chains(it.model, chain.prices, np.arange(1)), it.limit_bytes)
        for k in np.flatnonzero(some[0]).tolist():
            cut = balanced.boundaries[r, k, : pp + 1]
            found = best_of_cut(chain, cut, own, size, it.limit_bytes, pin, np.inf)
            assert balanced.least[r, k] <= (np.inf if found is None else found.value)
            if found is not None:
                e, tick_s = found.evaluation, chain.prices.ticks.second
                paths = (path.ticks(e.forward, e.backward, chain.hop, e.tail) for path in chain.schedule.seed_paths())
                known = own.value(np.array([max(paths) * tick_s]), np.array([found.dynamic_j]))[0]
                assert balanced.least[r, k] == pytest.approx(known, rel=1e-10)
            else:
                assert balanced.least[r, k] == np.inf or own.counts_joules


def test_work_that_a_float_rounds_up_is_cut_too():
    """Ticks of more than 53 bits: the last share, as a float, may be above all the work."""
    model = read_config(tiny_config(num_hidden_layers=4), "tiny")
    cluster, work = small_cluster(3), Training(seq_len=64, global_batch=3)
    it = Instance(model, cluster, work, calibrate(cluster), coarse_ticks(model, cluster, work))
    prices = priced(dataclasses.replace(it, pins=(("pp", 3),)))
    prices = dataclasses.replace(prices, forward=prices.forward * 0 + 2**53 + 3)
    found, some = balanced_cuts(Chains(model, prices, np.arange(len(prices.rows))), it.limit_bytes)

    assert some[:, 0].all()
    assert (np.diff(found[:, 0, :4], axis=1) > 0).all()
