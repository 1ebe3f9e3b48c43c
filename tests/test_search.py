"""The whole search against enumeration, random strategies and the neighbours of its plans."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from neighbours import neighbours, random_values
from oracle import Instance, best_of_all
from oracle_quantities import objective_values
from searching import close, run_by_looks, search_agrees, search_of, value_of
from strategies import coarse_ticks, examples, instances, models, small_cluster, tiny_config, with_memory

from cost_models.calibration import calibrate
from cost_models.estimate import estimate
from cost_models.rows import Rows
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner.checks.check import check_strategy
from planner.read_model import read_config, read_model
from topologies.ready import read_cluster

RANDOM_STRATEGIES = int(os.environ.get("MESHWRIGHT_RANDOM_STRATEGIES", "400"))


@examples(70)
@given(instances())
def test_search_equals_enumeration(it):
    """The best plan of all plans, or none exactly where there is none; and the search says that it is proved."""
    search_agrees(it)


@examples(15)
@given(instances(most_layers=8, most_devices=4), st.sampled_from(["time", "energy"]))
def test_deeper_models(it, objective):
    it = dataclasses.replace(it, objective=objective)

    assert close(value_of(it)[0], best_of_all(it).value)


@examples(50)
@given(instances(most_layers=6, most_devices=4), st.integers(1, 40), st.sampled_from([(), (("virtual_stages", 2),)]))
def test_out_of_time_it_claims_no_more_than_it_proved(it, looks, pins):
    """Stopped at any look at the clock, the bound holds, and only the optimum is called proved."""
    it = dataclasses.replace(it, pins=pins)
    everything, search = best_of_all(it).value, search_of(it, float(looks))
    if search is None:
        return
    result = run_by_looks(search)

    assert result.best is None or result.bound <= everything * (1 + 1e-9)
    assert search.value >= everything * (1 - 1e-9)
    assert not result.proved or close(search.value, everything)


@examples(15)
@given(models(most_layers=4), st.sampled_from([1, 2, 4]), st.floats(0.0, 1.0))
def test_memory_from_ample_to_none(model, devices, part):
    """Between what the leanest plan needs and what the fastest takes, the best plan is found; below, none is."""
    cluster, workload = small_cluster(devices), Training(seq_len=1024, global_batch=4)
    fits = dataclasses.replace(calibrate(cluster), context_bytes=0.0, communicator_bytes=0.0)
    it = Instance(model, cluster, workload, fits, coarse_ticks(model, cluster, workload), headroom=0.0)
    low, high = 8.0 * model.parameters / devices, 24.0 * model.parameters + 4e6 * model.hidden
    it = dataclasses.replace(it, cluster=with_memory(cluster, low * (high / low) ** part))

    assert close(value_of(it)[0], best_of_all(it).value)


REAL = [
    ("llama-3.1-8b", "dgx-h100:1", "time"),
    ("llama-3.2-1b", "dgx-a100:1", "energy"),
    ("gpt-oss-20b", "dgx-h100:1", "time"),
]


@pytest.fixture(scope="module", params=REAL, ids=lambda case: "-".join(case))
def planned(request):
    """A real model, its instance, its finished search and result."""
    name, machine, objective = request.param
    model, cluster, workload = read_model(name), read_cluster(machine), Training(seq_len=4096, global_batch=128)
    it = Instance(model, cluster, workload, calibrate(cluster), Ticks.of(model, cluster, workload), objective=objective)
    search = search_of(it)
    return it, search, search.run()


def test_no_random_strategy_is_below_the_bound(planned):
    it, _, result = planned
    values = random_values(it, RANDOM_STRATEGIES, np.random.default_rng(0))

    assert len(values) == RANDOM_STRATEGIES
    assert min(values) >= result.bound * (1 - 1e-9)


def test_no_neighbour_is_better(planned):
    """A layer moved, recompute changed, ZeRO, placement or two degrees swapped: nothing legal gains."""
    it, search, result = planned
    tried = 0
    for other in neighbours(it, search.strategy(result.best)):
        if check_strategy(it.model, it.cluster, it.workload, other, headroom=it.headroom):
            continue
        found = estimate(it.model, it.cluster, it.workload, other)
        dynamic = _dynamic_joules(it, other, found)
        value = objective_values(it, Rows.of(other), np.array([float(found.step_ticks)]), np.array([dynamic]))[0]
        assert value >= result.bound * (1 - 1e-9)
        tried += 1
    assert tried >= 15


def _dynamic_joules(it, strategy, found) -> float:
    """Joules above idle, from the estimate's total."""
    rows = Rows.of(strategy)
    idle_j = objective_values(
        dataclasses.replace(it, objective="energy"), rows, np.array([float(found.step_ticks)]), np.zeros(1)
    )[0]
    return float(found.joules - idle_j) / it.cluster.facility.figures.pue.value


def test_latency_bound_pipelines_may_interleave():
    """Many virtual stages cost many hops; the bound for them must not be taken for fewer."""
    model = read_config(tiny_config(num_hidden_layers=8, hidden_size=256), "deep")
    cluster, workload = small_cluster(1, 2, base="p3dn"), Training(seq_len=6, global_batch=2)
    for latency_s in (1e-6, 1e-5, 1e-4, 1e-3):
        outer = dataclasses.replace(cluster.levels[1], latency_s=latency_s)
        machine = dataclasses.replace(cluster, levels=(cluster.levels[0], outer))
        it = Instance(
            model, machine, workload, calibrate(machine), coarse_ticks(model, machine, workload),
            pins=(("pp", 2), ("micro_batch", 1)),
        )  # fmt: skip
        assert close(value_of(it)[0], best_of_all(it).value)


@pytest.mark.parametrize("objective", ["time", "energy", "money"])
def test_the_root_bound_counts_no_host_too_many(objective):
    """pp 12 and tp 2 fill three hosts of eight; each axis alone would start four."""
    model = read_config(tiny_config(num_hidden_layers=12, hidden_size=512), "deep")
    cluster, workload = small_cluster(8, 4), Training(seq_len=1024, global_batch=1)
    it = Instance(
        model, cluster, workload, calibrate(cluster), coarse_ticks(model, cluster, workload), objective=objective,
        pins=(("pp", 12), ("tp", 2), ("cp", 1), ("dp", 1)),
    )  # fmt: skip
    value, result = value_of(it)

    assert result.best.prices.rows.pp.tolist() == [12]
    assert result.bound_root <= value
