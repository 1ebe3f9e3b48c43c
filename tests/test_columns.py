"""Columns against every pair of recompute counts."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from oracle import all_rows, rows_of
from strategies import examples, instances

from cost_models.chain import Chain
from cost_models.estimate import evaluate
from cost_models.price import price
from planner.search.columns import stage_columns


def every_pair(chain, s, cut):
    """``(bytes on the stage, ticks, joules)`` of each (full, selective) of a stage; the last two are what it adds."""
    found, (i, j), extra = [], (int(cut[s]), int(cut[s + 1])), chain.prices.joules_extra
    runs = [[("full", int(x), int(y))] for x, y in itertools.pairwise(cut)]
    for full in range(j - i + 1):
        for selective in range(j - i - full + 1):
            a, b = i + full, i + full + selective
            runs[s] = [(k, x, y) for k, x, y in (("full", i, a), ("selective", a, b), ("none", b, j)) if y > x]
            joules = sum(float(chain.total(extra[k], x, y, ends=False)) for k, x, y in runs[s])
            ticks = sum(int(chain.recompute(k, x, y)) for k, x, y in runs[s])
            found.append((int(evaluate(chain, runs).need[s]), ticks, joules))
    return found


@examples(100)
@given(instances(), st.integers(0, 10**6))
def test_columns_by_brute_force(it, pick):
    """At limits that some pair just meets or misses: the quickest pair that fits; with joules, all useful ones."""
    rows = list(all_rows(it))
    if not rows:
        return
    rows = rows_of(it, [rows[pick % len(rows)]])
    chain = Chain(it.model, price(it.model, it.cluster, it.workload, rows, it.fits, it.ticks), 0)
    inner = 1 + np.sort(np.random.default_rng(pick).choice(chain.layers - 1, chain.pp - 1, replace=False))
    cut = np.concatenate([[0], inner, [chain.layers]]).astype(np.int64)
    for s in range(chain.pp):
        pairs = every_pair(chain, s, cut)
        for limit in {need - miss for need, _, _ in pairs for miss in (0, 1)}:
            fitting = [(ticks, joules) for need, ticks, joules in pairs if need <= limit]
            assert added_ticks(chain, s, cut, limit, joules=False) == sorted(min(fitting)[:1] if fitting else [])
            assert added_ticks(chain, s, cut, limit, joules=True) == sorted({t for t, _ in useful(fitting)})


def useful(pairs):
    """Those that no other equals or beats in both."""
    return [p for p in pairs if not any(o != p and o[0] <= p[0] and o[1] <= p[1] for o in pairs)]


def added_ticks(chain, s, cut, limit, *, joules):
    columns = stage_columns(chain, np.array([s]), cut[s : s + 1], cut[s + 1 : s + 2], limit, joules=joules)
    return sorted({int(b) for b in columns.backward - chain.backward(cut[s], cut[s + 1])})
