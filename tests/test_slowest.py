"""Bounds by the slowest inner stage against every cut: what they promise, and which columns they leave out."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Instance, all_rows, rows_of
from strategies import coarse_ticks, examples, small_cluster, tiny_config
from test_cut_sums import all_columns, every_plan
from test_pipeline import step

from cost_models.calibration import calibrate
from cost_models.chain import Chain
from cost_models.estimate import evaluate
from cost_models.price import price
from cost_models.workload import Training
from planner.read_model import read_config
from planner.search.certificate import runs_of
from planner.search.priced_out import Cuts
from planner.search.slowest import Weighing, paths_of, priced_by_slowest


@st.composite
def pipelines(draw):
    """A chain of four or five stages with more micro-batches than that, and hops up to twice a layer's pass."""
    layers, pp = draw(st.integers(5, 9)), draw(st.sampled_from([4, 5]))
    model, cluster = read_config(tiny_config(num_hidden_layers=layers), "deep"), small_cluster(1, pp)
    workload = Training(seq_len=64, global_batch=draw(st.integers(pp + 1, 4 * pp)))
    it = Instance(model, cluster, workload, calibrate(cluster), coarse_ticks(model, cluster, workload),
                  pins=(("pp", pp), ("dp", 1), ("micro_batch", 1), ("virtual_stages", 1)))  # fmt: skip
    rows = rows_of(it, [next(iter(all_rows(it)))])
    prices = price(model, cluster, workload, rows, it.fits, it.ticks)
    layer = int((prices.forward + prices.backward)[0, :-2].max())
    hop = int(draw(st.floats(0, 2)) * layer)
    return Chain(model, dataclasses.replace(prices, hop=np.full_like(prices.hop, hop)), 0)


@pytest.mark.slow
@examples(24)
@given(pipelines(), st.integers(0, 10**6), st.floats(0.1, 0.9))
def test_no_plan_below_the_incumbent_is_lost(chain, seed, share):
    """The objective of a plan is the larger of two weighings of its step and its columns' joules."""
    columns, random = all_columns(chain, 2**62), np.random.default_rng(seed)
    plans = list(every_plan(chain, columns))
    steps = np.array([evaluate(chain, runs_of(columns, picked)).step for picked in plans], dtype=float)
    joules = random.random(len(columns)) * np.median(steps) / chain.pp
    weighings = [Weighing(1.0, 0.0 * joules), Weighing(0.5, joules)]
    values = np.max([it.per_tick * steps + it.joules[np.array(plans)].sum(axis=1) for it in weighings], axis=0)
    incumbent = float(np.quantile(values, share))
    through = Cuts.of(chain, columns).least_through
    keep, bound = priced_by_slowest(chain, columns, weighings, through, incumbent)

    assert paths_of(chain, columns)
    assert bound <= max(values.min(), incumbent)
    for picked, value in zip(plans, values, strict=True):
        assert value >= incumbent or keep[picked].all()
    if values.min() < incumbent:
        assert bound <= values.min()


@examples(200)
@given(st.integers(4, 8), st.integers(1, 50), st.integers(0, 60), st.integers(0, 10**6), st.booleans())
def test_no_step_is_shorter_than_a_path_by_its_slowest_inner_stage(pp, more, hop, seed, alike):
    """Of random stages, and of stages alike but for one, whose hops are as long as they."""
    random, m = np.random.default_rng(seed), pp + more
    forward, backward, tail = random.integers(0, 50, (3, pp))
    if alike:
        forward, backward = np.full(pp, 20), np.full(pp, 30)
        forward[random.integers(pp)] += random.integers(10)
    row = SimpleNamespace(pp=pp, micro_batches=m, hop=hop), SimpleNamespace(stage=np.arange(pp))
    exact, time = step((pp, 1, m), forward, backward, hop, tail), forward + backward
    lengths = [path.passes @ time + path.slowest * time[1:-1].max() + path.hops + tail[0] for path in paths_of(*row)]

    assert max(lengths) <= exact


def test_the_path_of_stages_alike_is_nearly_the_step():
    """Stages alike and hops as long as they: short of it by what rounds past the inner ones alone leave out."""
    alike, m, hop = np.full(24, 25), 300, 50
    row = SimpleNamespace(pp=24, micro_batches=m, hop=hop), SimpleNamespace(stage=np.arange(24))
    exact = step((24, 1, m), alike, alike, hop, np.zeros(24, int))

    assert 0.92 * exact <= max(p.passes @ (2 * alike) + p.slowest * 50 + p.hops for p in paths_of(*row)) <= exact
