"""Bounds by the slowest window of stages against every plan: what they promise, what they leave out, what they find."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle import best_of_all
from searching import close, options_of, search_of
from strategies import coarse_ticks, examples, instances, small_cluster
from test_activation_layers import planted
from test_cut_sums import all_columns
from test_pipeline import step
from test_priced_out import row_of
from test_search_clocks import clocked, pipeline
from test_slowest import pipelines

from cost_models.chain import Chain
from cost_models.estimate import evaluate
from planner import plan
from planner.read_model import read_model
from planner.search import windows
from planner.search.bounds import objective_of
from planner.search.budget import Budget
from planner.search.certificate import Certificate, look_near, open_row, runs_of
from planner.search.columns import Columns
from planner.search.incumbent import quick
from planner.search.kept import Kept
from planner.search.neighbours import near
from planner.search.priced_out import weighing
from planner.search.proof import _groups, _narrow, prove
from planner.search.slowest import Weighing
from planner.search.windows import _Row, by_windows, has_windows, narrowed_by_windows


def period(time, hop):
    """The slowest window's ticks a micro-batch, by its definition."""
    pairs = itertools.combinations_with_replacement(range(len(time)), 2)
    return max((time[a : b + 1].sum() + 2 * (b - a) * hop) / (b - a + 1) for a, b in pairs)


@examples(100)
@given(st.integers(2, 8), st.integers(1, 50), st.integers(1, 60), st.integers(0, 10**6), st.sampled_from([0, 10, 50]))
def test_no_step_is_shorter_than_its_slowest_window_says(pp, more, hop, seed, spread):
    """Of random stages, and of stages nearly alike, with hops shorter and longer than they."""
    random, m = np.random.default_rng(seed), pp + more
    forward, backward, tail = 50 - spread + random.integers(0, spread + 1, (3, pp))
    exact, time = step((pp, 1, m), forward, backward, hop, tail), forward + backward
    least = 2 * time.sum() + (m - pp - 1) * period(time, hop) + 2 * (2 * pp - 3) * hop + tail[0]

    assert least <= exact + 1e-6
    if spread == 0 and m >= 4 * pp:
        assert least >= 0.9 * exact


def plans_in(chain, columns):
    """Positions of the columns of every plan, cut by cut."""
    n, place = columns.j - columns.i, chain.places[columns.i]
    for inner in itertools.combinations(range(1, chain.layers), chain.pp - 1):
        cut = itertools.pairwise((0, *inner, chain.layers))
        fitting = [np.flatnonzero((columns.stage == s) & (n == j - i) & (place == chain.places[i]))
                   for s, (i, j) in enumerate(cut)]  # fmt: skip
        yield from itertools.product(*fitting)


def weighed(chain, seed):
    """Columns at two clocks, some plans, weighings of steps and joules, and of every plan the largest of these."""
    random = np.random.default_rng(seed)
    slow = all_columns(chain, 2**62)
    _, first = np.unique([slow.stage, slow.j - slow.i, chain.places[slow.i]], axis=1, return_index=True)
    slow = slow.take(np.sort(first))
    quicker = Columns(**{**vars(slow), "forward": slow.forward * 4 // 5, "backward": slow.backward * 4 // 5})
    columns = Columns.concat([slow, quicker])
    plans = np.array(list(plans_in(chain, columns)))
    plans = plans[random.permutation(len(plans))[:150]]
    steps = np.array([stepped(chain, columns, picked) for picked in plans], dtype=float)
    joules = (1 + np.arange(len(columns)) // len(slow)) * (columns.j - columns.i) + 0.2 * random.random(len(columns))
    joules *= np.median(steps) / joules[plans].sum(axis=1).mean()
    weighings = [Weighing(u, (1 - u) * joules) for u in (1.0, 0.5, 0.0)]
    each = [it.per_tick * steps + it.joules[plans].sum(axis=1) for it in weighings]
    return columns, plans, weighings, np.max(each, axis=0)


def stepped(chain, columns, picked):
    """The step of columns whatever their clocks are called."""
    forward, backward, tail = (getattr(columns, name)[picked] for name in ("forward", "backward", "tail"))
    return step((chain.pp, 1, chain.micro_batches), forward, backward, chain.hop, tail)


@examples(40)
@given(pipelines(), st.integers(0, 10**6), st.floats(0.02, 0.9))
def test_no_plan_below_the_incumbent_is_lost(chain, seed, share):
    """The objective of a plan is the larger of several weighings of its step and its columns' joules."""
    assume(has_windows(chain))
    columns, plans, weighings, values = weighed(chain, seed)
    incumbent = float(np.quantile(values, share))
    swept = by_windows(chain, columns, weighings, incumbent)

    assert swept.bound <= max(values.min(), incumbent)
    for picked, value in zip(plans, values, strict=True):
        assert value >= incumbent or swept.keep[picked].all()
    if values.min() < incumbent:
        assert swept.bound <= values.min()
    for picked in swept.plans:
        assert columns.stage[picked].tolist() == list(range(chain.pp))
        assert (columns.j - columns.i)[picked].sum() == chain.layers


def capped(cap=0.77):
    """One row of a pipeline under a cap, all its columns, and every plan's value by the schedule itself."""
    return with_every_plan(pipeline("time", cap, layers=4))


def with_every_plan(it):
    chain, objective, _, size = row_of(it)
    row = open_row(chain, objective, size, 0.0, 1e30, it.limit_bytes, None, [])
    plans = [list(picked) for picked in plans_in(chain, row.columns)]
    values = [row.judge(picked, it.limit_bytes).value for picked in plans]
    return it, row, plans, np.array(values)


@pytest.mark.parametrize("cap", [None, 0.75, 0.77, 0.8])
def test_of_a_pipeline_the_best_plan_stays(cap, monkeypatch):
    """Where its clocks are chosen, and in time alone, of which rows with few columns are left as they are."""
    monkeypatch.setattr(windows, "MANY", 0)
    _, row, plans, values = capped(cap) if cap else with_every_plan(pipeline("time", None, layers=8))
    before = len(row.columns)
    best = {tuple(runs_key(row, plans[k])) for k in np.flatnonzero(values == values.min())}
    narrowed_by_windows(row, float(values.min()) * 1.001, budget := Budget())

    assert best <= {tuple(runs_key(row, picked)) for picked in plans_in(row.chain, row.columns)}
    assert len(row.columns) < before
    assert budget.spent > 0
    assert 0.9 * values.min() < row.bound <= values.min()


def test_in_time_the_best_plan_stays_below_a_limit_just_above_it(monkeypatch):
    """Of many micro-batches, where the bound is all but the best plan, so that a walk's sum must be right to 0.05 %."""
    monkeypatch.setattr(windows, "MANY", 0)
    it = pipeline("time", None, layers=8)
    work = it.workload.model_copy(update={"global_batch": 480})
    it = dataclasses.replace(it, workload=work, ticks=coarse_ticks(it.model, it.cluster, work))
    _, row, plans, values = with_every_plan(it)
    best = {tuple(runs_key(row, plans[k])) for k in np.flatnonzero(values == values.min())}
    narrowed_by_windows(row, float(values.min()) * (1 + 1e-9), Budget())

    assert best <= {tuple(runs_key(row, picked)) for picked in plans_in(row.chain, row.columns)}
    assert 0.9995 * values.min() < row.bound <= values.min()


def test_a_row_with_a_stage_that_no_column_is_left_for_is_closed(monkeypatch):
    """Each weighing asks for itself, so that all may leave a stage columns and together they leave none."""
    _, row, _, values = capped()
    others, kept = row.columns.stage > 0, _Row._kept
    monkeypatch.setattr(_Row, "_kept", lambda self, *asked: kept(self, *asked) & others)
    narrowed_by_windows(row, incumbent := float(values.min()) * 1.01, Budget())

    assert row.bound >= incumbent


def test_periods_begin_with_what_the_fullest_stage_takes_at_least():
    """No range of shorter ones is looked at; every plan's own period lies in what is."""
    _, row, plans, values = capped()
    work = row.columns.forward + row.columns.backward
    weighings = [weighing(row.chain, row.dynamic, row.objective, 1.0)]
    most = float(values.max()) * 1.001
    first, last = _Row(row.chain, row.columns, weighings, most).periods()

    assert first == max(work[row.columns.stage == s].min() for s in range(row.chain.pp))
    assert all(first <= period(work[picked], row.chain.hop) <= last for picked in plans)


@pytest.mark.parametrize("cap", [0.75, 0.77, 0.8])
def test_of_a_capped_pipeline_a_plan_near_the_best_is_found(cap):
    it, row, _, values = capped(cap)
    incumbent, answer = float(np.quantile(values, 0.3)), Certificate(None, row.bound, False)
    look_near(row, narrowed_by_windows(row, incumbent, Budget()), incumbent, it.limit_bytes, answer)

    assert values.min() <= answer.best.value <= values.min() * 1.05


@pytest.mark.parametrize("cap", [0.75, 0.8])
def test_no_plan_a_clock_or_a_layer_away_is_better_than_where_moves_end(cap):
    """From many plans; away is a clock faster here and slower there, or one of the two, or a layer moved."""
    _, row, plans, values = capped(cap)
    clocks, layers = row.columns.clock[np.array(plans)], (row.columns.j - row.columns.i)[np.array(plans)]
    places = np.argmax(clocks[..., None] == np.array(row.chain.clocks), axis=2)
    for start in range(0, len(plans), 7):
        found = near(row, plans[start], values[start])
        end = start if found.picked is None else plans.index(found.picked)
        moved, shifted = np.abs(places - places[end]).sum(axis=1), (places - places[end]).sum(axis=1)
        clock_away = (layers == layers[end]).all(axis=1) & ((moved == 1) | ((moved == 2) & (shifted == 0)))
        layer_away = (moved == 0) & (np.abs(layers - layers[end]).sum(axis=1) == 2)

        assert clock_away.sum() >= 3
        assert layer_away.sum() >= 1
        assert (values[clock_away | layer_away] >= values[end]).all()


def test_layers_that_differ_are_no_long_question_for_the_solver():
    """A tower of small layers before blocks of two sorts: stages have thousands of columns, of which windows leave few.

    Without windows CP-SAT is not done with one row after 15 units of work.
    """
    big, small = read_model("llama-3.1-70b"), read_model("llama-3.2-1b").kinds[0]
    block = big.kinds[0]
    wider = tuple(dataclasses.replace(op, saved=1.4 * op.saved) for op in block.operators)
    kinds = (small, block, dataclasses.replace(block, kind="wider", operators=wider))
    order = (0,) * 40 + tuple(2 if i % 5 == 3 else 1 for i in range(80))
    model = dataclasses.replace(big, name="tower", kinds=kinds, order=order, config=None)
    found = plan(model, "dgx-h100:8", global_batch=1024, seq_len=2048, deterministic_limit=10.0, alternatives=0)

    assert found.status == "optimal"
    assert len(set(found.strategy.layers_per_stage)) > 2


def runs_key(row, picked):
    """Layers, recompute and clock of every stage."""
    at = row.columns
    return ((int(a[k]) if a is not at.clock else float(a[k])) for k in picked for a in (at.i, at.j, at.full, at.clock))


def test_what_evaluate_says_is_what_the_tests_take_for_a_step():
    _, row, plans, _ = capped()
    for picked in plans[:5]:
        clocks = tuple(row.columns.clock[picked].tolist())
        exact = evaluate(row.chain, runs_of(row.columns, picked), clocks).step
        assert exact == stepped(row.chain, row.columns, picked)


@pytest.mark.parametrize("cap", [0.75, 0.8])
def test_paths_that_moves_of_clocks_teach_bound_every_plan(cap):
    _, row, plans, values = capped(cap)
    steps, every = [stepped(row.chain, row.columns, picked) for picked in plans], np.array(plans)
    taught = [path for k in range(0, len(plans), 40) for path in near(row, plans[k], values[k]).paths]

    assert taught
    for path in taught:
        assert (row.columns.along(path)[every].sum(axis=1) + path.hops * row.chain.hop <= steps).all()


@examples(20)
@given(clocked(), st.booleans())
def test_the_proof_needs_no_good_plan_to_begin_with(it, bounded):
    proves_from_the_worst(it, bounded)


@examples(30)
@given(instances(most_layers=8, most_devices=4), st.sampled_from(["time", "energy"]), st.booleans())
def test_nor_does_it_where_stages_have_many_columns(it, objective, bounded):
    """In time and in energy, with windows looked at whatever the number of columns is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "MANY", 0)
        proves_from_the_worst(dataclasses.replace(it, objective=objective), bounded)


def proves_from_the_worst(it, bounded):
    """Given some rows, the best or no bound of each, and the worst plan that a balanced cut has, it ends with the best.

    Of several rows in one, plans may be far below those bounds.
    """
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
    for r, kept in zip(some, search.kept, strict=True):
        kept.bound = answer.by_row[r] * (1 - 1e-9) if bounded and np.isfinite(answer.by_row[r]) else 0.0
    bound, settled = prove(search, np.inf)

    assert settled and close(search.value, min(answer.by_row[r] for r in some)) and bound == search.value


def balanced(it, prices):
    """One row with the best of its balanced cuts at full clock, and no bound."""
    objective = objective_of(prices.rows, it.cluster, options_of(it))
    size, pin = int(prices.rows.stage_size[0]), dict(it.pins).get("recompute")
    found = quick(Chain(it.model, prices.only(1.0), 0), objective, size, it.limit_bytes, pin)
    return Kept(prices, 0, 1, 0.0, found)


@pytest.mark.parametrize("objective", ["time", "energy"])
@pytest.mark.parametrize("seed", range(2))
def test_rows_of_one_kind_are_bounded_together_below_the_best_plan_of_each(objective, seed):
    """Whichever of them comes first, and whichever plan is known."""
    it = dataclasses.replace(planted(seed), objective=objective)
    it = dataclasses.replace(it, cluster=small_cluster(4, 1), pins=(("virtual_stages", 1),))
    answer, search = best_of_all(it), search_of(it)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(np.isfinite(answer.by_row)))
    search.kept = [balanced(it, answer.prices.take(np.array([r]))) for r in order]
    search.best = max((one for one in search.kept if one.found is not None), key=lambda one: one.found.value)
    several = max(len(group) for group in _groups(search))
    _narrow(search, defaultdict(list), np.inf)

    best, bound = np.array(answer.by_row)[order], np.array([one.bound for one in search.kept])
    assert several > 1
    assert ((bound <= best * (1 + 1e-9)) | (best >= search.value * (1 - 1e-9))).all()
