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
from planner.search.bounds import dynamic_joules, fits_somehow, objective_of, step_bound
from planner.search.interleaved import legal_virtual
from planner.search.recompute_bound import forced_interleaved, forced_recompute
from planner.search.relax import Relaxation, packed


def bounds_of(it, prices, rows_for_power=None, buffers=True):
    """The objective that no plan of each row beats, for 1F1B and every legal number of virtual stages."""
    rows, options = prices.rows, options_of(it)
    objective = objective_of(rows if rows_for_power is None else rows_for_power, it.cluster, options)
    legal = [legal_virtual(it.model.layers, int(pp)) for pp in rows.pp]
    most = np.array([max(v, default=1) for v in legal])
    most = np.where(rows.micro_batches % rows.pp == 0, most, 1)
    forced = forced_recompute(prices, it.model, it.limit_bytes, buffers=buffers)
    ticks = np.maximum(step_bound(prices, it.model, np.ones_like(most)), forced.one_f_one_b * (1 - 1e-9))
    several = (np.full_like(most, 2), np.maximum(most, 2))
    own = forced_interleaved(prices, it.model, it.limit_bytes, several, buffers=buffers)
    many = np.maximum(step_bound(prices, it.model, several[1]), np.maximum(forced.any_schedule, own) * (1 - 1e-9))
    ticks = np.where(most > 1, np.minimum(ticks, many), ticks)
    return objective.value(ticks * it.ticks.second, dynamic_joules(prices, it.model))


@examples(80)
@given(instances())
def test_row_bounds_hold(it):
    answer = best_of_all(it)
    if answer.rows is None:
        return
    values = np.array(answer.by_row)

    assert (bounds_of(it, answer.prices) * (1 - 1e-12) <= values).all()
    kind = dict(it.pins).get("recompute", "full")
    fits = fits_somehow(answer.prices, it.model, it.limit_bytes, kind, buffers=True)
    assert fits[np.isfinite(values)].all()


@examples(120)
@given(instances())
def test_degree_bounds_hold(it):
    """What a row of degrees is bounded by holds for every placement, expert mesh and ZeRO stage of it."""
    answer, space = best_of_all(it), space_of(it)
    if space is None or answer.rows is None:
        return
    degrees = degree_table(space)
    loose, origin = Relaxation(space, it.fits).variants(relaxed_rows(space, degrees), experts_open=True)
    prices = price(it.model, it.cluster, it.workload, loose, it.fits, it.ticks, relaxed=True)
    bounds, fits = np.full(len(degrees), np.inf), np.zeros(len(degrees), dtype=bool)
    np.minimum.at(bounds, origin, bounds_of(it, prices, packed(loose), buffers=False))
    kind = dict(it.pins).get("recompute", "full")
    np.logical_or.at(fits, origin, fits_somehow(prices, it.model, it.limit_bytes, kind, buffers=False))

    names = ("tp", "cp", "pp", "dp", "micro_batch")
    keys = list(zip(*(getattr(degrees, name).tolist() for name in names), strict=True))
    bound, fit = dict(zip(keys, bounds, strict=True)), dict(zip(keys, fits, strict=True))
    for key, value in zip(
        zip(*(getattr(answer.rows, name).tolist() for name in names), strict=True), answer.by_row, strict=True
    ):
        assert bound[key] * (1 - 1e-12) <= value
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

    assert hosts_used(packed(rows), cluster).tolist() == [3]


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
