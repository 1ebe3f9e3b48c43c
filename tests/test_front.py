"""The front against enumeration: the same points, or a cover to within what was asked."""

from __future__ import annotations

import dataclasses
import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Instance
from searching import options_of, space_of
from strategies import examples, instances
from test_limits import QUANTITIES, met_by
from test_search_clocks import CURVES, at_any_clock, clocked, pipeline
from test_search_tiers import tiered

from planner.search.front import FrontSearch
from topologies.enlarged import with_more_memory
from topologies.ready import read_cluster

pytestmark = pytest.mark.usefixtures("steady")

TIME, ENERGY, DEVICES = 0, 2, 3


def swept(it: Instance, eps: float) -> FrontSearch | None:
    space = space_of(it)
    if space is None:
        return None
    search = FrontSearch(space, options_of(it), it.fits, it.ticks, eps=eps)
    assert search.sweep()
    return search


def undominated(met: np.ndarray) -> np.ndarray:
    """Vectors of which no other is as small in everything; one of equal ones, to nine digits."""
    kept: list[np.ndarray] = []
    for vector in met[np.lexsort(met.T[::-1])]:
        if not any((other <= vector * (1 + 1e-9)).all() for other in kept):
            kept.append(vector)
    return np.array(kept)


@examples(4)
@given(instances(most_layers=4, most_devices=4))
def test_the_front_is_that_of_all_plans(it):
    """With a tolerance of rounding only, every point that nothing dominates is found, and no other."""
    met = met_by(it)
    search = swept(it, 1e-12)
    if search is None or not len(met):
        assert search is None or not search.points
        return
    right = undominated(met[:, [TIME, ENERGY, DEVICES]])
    found = undominated(np.array(sorted(p.vector for p in search.points)))
    for vector in right:
        assert (found <= vector * (1 + 2e-9)).all(axis=1).any()
    for vector in found:
        assert np.isclose(right, vector, rtol=2e-9).all(axis=1).any()
        assert np.isclose(met[:, [TIME, ENERGY, DEVICES]], vector, rtol=1e-9).all(axis=1).any()


@examples(4)
@given(instances(most_layers=4, most_devices=6), st.sampled_from([0.001, 0.01, 0.1]), st.booleans())
def test_every_plan_is_covered(it, eps, with_limit):
    """A point within ``eps`` in time, money and energy on no more devices, for every plan; limits kept."""
    met = met_by(it)
    if with_limit and len(met):
        it = dataclasses.replace(it, limits=(("step-energy", float(np.median(met[:, QUANTITIES["step-energy"]]))),))
        met = met_by(it)
    covers(it, eps, met)


@examples(8)
@given(clocked(most_layers=3), st.sampled_from([0.01, 0.1]), st.booleans())
def test_plans_of_any_clocks_are_covered(it, eps, capped):
    """Of every stage of 1F1B, of all devices of virtual stages; without a cap only a front asks for lower clocks."""
    it = it if capped else dataclasses.replace(it, power_cap_w=None)
    covers(it, eps, met_by(it))


@pytest.mark.parametrize("cap", [None, 0.8])
def test_stages_of_different_clocks_are_points(cap):
    it = pipeline("time", cap, layers=4)
    covers(it, 0.003, met_by(it))
    points = swept(it, 0.003).points

    assert max(len(set(point.kept.found.clocks)) for point in points) > 1
    assert min(min(point.kept.found.clocks) for point in points) < 1


def test_virtual_stages_run_at_every_clock():
    """Also at those that a point covers to within the first, coarse tolerance and not to within the one asked for."""
    it = pipeline("time", None, layers=6)
    it = dataclasses.replace(it, pins=tuple((dict(it.pins) | {"virtual_stages": 2}).items()))
    covers(it, 0.001, met_by(it))

    assert len({point.kept.found.clocks[0] for point in swept(it, 0.001).points}) > 1


@examples(4)
@given(tiered(most_layers=2, most_devices=3), st.sampled_from([0.001, 0.05]))
def test_plans_that_offload_are_covered(it, eps):
    covers(it, eps, met_by(it))


@pytest.mark.slow
@examples(4)
@given(tiered(most_layers=2, most_devices=3), CURVES, st.booleans())
def test_plans_that_offload_at_any_clocks_are_covered(it, curve, capped):
    it = at_any_clock(it if capped else dataclasses.replace(it, power_cap_w=None), curve)
    covers(it, 0.01, met_by(it))


def test_tiers_give_points_where_nothing_fits_on_the_devices():
    """7.6 G parameters of 18 bytes on eight devices of 5 GB: all states lie in DRAM, and the table says so."""
    from planner.fronts.pareto import pareto

    pins = {"tp": 1, "cp": 1, "pp": 1, "dp": 8, "micro_batch": 1}
    cluster = with_more_memory(read_cluster("dgx-h100:1"), 1 / 16)
    front = pareto("qwen2.5-7b", cluster, tiers="dram", seq_len=512, global_batch=8, pins=pins, tolerance=0.2)

    assert front.proved and front.points
    assert all({it.tensors for it in point.strategy.offloads} >= {"optimizer"} for point in front.points)
    assert "all of optimizer to dram" in " ".join(front.summary().split())


@pytest.mark.slow
def test_waits_for_a_cap_are_those_of_a_plan_whose_layers_offload_differently():
    """A tier takes joules, and fewer layers use it than may: the front waits no longer than the plan does."""
    from planner.api import plan
    from planner.fronts.pareto import pareto

    cluster = read_cluster("dgx-h100:1")
    costing = {"joules_per_byte": 2e-10, "link_joules_per_byte": 0.0}
    tiers = tuple(dataclasses.replace(it, **costing) for it in cluster.present_tiers)
    cluster = dataclasses.replace(cluster, present_tiers=tiers)
    pins = {"tp": 1, "cp": 1, "pp": 2, "dp": 4, "micro_batch": 1, "zero": 0, "virtual_stages": 1}
    asked = {"pins": pins, "seq_len": 1024, "global_batch": 32, "tiers": "dram", "headroom": 0.85, "power_cap": 7835.0}
    quickest = plan("llama-3.2-1b", cluster, alternatives=0, **asked)
    points = pareto("llama-3.2-1b", cluster, tolerance=1e-6, **asked).points

    assert quickest.strategy.offloaded == [1, 1]
    assert min(point.step_s for point in points) == quickest.step_s


def covers(it: Instance, eps: float, met: np.ndarray) -> None:
    """Asserts that the front of the problem covers every plan of ``met`` and holds no other plans."""
    search = swept(it, eps)
    if search is None or not len(met):
        assert search is None or not search.points
        return
    points = np.array([p.vector for p in search.points])
    rent = met[0, 1] / (met[0, TIME] * met[0, DEVICES]), met[0, 1] / met[0, ENERGY]
    assert np.allclose(met[:, 1], rent[0] * met[:, TIME] * met[:, DEVICES]) or np.allclose(
        met[:, 1], rent[1] * met[:, ENERGY]
    )
    for time_s, _, joules, devices in met:
        near = (points[:, 0] <= (1 + eps) * time_s * (1 + 1e-9)) & (points[:, 1] <= (1 + eps) * joules * (1 + 1e-9))
        assert (near & (points[:, 2] <= devices)).any()
    for vector in points:
        assert np.isclose(met[:, [TIME, ENERGY, DEVICES]], vector, rtol=1e-9).all(axis=1).any()


@examples(5)
@given(instances(most_layers=5, most_devices=4), st.integers(1, 12))
def test_out_of_time_says_to_within_what(it, looks):
    """Stopped at any look at the clock, every plan is covered to within the tolerance that is claimed then."""
    it = dataclasses.replace(it, pins=())
    met, space = met_by(it), space_of(it)
    search = FrontSearch(space, options_of(it, float(looks)), it.fits, it.ticks, eps=1e-3)
    clock = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: float(next(clock)))
        complete = search.sweep()

    assert complete == (search.reached <= 1e-3 * (1 + 1e-9)) or not complete
    if np.isfinite(search.reached):
        points = np.array([p.vector for p in search.points]).reshape(-1, 3)
        for time_s, _, joules, devices in met:
            ratio = np.maximum(points[:, 0] / time_s, points[:, 1] / joules)[points[:, 2] <= devices]
            assert ratio.min() <= (1 + search.reached) * (1 + 1e-9)
