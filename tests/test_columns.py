"""Columns against every pair of recompute counts."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from oracle import all_rows, rows_of
from strategies import examples, instances

from cost_models.chain import Chain
from cost_models.estimate import evaluate
from cost_models.price import price
from planner.search.columns import stage_columns


def pairs_that_fit(it, chain, s, cut):
    """``(ticks, joules)`` that each fitting (full, selective) of a stage adds."""
    found, (i, j) = [], (int(cut[s]), int(cut[s + 1]))
    for full in range(j - i + 1):
        for selective in range(j - i - full + 1):
            a, b = i + full, i + full + selective
            here = [(k, x, y) for k, x, y in (("full", i, a), ("selective", a, b), ("none", b, j)) if y > x]
            runs = [[("full", int(x), int(y))] for x, y in zip(cut[:-1], cut[1:], strict=True)]
            runs[s] = here
            if evaluate(chain, runs).need[s] <= it.limit_bytes:
                extra = chain.prices.joules_extra
                joules = sum(float(chain.total(extra[k], x, y, ends=False)) for k, x, y in here)
                found.append((sum(int(chain.recompute(k, x, y)) for k, x, y in here), joules))
    return found


@examples(100)
@given(instances(), st.integers(0, 10**6))
def test_columns_by_brute_force(it, pick):
    """The quickest fitting pair of each segment; with joules all pairs that no quicker one equals in joules."""
    rows = list(all_rows(it))
    if not rows:
        return
    rows = rows_of(it, [rows[pick % len(rows)]])
    chain = Chain(it.model, price(it.model, it.cluster, it.workload, rows, it.fits, it.ticks), 0)
    inner = 1 + np.sort(np.random.default_rng(pick).choice(chain.layers - 1, chain.pp - 1, replace=False))
    cut = np.concatenate([[0], inner, [chain.layers]]).astype(np.int64)
    for s in range(chain.pp):
        wanted = pairs_that_fit(it, chain, s, cut)
        one, many = (
            stage_columns(chain, np.array([s]), cut[s : s + 1], cut[s + 1 : s + 2], it.limit_bytes, joules=joules)
            for joules in (False, True)
        )
        base = chain.backward(cut[s], cut[s + 1])
        assert (one.backward - base).tolist() == ([min(wanted)[0]] if wanted else [])
        front = {t for t, e in wanted if not any(o != (t, e) and o[0] <= t and o[1] <= e for o in wanted)}
        assert set((many.backward - base).tolist()) == front
