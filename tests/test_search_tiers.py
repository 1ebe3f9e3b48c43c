"""Plans that offload: the search equals enumeration, so does the re-derivation, and tiers never make a plan worse."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Instance, best_of_all
from searching import close, rederiving_agrees, search_agrees, search_of, value_of
from strategies import examples, instances, with_memory
from test_search_clocks import CURVES, at_any_clock

from cost_models.calibration import calibrate
from cost_models.rows import Rows
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner import Plan, plan, stages
from planner.candidates import legal_space
from planner.checks.verify import verify
from planner.options import Options
from planner.read_model import read_model
from planner.search import engine
from planner.search.engine import Search
from planner.search.kept import Kept
from planner.search.offloads import with_offloads
from planner.search.untiered import begin_without_tiers
from topologies.ready import read_cluster
from topologies.tiers import Tier, with_tiers


@st.composite
def tiered(draw: st.DrawFn, **sizes: int) -> Instance:
    """A small problem with one or two memory tiers, slow or fast, ample or scarce, one now and then pooled."""
    it = draw(instances(**sizes))
    states = 18.0 * it.model.parameters
    ample = dataclasses.replace(it, cluster=with_memory(it.cluster, 1e15), headroom=0.0)
    search = search_of(ample)
    best = None if search is None else search.run().best
    need = states if best is None else int(best.found.evaluation.need.max()) - it.fits.context_bytes
    memory = it.fits.context_bytes + draw(st.sampled_from([0.5, 0.7, 0.9])) * need
    rate = draw(st.sampled_from([1e9, 5e10, 1e12]))
    room, near = 100.0 * (states + need), draw(st.sampled_from([0.0, rate]))
    tiers = [Tier("dram", "dram", room, rate, rate, rate, 1e-6, update_bytes_per_s=near)]
    if draw(st.integers(0, 2)) == 0:
        pools = draw(st.integers(1, 2))
        tiers = [Tier("pool", "cxl-pool", 2 * room, 2 * rate, rate, rate / 2, 1e-6, 0.0, rate, pools, 1e-11)]
    spent = {name: draw(st.sampled_from([0.0, 1e-9, 1e-7])) for name in ("joules_per_byte", "link_joules_per_byte")}
    tiers = [dataclasses.replace(tier, **spent) for tier in tiers]
    pins = {"cp": 1, **dict(it.pins)}
    cluster = dataclasses.replace(with_memory(it.cluster, memory), tiers=tuple(tiers))
    it = dataclasses.replace(it, cluster=cluster, headroom=0.0, pins=tuple(pins.items()))
    return scarce(it, draw(st.sampled_from([0.6, 0.9]))) if draw(st.booleans()) else it


def scarce(it: Instance, part: float) -> Instance:
    """The problem with that part of the room in each tier that its best plan takes there."""
    search = search_of(it)
    best = None if search is None else search.run().best
    if best is None:
        return it
    use, room = best.found.evaluation.tiers, best.prices.tier_room
    tiers = tuple(
        dataclasses.replace(t, capacity_bytes=t.capacity_bytes * (part * int(use[t.name].max()) + 1) / room[t.name][0])
        for t in it.cluster.tiers
    )
    return dataclasses.replace(it, cluster=dataclasses.replace(it.cluster, tiers=tiers))


@examples(8)
@given(tiered(most_layers=3, most_devices=3))
def test_search_equals_enumeration(it):
    search_agrees(it)


@pytest.mark.slow
@examples(8)
@given(tiered(most_layers=2, most_devices=2), CURVES)
def test_search_equals_enumeration_with_clocks(it, curve):
    pins = tuple({**dict(it.pins), "recompute": "none", "virtual_stages": 1}.items())
    search_agrees(at_any_clock(dataclasses.replace(it, objective="energy", pins=pins), curve))


@examples(8)
@given(tiered(most_layers=3, most_devices=3))
def test_begun_with_the_best_plan_that_offloads_nothing_it_ends_the_same(it):
    """That plan is the best of the cluster without tiers, where bounds and balanced cuts find it; it proves nothing."""
    search, bare = search_of(it), dataclasses.replace(it, cluster=dataclasses.replace(it.cluster, tiers=()))
    if search is None:
        return
    begin_without_tiers(search)
    assert search.value >= value_of(bare)[0] * (1 - 1e-9)
    result, everything = search.run(), best_of_all(it).value

    assert close(search.value, everything) and result.proved and close(result.bound, search.value)


def test_where_a_plan_fits_without_tiers_the_search_begins_with_one():
    cluster = with_tiers(read_cluster("dgx-h100:1"), ("dram",))
    model, work = read_model("llama-3.2-1b"), Training(seq_len=1024, global_batch=8)
    space, ticks = legal_space(model, cluster, work, {"tp": 1}), Ticks.of(model, cluster, work)
    search = Search(space, Options(), calibrate(cluster), ticks)
    begin_without_tiers(search)

    assert search.best is not None and not search.strategy(search.best).offloads
    assert 0 < search.budget.spent < 1
    again = search.of_cut(search.strategy(search.best), Options())
    rows = with_offloads(space, Rows.of(search.strategy(search.best)))
    same = Kept(search.prices_of(rows.take(np.array([0]))), 0, 1, 0.0, None)
    assert search.row_key(same) == search.row_key(search.best) == search.row_key(again), "ties are told as of any row"


@examples(6)
@given(tiered(most_layers=2, most_devices=2), st.sampled_from([0.999, 1.0 - 1e-9, 1.01]))
def test_rederiving_agrees(it, factor):
    rederiving_agrees(it, factor)


@pytest.mark.slow
def test_rows_proved_together_have_the_most_room_of_any():
    """A part of a host's DRAM depends on where stages lie: the least of several rows would rule out the best."""
    cluster = read_cluster("dgx-h100:2")
    (dram,) = (tier for tier in cluster.present_tiers if tier.name == "dram")
    cluster = dataclasses.replace(cluster, present_tiers=(dataclasses.replace(dram, capacity_bytes=8e9),))
    pins = {"tp": 2, "pp": 4, "dp": 1, "cp": 1}
    asked = {"seq_len": 2048, "global_batch": 64, "headroom": 0.94, "tiers": "dram", "alternatives": 0}
    found = plan("llama-3.2-1b", cluster, pins=pins, **asked)

    assert found.status == "optimal"
    saved = Plan.from_json(found.to_json())
    assert saved == found
    assert verify(saved, read_model("llama-3.2-1b"), cluster).verdict == "verified"


@pytest.mark.parametrize("name", ["dgx-h100:2", "dgx-a100:2"])
def test_the_space_of_a_saved_plan_is_the_space_that_was_searched(name):
    """Where ports are shared a tier has a rate for every count of devices: JSON knows lists alone."""
    cluster = with_tiers(read_cluster(name), ("dram", "cxl-pool:2"))
    pins = {"tp": 1, "cp": 1}
    space = legal_space(read_model("tiny-llama"), cluster, Training(seq_len=128, global_batch=8), pins).described()

    assert len(space["axes"]["offload"]["tiers"]) == 2
    assert json.loads(json.dumps(space)) == space


def test_a_plan_names_no_offload_that_it_does_not_need():
    """Where everything fits on the device and traffic would hide, equal plans differ in what lies in DRAM alone."""
    asked = {
        "seq_len": 128,
        "global_batch": 64,
        "alternatives": 0,
        "pins": {"tp": 1, "cp": 1, "pp": 1, "micro_batch": 1},
    }
    found = plan("tiny-llama", "dgx-h100:1", tiers="dram", **asked)

    assert found.status == "optimal"
    assert not found.strategy.offloads


def test_tiers_never_make_a_plan_worse_and_often_better():
    """Often enough for the tests above to tell a search that never offloads."""
    better = 0

    @examples(48)
    @given(tiered(most_layers=3, most_devices=3))
    def compare(it):
        nonlocal better
        without = dataclasses.replace(it, cluster=dataclasses.replace(it.cluster, tiers=()))
        value, least = value_of(it)[0], value_of(without)[0]
        better += value < least * (1 - 1e-6)
        assert value <= least or close(value, least)

    compare()
    assert better >= 1


def test_a_plan_is_known_before_all_ways_to_offload_are_priced(monkeypatch):
    """Rounds that begin with the most rows price far more until then."""
    seen, report = {}, engine.Search.report

    def heard(search, *said):
        if search.best is not None:
            seen.setdefault(engine.FIRST_ROUND, search.counts["rows"])
        report(search, *said)

    monkeypatch.setattr(engine.Search, "report", heard)
    monkeypatch.setattr(stages, "begin_without_tiers", lambda search: None)
    for first in (engine.FIRST_ROUND, engine.WIDEST_ROUND):
        monkeypatch.setattr(engine, "FIRST_ROUND", first)
        plan("llama-3.1-8b", "rtx-4090-host:4", tiers="dram", global_batch=64, alternatives=0)

    small, large = seen.values()
    assert 5 * small < large
