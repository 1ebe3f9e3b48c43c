"""Early plans fit, are evaluated rightly, and are as good as balanced cuts are expected to be."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given
from oracle import best_of_all
from searching import options_of
from strategies import examples, instances

from cost_models.chain import Chain
from cost_models.estimate import evaluate
from planner.search.bounds import objective_of
from planner.search.incumbent import judge, quick


@examples(30)
@given(instances(most_devices=4))
def test_quick_plans_are_plans(it):
    """Each fits, covers the layers, repeats its value, and is no better than the row's best."""
    it = dataclasses.replace(it, pins=(*(p for p in it.pins if p[0] != "virtual_stages"), ("virtual_stages", 1)))
    answer = best_of_all(it)
    if answer.rows is None:
        return
    for r in range(0, len(answer.rows), 7):
        prices = answer.prices.take(np.array([r]))
        objective, size = objective_of(prices.rows, it.cluster, options_of(it)), int(prices.rows.stage_size[0])
        chain, pin = Chain(it.model, prices, 0), dict(it.pins).get("recompute")
        found = quick(chain, objective, size, it.limit_bytes, pin)
        if found is None:
            continue
        flat = [(i, j) for stage in found.runs for _, i, j in stage]
        assert [i for i, _ in flat] == [0, *(j for _, j in flat[:-1])]
        assert flat[-1][1] == it.model.layers
        assert len(found.runs) == chain.pp
        assert evaluate(chain, found.runs).need.max() <= it.limit_bytes
        assert judge(chain, found.runs, objective, size, it.limit_bytes).value == found.value
        assert found.value >= answer.by_row[r] * (1 - 1e-12)
        assert quick(chain, objective, size, it.limit_bytes, pin, found.value).value == found.value
        assert quick(chain, objective, size, it.limit_bytes, pin, np.nextafter(found.value, 0)) is None


def test_what_does_not_fit_is_no_plan():
    from oracle import Instance
    from strategies import coarse_ticks, small_cluster, tiny_config, with_memory

    from cost_models.calibration import calibrate
    from cost_models.workload import Training
    from planner.read_model import read_config

    model, cluster = read_config(tiny_config(), "tiny"), with_memory(small_cluster(2), 10.0)
    workload = Training(seq_len=64, global_batch=2)
    it = Instance(model, cluster, workload, calibrate(cluster), coarse_ticks(model, cluster, workload))
    answer = best_of_all(it)
    prices = answer.prices.take(np.array([0]))
    objective = objective_of(prices.rows, cluster, options_of(it))

    assert answer.value == np.inf
    assert quick(Chain(model, prices, 0), objective, 1, it.limit_bytes, None) is None


def test_a_plan_above_a_limit_is_no_plan():
    """The judge passes no infinite value on, as if it were a plan that fits; the certificate's own look still does."""
    from oracle import Instance
    from strategies import coarse_ticks, small_cluster, tiny_config

    from cost_models.calibration import calibrate
    from cost_models.workload import Training
    from planner.read_model import read_config
    from planner.search.incumbent import weigh

    model, cluster = read_config(tiny_config(), "tiny"), small_cluster(2)
    workload = Training(seq_len=64, global_batch=2)
    it = Instance(model, cluster, workload, calibrate(cluster), coarse_ticks(model, cluster, workload))
    answer = best_of_all(it)
    at = int(np.argmin(answer.by_row))
    prices = answer.prices.take(np.array([at]))
    chain, size = Chain(model, prices, 0), int(prices.rows.stage_size[0])
    free = quick(chain, objective_of(prices.rows, cluster, options_of(it)), size, it.limit_bytes, None)
    for name in ("step-time", "step-energy"):
        limited = dataclasses.replace(it, limits=((name, 1e-9),))
        objective = objective_of(prices.rows, cluster, options_of(limited))

        assert weigh(chain, free.runs, objective, size, it.limit_bytes).value == np.inf
        assert judge(chain, free.runs, objective, size, it.limit_bytes) is None
        assert quick(chain, objective, size, it.limit_bytes, None) is None
