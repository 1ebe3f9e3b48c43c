"""Plans that offload on hosts that differ: the search and the second derivation against enumeration of every order."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from host_oracle import with_hosts
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle import Instance, all_rows, rows_of
from oracle_tiers import offloading
from searching import space_of
from strategies import coarse_ticks, examples, models, small_cluster, tiny_config, with_memory
from test_placed import WORKLOAD, strategy_of
from test_placed_row import agrees as a_row_agrees
from test_placed_search import agrees, found_by, placed_instances
from test_rederive_hosts import agrees as rederiving_agrees

from cost_models.calibration import calibrate
from cost_models.chain import Chain
from cost_models.placed import placed_chain
from cost_models.price import Prices, price
from cost_models.rows import Rows
from cost_models.ticks import Ticks
from cost_models.tiers import OPTIMIZER
from cost_models.workload import Training
from planner import plan
from planner.errors import InfeasiblePlan
from planner.read_model import read_config
from planner.search.offloads import loosest
from topologies.irregular import Irregular, Switch
from topologies.ready import read_cluster
from topologies.tiers import Tier, with_tiers

ODD = """name = "odd"
host = "dgx-a100-40gb"
fabric = "hdr-infiniband"
facility = "air"
hosts = 3
exceptions = [{ hosts = 0, devices = 7 }, { hosts = 1, nic_bandwidth = "3 GB/s" }]
"""


def on_two_pairs(it: Instance, slow: float) -> Instance:
    """The problem on four hosts of a device, two of them slow: a stage each on two of them, layers not recomputed."""
    hosts = Irregular(numbers=(0, 1, 2, 3), devices=(1,) * 4, nic=(1.0, slow, 1.0, slow))
    cluster = with_hosts(small_cluster(1, 2), hosts, 1e8)
    pins = {"pp": 2, "dp": 2, "recompute": "none"}
    return dataclasses.replace(it, cluster=cluster, pins=tuple(pins.items()))


@st.composite
def tiered(draw: st.DrawFn, most_layers: int = 3) -> Instance:
    """Hosts that differ, less device memory than the best plan takes, and a tier: of each host or pooled."""
    it = draw(placed_instances(most_layers=most_layers, most_hosts=3))
    if draw(st.booleans()):
        it = on_two_pairs(it, draw(st.sampled_from([0.1, 0.5])))
    ample = dataclasses.replace(it, cluster=with_memory(it.cluster, 1e15), power_cap_w=None)
    value, result, _ = found_by(ample)
    states = 18.0 * it.model.parameters
    need = states if value == float("inf") else int(result.best.found.evaluation.need.max()) - it.fits.context_bytes
    memory = it.fits.context_bytes + draw(st.sampled_from([0.6, 0.8, 0.95])) * need
    rate, room = draw(st.sampled_from([1e9, 5e10, 1e12])), draw(st.sampled_from([1.0, 4.0, 100.0])) * states
    tier = Tier("dram", "dram", room, rate, rate, rate, 1e-6, update_bytes_per_s=draw(st.sampled_from([0.0, rate])))
    if draw(st.integers(0, 2)) == 0:
        tier = Tier("pool", "cxl-pool", room, 2 * rate, rate, rate / 2, 1e-6, 0.0, rate, 1, 1e-11)
    cluster = dataclasses.replace(with_memory(it.cluster, memory), tiers=(tier,))
    pins = {"cp": 1, **dict(it.pins)}
    return dataclasses.replace(it, cluster=cluster, power_cap_w=None, pins=tuple(pins.items()))


@examples(12)
@given(tiered())
def test_search_equals_enumeration(it):
    agrees(it)


@pytest.mark.parametrize(("part", "uplink"), [(0.6, 0.05), pytest.param(0.8, 0.5, marks=pytest.mark.slow)])
def test_virtual_stages_that_offload_activations_hop_as_their_packing_does(part, uplink):
    """Two pairs of hosts below switches: replicas or hops cross the uplinks, and each has its own rate."""
    model = read_config(tiny_config(), "tiny")
    racks = tuple(Switch(name, hosts, uplink) for name, hosts in (("a", (0, 1)), ("b", (2, 3))))
    hosts = Irregular(numbers=(0, 1, 2, 3), devices=(1,) * 4, nic=(1.0,) * 4, switches=racks)
    cluster, work = with_hosts(small_cluster(1, 2), hosts, 1e8), Training(seq_len=1024, global_batch=4)
    fits = dataclasses.replace(calibrate(cluster), context_bytes=0.0, communicator_bytes=1e4)
    ticks = Ticks(2.0**12 * coarse_ticks(model, cluster, work).second)
    pins = {"pp": 2, "dp": 2, "virtual_stages": 2, "recompute": "none", "zero": 0}
    it = Instance(model, cluster, work, fits, ticks, headroom=0.0, pins=tuple(pins.items()))
    need = int(found_by(it)[1].best.found.evaluation.need.max())
    tier = Tier("dram", "dram", 1e12, 5e10, 5e10, 5e10, 1e-6)
    it = dataclasses.replace(it, cluster=dataclasses.replace(with_memory(cluster, part * need), tiers=(tier,)))

    agrees(it)
    assert np.isfinite(found_by(it)[0])
    for factor in (1 - 1e-9, 1.01):
        rederiving_agrees(it, factor)


@pytest.mark.slow
@examples(6)
@given(tiered(most_layers=2), st.sampled_from([0.999, 1.0 - 1e-9, 1.01]))
def test_rederiving_agrees(it, factor):
    rederiving_agrees(it, factor)


@examples(8)
@given(tiered())
def test_a_row_equals_enumeration(it):
    a_row_agrees(it)


def quantities_of(prices: Prices) -> dict[str, np.ndarray]:
    """All ticks, bytes and joules of a row in which less is better, by name."""
    alone = ("forward", "backward", "hop", "reduce", "gather", "update", "logits", "joules_pass", "joules_step")
    several = ("extra", "states", "saved", "fixed", "tied_states", "joules_extra")
    found = {name: getattr(prices, name) for name in alone}
    return found | {f"{of} {name}": table for of in several for name, table in getattr(prices, of).items()}


@examples(60)
@given(tiered(), st.booleans(), st.sampled_from([(), (0.7,)]), st.data())
def test_loose_prices_never_exceed_those_of_any_way_to_offload(it, relaxed, clocks, data):
    """At the best rate of all hosts with everything offloaded for nothing: no table is above that of any way, at any
    rate and clock, for layers that let their states go and for those that keep them. Ways are the oracle's own.
    """
    every, space = list(itertools.islice(all_rows(it), 300)), space_of(it)
    assume(every and space is not None)
    rows = rows_of(it, data.draw(st.lists(st.sampled_from(every), min_size=1, max_size=2, unique=True)))
    ways = offloading(it.cluster, rows)
    of = np.arange(len(ways)) % len(rows)
    rates = sorted({1.0, *it.cluster.irregular.nic}, reverse=True)

    def at(rate: float, which: Rows, **how: bool) -> Prices:
        cluster = it.cluster.at_rate(rate)
        return price(it.model, cluster, it.workload, which, it.fits, it.ticks, clocks=(1.0, *clocks), **how)

    loose = at(rates[0], loosest(space, rows), relaxed=relaxed, loosely=True).take(of)
    for rate in rates:
        full = at(rate, ways)
        for clock in full.clocks:
            for tables in (full.at(clock), full.at(clock).nearer or full.at(clock)):
                above = quantities_of(tables)
                for name, table in quantities_of(loose.at(clock)).items():
                    assert (table <= above[name] * (1 + 1e-12)).all(), (name, rate, clock)


@examples(25)
@given(models(most_layers=5), st.permutations([1.0, 0.3]), st.integers(1, 4), st.integers(0, 5), st.integers(0, 5))
def test_a_stage_keeps_some_layers_at_its_rate(model, rates, cut, first, second):
    """Every stage costs and holds what it does at the rate of its hosts, with so many layers that offload more."""
    cut, cluster = min(cut, model.layers - 1), with_tiers(read_cluster("dgx-h100:4"), ("dram",))
    share = np.zeros((1, 5, 1))
    share[0, OPTIMIZER] = 1.0
    rows = Rows.of(strategy_of(model, hosts=(0, 1, 2, 3))).offloading(share, ("dram",))
    known = calibrate(cluster), Ticks(Ticks.of(model, cluster, WORKLOAD).second / 2**10)
    by_rate = {rate: price(model, cluster.at_rate(rate), WORKLOAD, rows, *known) for rate in rates}
    i, j = np.array([0, cut]), np.array([cut, model.layers])
    out = np.minimum([first, second], j - i)
    leaving = [(some, None) for some in out.tolist()]
    placed = placed_chain(model, by_rate, list(rates), (j - i).tolist(), by_rate[0.3].hop, leaving)
    alone = [Chain(model, by_rate[rate], 0) for rate in rates]

    for of in ("forward", "backward"):
        each = [float(getattr(c, of)(i, j)[s]) for s, c in enumerate(alone)]
        assert getattr(placed, of)(i, j).tolist() == pytest.approx(each, rel=1e-12)
    for of in ("state_bytes", "joules_step"):
        each = [float(getattr(c, of)(i, j, i + out)[s]) for s, c in enumerate(alone)]
        assert getattr(placed, of)(i, j).tolist() == pytest.approx(each, rel=1e-12)
    each = [int(c.tier_states("dram", i, j, i + out)[s]) for s, c in enumerate(alone)]
    assert placed.tier_states("dram", i, j).tolist() == each


@pytest.mark.slow
def test_a_plan_on_hosts_that_differ(tmp_path):
    """Too little memory for the optimiser states: they go to DRAM, in a plan that is proved and names hosts."""
    path = tmp_path / "odd.toml"
    path.write_text(ODD)
    pins = {"tp": 1, "pp": 2, "dp": 8, "zero": 1, "virtual_stages": 1}
    asked = {"global_batch": 32, "seq_len": 2048, "headroom": 0.88, "alternatives": 0, "pins": pins}
    with pytest.raises(InfeasiblePlan):
        plan("llama-3.2-1b", path, **asked)
    found = plan("llama-3.2-1b", path, tiers="dram", **asked)

    assert found.status == "optimal"
    assert found.strategy.offloads
    assert found.strategy.hosts
