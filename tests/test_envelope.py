"""A row as good as the best of several in everything is worth no less than any of them, whatever the plan."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from oracle import best_of_all
from searching import options_of
from strategies import examples, instances
from test_limits import tight

from cost_models.chain import Chain
from planner.search.bounds import objective_of
from planner.search.envelope import best_objective, envelope
from planner.search.incumbent import judge, quick

NO_LIMIT = 2**62


@examples(14)
@given(instances(most_layers=6))
def test_no_plan_of_any_row_is_better_than_the_envelopes(it):
    envelopes_hold(it)


@pytest.mark.parametrize("order", [1, -1])
def test_nor_under_limits(order):
    """On watts of hosts, whose waits differ from placement to placement, and on a step's joules."""
    it = tight("host-power", pins=(("devices", 4), ("pp", 2)))
    least = best_of_all(dataclasses.replace(it, objective="energy")).value
    envelopes_hold(dataclasses.replace(it, limits=(*it.limits, ("step-energy", 2 * least))), order)


def envelopes_hold(it, order=1):
    answer = best_of_all(it)
    if answer.rows is None:
        return
    rows = answer.rows
    keys = np.stack([rows.pp, rows.micro_batches, rows.stage_size, rows.micro_batch], axis=1)
    for key in np.unique(keys, axis=0):
        mine = np.flatnonzero((keys == key).all(axis=1))[:12][::order]
        parts = [answer.prices.take(np.array([r])) for r in mine]
        each = objective_of(rows.take(mine), it.cluster, options_of(it))
        objectives = [objective_of(part.rows, it.cluster, options_of(it)) for part in parts]
        best, objective = Chain(it.model, envelope(parts), 0), best_objective(each)
        size = int(parts[0].rows.stage_size[0])
        for part, own in zip(parts, objectives, strict=True):
            chain = Chain(it.model, part, 0)
            found = quick(chain, own, size, it.limit_bytes, None)
            if found is None or not np.isfinite(found.value):
                continue
            bound = judge(best, found.runs, objective, size, NO_LIMIT)
            assert bound.value <= found.value * (1 + 1e-12)
            assert (bound.evaluation.need <= found.evaluation.need).all()
