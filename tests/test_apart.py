"""Replicas kept apart by host, rack, leaf switch and power feed: arrangements, plans, checks, refusals."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from planner import pareto, plan
from planner.apart import LIMITS, Domain, broken_domains, domains_of, with_numbered_hosts
from planner.checks.rederive_hosts import stand_apart
from planner.checks.verify import verify
from planner.errors import BadInput, InfeasiblePlan
from planner.explanations.mine import inputs_of
from planner.export import export
from planner.options import read_options
from planner.search.apart import ApartPacking
from planner.search.packing import Shape
from topologies.irregular import Irregular
from topologies.ready import read_cluster

RACKS = """name = "racks"
host = "dgx-h100"
fabric = "ndr-infiniband"
facility = "air"
hosts = 5
hosts_per_rack = 2
hosts_per_leaf = 4
hosts_per_feed = 3
host_names = "n[0-4]"
exceptions = [{ hosts = 1, dead = true }]
"""
QUICK = {"global_batch": 32, "seq_len": 2048, "alternatives": 0}
ONE = ApartPacking(Irregular((0,), (8,), (1.0,)), ())


@pytest.fixture(scope="module")
def racks(tmp_path_factory):
    path = tmp_path_factory.mktemp("clusters") / "racks.toml"
    path.write_text(RACKS)
    return path


@pytest.fixture(scope="module")
def found(racks):
    return plan("llama-3.2-1b", racks, limits="rack-replicas=1", pins="dp_replicate=2,tp=2,cp=1", **QUICK)


def test_a_plan_keeps_its_two_replicas_in_racks_of_their_own(found):
    """Host 1 is dead: rack 0 has host 0 alone, rack 1 hosts 2 and 3, rack 2 host 4; one replica gets one rack each."""
    names = found.cluster.host_names
    at = {replica: {int(names[h][1:]) // 2 for h in hosts} for replica, hosts in enumerate(replica_hosts(found))}

    assert found.status == "optimal"
    assert not at[0] & at[1]
    assert any("replicas: at most 1 in a rack of 2 hosts" in text for text in found.space["restrictions"])
    assert any("replica 0 in rack" in note for note in found.notes)


def replica_hosts(found):
    """Host positions of every replica, from the emitted rank map."""
    rows = [line.split(",") for line in export(found, ("torchrun",))["rank_map.csv"][0].splitlines()[1:]]
    names = found.cluster.host_names
    return [{names.index(r[1]) for r in rows if int(r[4]) == k} for k in range(found.strategy.dp_replicate)]


def test_other_code_agrees_with_the_plan(found, racks):
    report = verify(found, *inputs_of(found, str(racks)), time_limit_s=60)

    assert (report.verdict, report.reasons) == ("verified", [])


def test_the_check_sees_two_replicas_in_one_rack(found, racks):
    """The second replica on the other host of the first one's rack."""
    cluster, options = read_cluster(racks), read_options(limits={"rack-replicas": 1})
    strategy = found.strategy.strategy()
    close = dataclasses.replace(strategy, hosts=(1, 2, *strategy.hosts[2:])[: len(strategy.hosts)])

    assert not list(broken_domains(cluster, strategy, options))
    (complaint,) = broken_domains(cluster, close, options)
    assert "rack 1 (hosts 2 to 3) holds devices of 2 replicas, but rack-replicas is 1" in complaint


def test_too_many_replicas_are_refused_with_the_sum_and_a_way_out(racks):
    with pytest.raises(InfeasiblePlan) as error:
        plan("llama-3.2-1b", racks, limits="rack-replicas=1", pins="dp_replicate=4,tp=8", **QUICK)

    assert "1 x 3 racks of 2 hosts = 3 replicas at most" in str(error.value)
    assert "rack-replicas 2 instead of 1" in str(error.value)


@pytest.mark.parametrize(("cluster", "limit", "said"), [
    ("dgx-h100:4", "rack-replicas=1", "set hosts_per_rack"), ("dgx-h100:4", "feed-replicas=2", "set hosts_per_feed"),
    ("dgx-h100:4", "host-replicas=0", "a whole one from 1"), ("dgx-h100:4", "host-replicas=1.5", "a whole one from 1"),
    ("gb200-nvl72:2", "host-replicas=1", "spans several hosts"), ("irregular-64", "host-replicas=1", "differ"),
    ("mi300x-cpx:1", "host-replicas=1", r"levels of its own \(package and scale-up"),
    ("mi300x-cpx:2", "host-replicas=1", "levels of its own"),
    ("tpu-v5p-cube:1", "rack-replicas=1", r"levels of its own \(torus x and torus y and torus z"),
])  # fmt: skip
def test_refused_by_name(cluster, limit, said):
    with pytest.raises(BadInput, match=said):
        plan("llama-3.2-1b", cluster, limits=limit, **QUICK)


def test_the_graph_and_the_limits_mean_the_same_domains(racks):
    """Host 1 is dead: every host's name in the graph is its number over the hosts that the limit counts."""
    cluster, names = read_cluster(racks), {"rack": "rack", "switch": "leaf", "feed": "feed"}
    limits, graph = domains_of(cluster, read_options(limits={f"{kind}-replicas": 1 for kind in names})), cluster.graph()

    for host, number in enumerate((0, 2, 3, 4)):
        failure = graph.nodes[f"host-{host}"]["failure_domains"]
        assert {it.kind: failure[it.kind] for it in limits} == {
            it.kind: f"{names[it.kind]}-{number // it.hosts}" for it in limits
        }


def test_fronts_and_several_jobs_name_no_hosts():
    with pytest.raises(BadInput, match="host-replicas"):
        pareto("llama-3.2-1b", "dgx-h100:2", limits="host-replicas=1", seq_len=2048, global_batch=32)
    with pytest.raises(BadInput, match="jobs share racks"):
        plan("llama-3.2-1b", "dgx-h100:2", limits="host-replicas=1", jobs=2, **QUICK)


def test_regular_hosts_become_numbered_ones_only_when_asked():
    cluster = read_cluster("dgx-h100:4")

    assert with_numbered_hosts(cluster, read_options()) is cluster
    assert with_numbered_hosts(cluster, read_options(limits={"host-replicas": 1})).irregular.numbers == (0, 1, 2, 3)
    assert list(LIMITS) == ["host-replicas", "rack-replicas", "switch-replicas", "feed-replicas"]


@st.composite
def arrangements(draw):
    """Up to nine hosts, some dead, some with fewer devices; one or two kinds of domains; a shape."""
    numbers = sorted(draw(st.sets(st.integers(0, 11), min_size=1, max_size=9)))
    devices = draw(st.lists(st.sampled_from([4, 8]), min_size=len(numbers), max_size=len(numbers)))
    sizes = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=2))
    domains = tuple(Domain(name, *it) for name, it in zip(("rack-replicas", "feed-replicas"), sizes, strict=False))
    replicas, each, groups, inside = (draw(st.integers(1, n)) for n in (4, 2, 2, 2))
    shape = Shape(draw(st.sampled_from([4, 8])), each * replicas, groups, 1, replicas, inside)
    return Irregular(tuple(numbers), tuple(devices), (1.0,) * len(numbers)), domains, shape


@examples(300)
@given(arrangements())
def test_replicas_stand_apart_and_the_verifier_walks_the_same_way(case):
    """No domain above its limit; no host twice; the two programs hold the same shapes."""
    it, domains, shape = case
    found = ApartPacking(it, domains).arranged(shape)
    again = (shape.devices, shape.hosts, shape.groups, shape.replicas, shape.inside)

    assert (found is not None) == stand_apart(it, domains, *again)
    if found is None:
        return
    assert len(np.unique(found)) == found.size
    for domain in domains:
        touched = [{it.numbers[h] // domain.hosts for h in hosts} for hosts in found.tolist()]
        counts = {d: shape.inside * sum(d in mine for mine in touched) for d in set().union(*touched)}
        assert max(counts.values()) <= domain.most


@examples(120)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))
def test_equal_racks_hold_as_many_replicas_as_any_order_of_neighbours(size, racks, each, most):
    """Against every choice of where replicas of neighbouring hosts begin."""
    hosts = min(size * racks, 8)
    it = Irregular(tuple(range(hosts)), (8,) * hosts, (1.0,) * hosts)
    domain, packing = Domain("rack-replicas", size, most), None
    packing = ApartPacking(it, (domain,))
    holds = [n for n in range(1, hosts + 1) if packing.arranged(Shape(8, each * n, 1, 1, n, 1)) is not None]

    assert max(holds, default=0) == most_by_trying(hosts, size, each, most)


def most_by_trying(hosts, size, each, most):
    for count in range(hosts // each, 0, -1):
        for starts in itertools.combinations(range(hosts - each + 1), count):
            if all(b - a >= each for a, b in itertools.pairwise(starts)):
                racks = [{h // size for h in range(s, s + each)} for s in starts]
                if all(sum(r in mine for mine in racks) <= most for r in range(hosts)):
                    return count
    return 0
