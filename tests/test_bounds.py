"""Bounds and memory tests never exceed what enumeration finds, at every stage of expansion."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from oracle import Instance, best_of_all
from searching import options_of, space_of
from strategies import coarse_ticks, examples, instances, small_cluster, tiny_config

from cost_models.calibration import calibrate
from cost_models.price import price
from cost_models.workload import Training
from planner.candidates import degree_table, relaxed_rows
from planner.read_model import read_config
from planner.search.bounds import objective_of, step_bound
from planner.search.interleaved import legal_virtual
from planner.search.relax import Relaxation, packed
from planner.search.screen import Screen


def screened(it, space, prices, power, *, buffers):
    """The objective that no plan of each row beats, and which rows may fit, as the search has them."""
    objective = objective_of(power, it.cluster, options_of(it))
    return Screen(space, it.limit_bytes, it.ticks).promising(prices, objective, np.inf, buffers=buffers)


@examples(30)
@given(instances())
def test_row_bounds_hold(it):
    answer, space = best_of_all(it), space_of(it)
    if space is None or answer.rows is None:
        return
    bounds, fits = screened(it, space, answer.prices, answer.rows, buffers=True)
    values = np.array(answer.by_row)

    assert (bounds <= values).all()
    assert fits[np.isfinite(values)].all()


@examples(25)
@given(instances(most_layers=6))
def test_schedule_bounds_hold(it):
    """What a row is bounded by under one schedule holds for its plans under that schedule."""
    for virtual in (1, 2, 3):
        asked = dataclasses.replace(it, pins=tuple({**dict(it.pins), "virtual_stages": virtual}.items()))
        answer, space = best_of_all(asked), space_of(asked)
        if space is None or answer.rows is None:
            continue
        objective = objective_of(answer.rows, it.cluster, options_of(it))
        found = Screen(space, it.limit_bytes, it.ticks).schedules(answer.prices, objective, np.inf)
        least = {row: bound for bound, row, _, _ in reversed(found)}

        assert {v for _, _, v, _ in found} <= {virtual}
        for row, value in enumerate(answer.by_row):
            assert value == np.inf or least[row] <= value


@examples(40)
@given(instances())
def test_degree_bounds_hold(it):
    """What a row of degrees is bounded by holds for every placement, expert mesh and ZeRO stage of it."""
    answer, space = best_of_all(it), space_of(it)
    if space is None or answer.rows is None:
        return
    degrees = degree_table(space)
    loose, origin = Relaxation(space, it.fits).variants(relaxed_rows(space, degrees), experts_open=True)
    prices = price(it.model, it.cluster, it.workload, loose, it.fits, it.ticks, relaxed=True)
    each, may = screened(it, space, prices, packed(loose, it.cluster), buffers=False)
    bounds, fits = np.full(len(degrees), np.inf), np.zeros(len(degrees), dtype=bool)
    np.minimum.at(bounds, origin[may], each[may])
    np.logical_or.at(fits, origin, may)

    names = ("tp", "cp", "pp", "dp", "micro_batch")
    keys = list(zip(*(getattr(degrees, name).tolist() for name in names), strict=True))
    bound, fit = dict(zip(keys, bounds, strict=True)), dict(zip(keys, fits, strict=True))
    for key, value in zip(
        zip(*(getattr(answer.rows, name).tolist() for name in names), strict=True), answer.by_row, strict=True
    ):
        assert bound[key] <= value
        assert fit[key] or value == np.inf


@examples(60)
@given(st.integers(2, 24), st.integers(2, 4), st.integers(1, 3), st.floats(0, 3e-3), st.sampled_from([6, 4096]))
def test_bounds_of_many_virtual_stages_hold_for_few(layers, pp, turns, latency_s, seq_len):
    """A bound for up to ``v`` virtual stages holds for each number from 2 to ``v``, also where hops dominate."""
    if not legal_virtual(layers, pp):
        return
    model, cluster = read_config(tiny_config(num_hidden_layers=layers), "deep"), small_cluster(1, pp)
    levels = (cluster.levels[0], dataclasses.replace(cluster.levels[1], latency_s=latency_s))
    cluster = dataclasses.replace(cluster, levels=levels)
    workload = Training(seq_len=seq_len, global_batch=pp * turns)
    it = Instance(model, cluster, workload, calibrate(cluster), coarse_ticks(model, cluster, workload))
    pins = (("pp", pp), ("micro_batch", 1))
    for virtual in legal_virtual(layers, pp):
        answer = best_of_all(dataclasses.replace(it, pins=(*pins, ("virtual_stages", virtual))))
        most = np.full(len(answer.rows), legal_virtual(layers, pp)[-1])
        bound = step_bound(answer.prices, model, most) * it.ticks.second
        assert (bound * (1 - 1e-12) <= np.array(answer.by_row)).all()


def test_a_pipeline_across_hosts_may_need_fewer_of_them_than_its_axes_alone():
    """pp 12 and tp 2 fill three hosts of eight, though each axis alone would go elsewhere."""
    cluster = small_cluster(8, 4)
    model = read_config(tiny_config(num_hidden_layers=12), "deep")
    space = space_of(
        Instance(
            model, cluster, Training(seq_len=64, global_batch=1), calibrate(cluster), None,
            pins=(("pp", 12), ("tp", 2), ("cp", 1), ("dp", 1)),
        )
    )  # fmt: skip
    rows = relaxed_rows(space, degree_table(space))

    from cost_models.power import hosts_used

    assert hosts_used(packed(rows, cluster), cluster).tolist() == [3]


def test_experts_that_do_not_divide_a_stage_keep_their_copies():
    """Three experts on a stage of four: whatever the relaxation spreads, copies and spread make four."""
    cluster = small_cluster(4)
    config = tiny_config(model_type="mixtral", num_local_experts=3, num_experts_per_tok=1)
    model, workload = read_config(config, "moe"), Training(seq_len=64, global_batch=4)
    space = space_of(Instance(model, cluster, workload, calibrate(cluster), None, pins=(("devices", 4),)))
    rows = relaxed_rows(space, degree_table(space))
    loose, _ = Relaxation(space, calibrate(cluster)).variants(rows, experts_open=True)

    for some in (rows, loose):
        assert (some.ep * some.etp * some.edp == some.stage_size).all()


def test_small_messages_may_be_quicker_spread_out():
    """Where the inner level starts up slowly, the outer one alone stays a variant; large messages stay inside."""
    cluster = small_cluster(4, 4, base="cpu-local")
    model, workload = read_config(tiny_config(), "tiny"), Training(seq_len=64, global_batch=4)
    pins = (("tp", 4), ("pp", 1), ("cp", 1), ("dp", 1))
    space = space_of(Instance(model, cluster, workload, calibrate(cluster), None, pins=pins))
    rows = relaxed_rows(space, degree_table(space))
    loose, _ = Relaxation(space, calibrate(cluster)).variants(rows, experts_open=True)
    factors = {tuple(f) for f in loose.factors["tp"].tolist()}

    assert {(4, 1), (1, 4)} <= factors
