"""The linear forms of the CP-SAT formulation are what the cost models say, and its floors are floors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searching import options_of, space_of
from strategies import examples, instances

from cost_models.chain import Chain, joules
from cost_models.estimate import evaluate
from cost_models.pipeline import step_ticks
from planner.checks.rederive import Problem
from planner.errors import BadInput
from planner.search.pure_rows import MOST_ROWS, RowForms, even_cuts, question_of, shares


def question(it):
    if space_of(it) is None:
        return None
    return question_of(Problem(it.model, it.cluster, it.workload, options_of(it), it.fits, it.ticks))


def drawn_stages(rnd, order, pp):
    """Random runs of every stage, and their features (n, u, v, h, 1)."""
    kinds, layers = max(order) + 1, len(order)
    cut = [0, *sorted(rnd.sample(range(1, layers), pp - 1)), layers]
    runs, features = [], []
    for i, j in itertools.pairwise(cut):
        a = rnd.randint(i, j)
        b = rnd.randint(a, j)
        spans = (("full", i, a), ("selective", a, b), ("none", b, j))
        runs.append([(kind, x, y) for kind, x, y in spans if y > x])
        counts = [order[x:y].count(kind) for x, y in ((i, j), (i, a), (a, b)) for kind in range(kinds)]
        features.append([*counts, *(int(order[i] == kind) for kind in range(kinds)), 1])
    return runs, np.array(features, dtype=object)


@examples(50)
@given(instances(), st.randoms(use_true_random=False))
def test_forms_are_the_cost_models(it, rnd):
    """Random stages of random rows: ticks and bytes equal, tails within two ticks, objective above its floor."""
    asked = question(it)
    if asked is None:
        return
    for _ in range(4):
        row = rnd.randrange(len(asked.rows))
        forms = RowForms(asked, row)
        runs, x = drawn_stages(rnd, list(it.model.order), forms.pp)
        chain = Chain(it.model, asked.prices.take(np.array([row])), 0)
        found = evaluate(chain, runs)
        for s in range(forms.pp):
            assert forms.forward(s) @ x[s] == found.forward[s]
            assert forms.backward(s) @ x[s] == found.backward[s]
            assert forms.need(s) @ x[s] == found.need[s]
            assert 0 <= found.tail[s] - max(form @ x[s] for form in forms.tails(s)) + 1e-3 <= 3.1
        dynamic = float(joules(chain, runs).sum() * forms.stage_size)
        assert sum(float(forms.joules(s) @ x[s]) for s in range(forms.pp)) == pytest.approx(dynamic)
        value = asked.it.values(chain.prices.rows, np.array([float(found.step)]), np.array([dynamic]))[0]
        fits = int(found.need.max()) <= it.limit_bytes
        pinned = dict(it.pins).get("recompute")
        legal = pinned is None or all(kind == pinned for stage in runs for kind, *_ in stage)
        assert value >= asked.floor[row] or not (fits and legal)
        if np.isfinite(value):
            step = asked.per_tick[row] * found.step + asked.per_joule[row] * dynamic
            wait = asked.per_capped_joule[row] * dynamic if it.power_cap_w is not None else 0.0
            assert max(step, wait) == pytest.approx(value)


@examples(100)
@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 40), st.data())
def test_shares_bound_every_split(pp, m, hop, data):
    durations = st.lists(st.integers(1, 100), min_size=pp, max_size=pp)
    forward, backward = np.array([data.draw(durations)]), np.array([data.draw(durations)])
    step = step_ticks(pp, 1, m, forward, backward, np.array([hop]), np.zeros((1, pp), dtype=np.int64))[0]

    for share, hops in shares(pp, m):
        assert share * (forward.sum() + backward.sum()) + hops * hop <= step + 1e-9


def test_equal_stages_meet_their_share():
    """For equal stages 1F1B lasts (m + pp - 1) / pp times the work, and for m > pp the bound says so."""
    assert max(share for share, _ in shares(4, 8)) == pytest.approx((8 + 4 - 1) / 4)
    assert shares(1, 5)[-1][0] == pytest.approx(5)


@pytest.mark.parametrize("layers", range(4, 20))
@pytest.mark.parametrize("chunks", [4, 6, 8])
def test_even_cuts_hold_every_layer(layers, chunks):
    for cut in even_cuts(layers, chunks):
        assert sum(cut) == layers
        assert min(cut) >= 1
        assert len(cut) == chunks


@pytest.mark.parametrize(
    ("model", "cluster", "says"),
    [
        ("llama-3.2-1b", "dgx-h100:16", "128 devices (at most 64)"),
        ("llama-3.1-70b", "dgx-h100:4", "80 layers (at most 32)"),
        ("mixtral-8x7b", "dgx-h100:8", f"rows or more (at most {MOST_ROWS:,})"),
    ],
)
def test_beyond_its_reach_it_names_the_size(model, cluster, says):
    from planner.api import plan

    with pytest.raises(BadInput) as error:
        plan(model, cluster, solver="pure-cpsat")
    assert says in str(error.value)
