"""The search on hosts that differ against enumeration of every order of hosts."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict

import numpy as np
import pytest
from host_oracle import best_placed, irregular_hosts, with_hosts
from hypothesis import given
from hypothesis import strategies as st
from oracle import Instance, all_rows, rows_of
from searching import options_of, space_of
from strategies import coarse_ticks, examples, models, small_cluster, tiny_config, with_memory, workloads

from cost_models.calibration import calibrate
from cost_models.clocks import STEPS
from cost_models.estimate import estimate
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner.checks.check import check_strategy
from planner.read_model import read_config
from planner.search.bounds import objective_of
from planner.search.placed import PlacedSearch
from planner.search.start import search_of
from topologies.irregular import Irregular

PINS = (
    (), (), (("pp", 2),), (("pp", 3),), (("pp", 2), ("dp", 2)), (("pp", 2), ("tp", 2)), (("devices", 3),), (("dp", 2),),
    (("pp", 2), ("zero", 3)), (("pp", 2), ("zero", 2)),
)  # fmt: skip


@st.composite
def placed_instances(draw: st.DrawFn, *, most_layers: int = 4, most_hosts: int = 4) -> Instance:
    """A tiny model on two to four hosts that differ; memory from ample to none, pins that need several hosts."""
    model, devices = draw(models(most_layers=most_layers)), draw(st.sampled_from([1, 1, 2]))
    base = small_cluster(devices, 2, base=draw(st.sampled_from(["dgx-h100", "dgx-a100"])))
    slow = draw(st.sampled_from([1e6, 1e7, 1e8, 1e9]))
    cluster = with_hosts(base, draw(irregular_hosts(most_hosts=most_hosts, devices=devices)), slow)
    fits = dataclasses.replace(calibrate(cluster), context_bytes=0.0, communicator_bytes=1e4)
    workload = draw(workloads())
    memory = draw(st.one_of(st.none(), st.floats(0.1, 1.2)))
    if memory is not None:
        cluster = with_memory(cluster, memory * (18.0 * model.parameters + 40.0 * workload.seq_len * model.hidden))
    pins, cap = draw(st.sampled_from(PINS)), draw(st.one_of(st.none(), st.none(), st.floats(0.4, 1.1)))
    power = cluster.devices * cluster.accelerator.figures.board_power.value
    power += cluster.hosts * cluster.host.figures.power.value
    recompute = draw(st.sampled_from([(), (("recompute", "none"),)]))
    return Instance(
        model, cluster, workload, fits, Ticks(2.0**12 * coarse_ticks(model, cluster, workload).second), headroom=0.0,
        objective=draw(st.sampled_from(["time", "time", "energy", "money"])), pins=(*pins, *recompute),
        power_cap_w=None if cap is None else cap * power * cluster.facility.figures.pue.value,
    )  # fmt: skip


@st.composite
def clocked(draw: st.DrawFn) -> Instance:
    """Hosts that differ, and every stage with a clock of its own where joules count."""
    it = draw(placed_instances(most_layers=3, most_hosts=3))
    pins = tuple({**dict(it.pins), "recompute": "none"}.items())
    curve = dataclasses.replace(it.fits.clock, exponent=6.0, floor=0.5)
    objective = "energy" if it.power_cap_w is None else it.objective
    return dataclasses.replace(
        it, objective=objective, fits=dataclasses.replace(it.fits, clock=curve), clocks=STEPS, pins=pins
    )


def found_by(it: Instance) -> tuple[float, object, PlacedSearch | None]:
    space = space_of(it)
    if space is None:
        return float("inf"), None, None
    search = search_of(space, options_of(it), it.fits, it.ticks)
    return (result := search.run()) and search.value, result, search


@examples(25)
@given(placed_instances())
def test_search_equals_enumeration(it):
    agrees(it)


@examples(8)
@given(clocked())
def test_search_equals_enumeration_with_clocks(it):
    agrees(it)


@st.composite
def limited(draw: st.DrawFn) -> Instance:
    """Hosts that differ, and a limit on a step or on the power of a device or a host, met by some plans or by none."""
    it = draw(placed_instances(most_layers=3, most_hosts=3))
    name = draw(st.sampled_from(["step-time", "step-energy", "device-power", "host-power"]))
    device_w = it.cluster.accelerator.figures.idle_power.value
    idle_w = {"device": device_w}
    idle_w["host"] = it.cluster.devices_per_host * device_w + it.cluster.host.figures.power.value
    what = name.removeprefix("step-").removesuffix("-power")
    least = idle_w[what] if what in idle_w else best_placed(dataclasses.replace(it, objective=what)).value
    limit = least * draw(st.floats(0.98, 1.3))
    return it if limit == float("inf") else dataclasses.replace(it, limits=((name, limit),))


@examples(15)
@given(limited())
def test_search_equals_enumeration_within_limits(it):
    agrees(it)


def agrees(it: Instance) -> None:
    """The best plan on the best hosts, none exactly where there is none, proved; the estimate of its hosts agrees."""
    everything = best_placed(it).value
    value, result, search = found_by(it)

    assert value == pytest.approx(everything, rel=1e-9)
    if result is None or result.best is None:
        return
    assert result.proved
    assert result.bound_root <= value * (1 + 1e-12)
    assert result.bound == pytest.approx(value, rel=1e-9)
    assert all(e["least_bound"] is None or e["least_bound"] >= value * (1 - 1e-9) for e in result.excluded)
    strategy = search.strategy(result.best)
    assert not check_strategy(
        it.model, it.cluster, it.workload, strategy, headroom=0.0, power_cap_w=it.power_cap_w, fits=it.fits
    )
    priced = estimate(it.model, it.cluster, it.workload, strategy, fits=it.fits, ticks=it.ticks)
    assert priced.step_ticks == result.best.found.evaluation.step


@examples(240)
@given(placed_instances())
def test_a_row_with_the_best_of_a_group_has_the_least_of_every_price_at_every_rate(it):
    groups = defaultdict(list)
    search = found_by(it)[2]
    for kept in search.kept if search else ():
        groups[kept.packing, kept.prices.rows.pp[0], kept.prices.rows.micro_batch[0]].append(kept)
    for group in groups.values():
        best = group[-1].with_the_best_of(group)
        assert best.prices is best.by_level[best.option.levels[0]]
        for level, name in itertools.product(best.by_level, ("forward", "backward", "update", "state_bytes", "hop")):
            each = [getattr(kept.by_level[level], name) for kept in group]
            assert (getattr(best.by_level[level], name) == np.minimum.reduce(each)).all()


@examples(15)
@given(placed_instances(), st.integers(0, 3))
def test_a_slower_host_is_never_better(it, which):
    """Halving one host's cards cannot shorten the best step; the regular cluster is at least as good as any."""
    slower = it.cluster.irregular
    nic = tuple(rate / 2 if h == which % len(slower.nic) else rate for h, rate in enumerate(slower.nic))
    worse = dataclasses.replace(
        it, cluster=dataclasses.replace(it.cluster, irregular=dataclasses.replace(slower, nic=nic))
    )

    assert found_by(worse)[0] >= found_by(it)[0] * (1 - 1e-12)
    regular = dataclasses.replace(it, cluster=dataclasses.replace(it.cluster, irregular=None))
    assert found_by(it)[0] >= found_by(regular)[0] * (1 - 1e-12)


def test_rows_are_compared_at_every_rate(monkeypatch):
    """Rows are dropped, but none of those whose costs cross: each is cheaper than any other at some rate."""
    cluster = with_hosts(small_cluster(2, 4), Irregular((0, 1, 2, 3), (2,) * 4, (1.0, 0.1, 1.0, 1.0)), 1e9)
    config = tiny_config(num_hidden_layers=2)
    workload = Training(seq_len=64, global_batch=8)
    model = read_config(config, "tiny")
    it = Instance(
        model, cluster, workload, calibrate(cluster), coarse_ticks(model, cluster, workload), pins=(("pp", 2),)
    )
    search, rows = search_of(space_of(it), options_of(it), it.fits, it.ticks), rows_of(it, list(all_rows(it)))
    objective, prices, every = (
        objective_of(rows, cluster, search.options),
        search._priced(rows, "rows"),
        np.arange(len(rows)),
    )
    assert len(search._undominated(prices, every, objective)) < len(rows)

    monkeypatch.setattr(
        PlacedSearch,
        "_costs",
        lambda _, shape, some, o: np.stack([np.arange(len(some)), -np.arange(len(some))], axis=1),
    )
    assert len(search._undominated(prices, every, objective)) == len(rows)
