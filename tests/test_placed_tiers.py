"""Plans that offload on hosts that differ: the search and the second derivation against enumeration of every order."""

from __future__ import annotations

import dataclasses

from host_oracle import best_placed
from hypothesis import given
from hypothesis import strategies as st
from oracle import Instance
from strategies import examples, with_memory
from test_placed_search import agrees, found_by, placed_instances
from test_rederive_hosts import agrees as rederiving_agrees

from planner import plan
from planner.checks.verify import verify
from topologies.tiers import Tier

ODD = """name = "odd"
host = "dgx-a100-40gb"
fabric = "hdr-infiniband"
facility = "air"
hosts = 3
exceptions = [{ hosts = 0, devices = 7 }, { hosts = 1, nic_bandwidth = "3 GB/s" }]
"""


@st.composite
def tiered(draw: st.DrawFn, most_layers: int = 3) -> Instance:
    """Hosts that differ, less device memory than the best plan takes, and a tier: of each host or pooled."""
    it = draw(placed_instances(most_layers=most_layers, most_hosts=3))
    ample = dataclasses.replace(it, cluster=with_memory(it.cluster, 1e15), power_cap_w=None)
    value, result, _ = found_by(ample)
    states = 18.0 * it.model.parameters
    need = states if value == float("inf") else int(result.best.found.evaluation.need.max()) - it.fits.context_bytes
    memory = it.fits.context_bytes + draw(st.sampled_from([0.5, 0.7, 0.9])) * need
    rate, room = draw(st.sampled_from([1e9, 5e10, 1e12])), draw(st.sampled_from([0.5, 2.0, 100.0])) * states
    tier = Tier("dram", "dram", room, rate, rate, rate, 1e-6, update_bytes_per_s=draw(st.sampled_from([0.0, rate])))
    if draw(st.integers(0, 2)) == 0:
        tier = Tier("pool", "cxl-pool", room, 2 * rate, rate, rate / 2, 1e-6, 0.0, rate, 1, 1e-11)
    cluster = dataclasses.replace(with_memory(it.cluster, memory), tiers=(tier,))
    pins = {"cp": 1, "zero": draw(st.sampled_from([0, 1, 3])), **dict(it.pins)}
    return dataclasses.replace(it, cluster=cluster, power_cap_w=None, pins=tuple(pins.items()))


@examples(12)
@given(tiered())
def test_search_equals_enumeration(it):
    agrees(it)


@examples(6)
@given(tiered(most_layers=2), st.sampled_from([0.999, 1.0 - 1e-9, 1.01]))
def test_rederiving_agrees(it, factor):
    rederiving_agrees(it, factor)
