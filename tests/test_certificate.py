"""CP-SAT on one row against enumeration of that row."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Instance, best_of_all
from searching import options_of, search_of
from strategies import coarse_ticks, examples, instances, small_cluster, tiny_config
from test_search_clocks import pipeline

from cost_models.calibration import calibrate
from cost_models.chain import Chain
from cost_models.workload import Training
from planner.read_model import read_config
from planner.search.bounds import objective_of
from planner.search.budget import Budget
from planner.search.certificate import Certificate, OpenRow, ceiling, certify, open_row


def opened(it, prices, incumbent=np.inf):
    rows = prices.rows
    chain, objective = Chain(it.model, prices, 0), objective_of(rows, it.cluster, options_of(it))
    pin = dict(it.pins).get("recompute")
    return open_row(chain, objective, int(rows.stage_size[0]), 0.0, incumbent, it.limit_bytes, pin, [])


def certified(it: Instance, row: OpenRow, beat: float) -> Certificate:
    """What CP-SAT says about one row, without a limit."""
    result = Certificate(None, row.bound, False)
    certify(row, beat, it.limit_bytes, result, budget=Budget())
    return result


@examples(50)
@given(instances(most_devices=4), st.integers(0, 10**6))
def test_one_row_equals_enumeration(it, pick):
    """From no incumbent the row's best plan; from that plan the proof that there is none better."""
    it = dataclasses.replace(it, pins=(*(p for p in it.pins if p[0] != "virtual_stages"), ("virtual_stages", 1)))
    answer = best_of_all(it)
    if answer.rows is None:
        return
    at = pick % len(answer.rows)
    prices, value = answer.prices.take(np.array([at])), answer.by_row[at]
    if not np.isfinite(objective_of(prices.rows, it.cluster, options_of(it)).value(np.ones(1), np.ones(1))[0]):
        return
    row = opened(it, prices)
    if row is None:
        assert value == np.inf
        return
    found = certified(it, row, ceiling(row))
    assert found.proved
    assert (np.inf if found.best is None else found.best.value) == pytest.approx(value, rel=1e-9)

    again = opened(it, prices, value) if value < np.inf else None
    if again is not None:
        proof = certified(it, again, value)
        assert proof.proved
        assert proof.best is None or proof.best.value >= value * (1 - 1e-9)


@examples(15)
@given(instances(most_devices=4))
def test_without_balanced_cuts_the_solver_finds_a_first_plan(it):
    """No quick plan at all: CP-SAT alone must find the same optimum, however far above its bound."""
    import planner.search.engine as engine

    everything, search = best_of_all(it).value, search_of(it)
    if search is None:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "best_of_cuts", lambda *_: None)
        result = search.run()

    assert result.proved
    assert search.value == pytest.approx(everything, rel=1e-9)


def test_a_first_plan_may_be_far_above_its_bound(monkeypatch):
    """Six tokens on a slow fabric: nearly all of the step is one reduction, which the bound leaves out."""
    import planner.search.engine as engine

    config = tiny_config(hidden_size=2048, intermediate_size=8192, num_attention_heads=16, vocab_size=32000)
    model, workload = read_config(config, "wide"), Training(seq_len=6, global_batch=2)
    cluster = small_cluster(1, 4, base="p3dn")
    pins = (("pp", 2), ("dp_replicate", 2), ("tp", 1), ("cp", 1), ("virtual_stages", 1))
    it = Instance(
        model, cluster, workload, calibrate(cluster), coarse_ticks(model, cluster, workload), pins=pins,
    )  # fmt: skip
    monkeypatch.setattr(engine, "best_of_cuts", lambda *_: None)
    search = search_of(it)
    result = search.run()

    assert result.proved
    assert search.value == pytest.approx(best_of_all(it).value, rel=1e-9)
    assert search.value > 20 * result.bound_root


def test_a_bound_above_all_plans_does_not_hide_them():
    """That of rows asked about together is their own, and the row made of the best of them may do far better."""
    answer = best_of_all(it := pipeline("energy", 0.77, layers=4))
    r = int(np.argmin(answer.by_row))
    row = opened(it, answer.prices.take(np.array([r])))
    row.bound = beat = 2 * ceiling(row)

    assert certified(it, row, min(4 * beat, ceiling(row))).best is not None
