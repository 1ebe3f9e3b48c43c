"""Plans on hosts that differ, from the outside: ties, limits, starts, clocks, explanations, refusals."""

from __future__ import annotations

import pytest

from planner import pareto, plan
from planner.errors import BadInput, Unsupported
from planner.explanations.mine import mine_and_plan
from planner.export import export
from planner.result import Plan
from topologies.ready import read_cluster

BASE = 'name = "few"\nhost = "dgx-h100"\nfabric = "ndr-infiniband"\nfacility = "air"\nhosts = 6\n'
ODD = (
    BASE
    + """host_names = "n[0-5]"
exceptions = [
  { hosts = 1, nic_bandwidth = "4 GB/s" }, { hosts = 2, devices = 4 }, { hosts = "3-5", oversubscription = 4 },
]
"""
)
QUICK = {"global_batch": 64, "seq_len": 4096, "alternatives": 0}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    path = tmp_path_factory.mktemp("clusters") / "few.toml"
    path.write_text(ODD)
    return path


@pytest.fixture(scope="module")
def found(few) -> Plan:
    return plan("llama-3.2-1b", few, **QUICK)


def test_the_same_plan_on_any_number_of_cores(few, found):
    """Strategy, hosts and proof; the slow host and the one with four devices are left out or not, but alike."""
    other = plan("llama-3.2-1b", few, workers=2, **QUICK)

    assert (found.status, found.proof.rows["ties_unsettled"]) == ("optimal", 0)
    assert other.strategy == found.strategy
    assert (other.objective, other.bound) == (found.objective, found.bound)


def test_the_proof_names_hosts(found):
    """Its space says what of hosts is searched, and its exclusions are all of them."""
    assert sum("hosts" in text for text in found.space["restrictions"]) >= 3
    assert found.space["axes"]["hosts"] == "6 of 4 kinds, 0 of them spare"
    gone = {(it.stage, it.reason): it.least_bound for it in found.proof.excluded}
    assert all(least is None or least >= found.bound * (1 - 1e-9) for least in gone.values())


def test_a_start_changes_nothing_but_the_work(few, found):
    again = plan("llama-3.2-1b", few, start=found, **QUICK)

    assert again.strategy == found.strategy
    assert any("started from a plan of time" in note for note in again.notes)
    assert again.proof.rows["rows_evaluated"] <= found.proof.rows["rows_evaluated"]


def test_a_start_from_equal_hosts_and_back(few, found):
    """A plan of a regular cluster starts one on hosts that differ, and the other way about: its hosts are let go."""
    regular = plan("llama-3.2-1b", "dgx-h100:6", start=found, **QUICK)
    odd = plan("llama-3.2-1b", few, start=plan("llama-3.2-1b", "dgx-h100:4", **QUICK), **QUICK)

    assert any("started from" in note for note in regular.notes)
    assert regular.strategy.hosts == []
    assert any("started from" in note for note in odd.notes)
    assert odd.strategy == found.strategy


def test_a_deterministic_limit_ends_it_with_a_true_bound(few, found):
    ended = plan("llama-3.2-1b", few, deterministic_limit=0.1, **QUICK)
    again = plan("llama-3.2-1b", few, deterministic_limit=0.1, **QUICK)

    assert ended.status == "feasible"
    assert ended.bound <= found.objective <= ended.objective
    assert (again.strategy, again.bound) == (ended.strategy, ended.bound)


def test_clocks_under_a_cap(few):
    """Every stage may have its clock, on whatever hosts: no slower than waiting."""
    limits = QUICK | {"power_cap": "38 kW", "pins": "pp=2"}
    waits, slowed = (plan("llama-3.2-1b", few, clocks=clocks, **limits) for clocks in (False, True))

    assert slowed.status == "optimal"
    assert slowed.objective < waits.objective
    assert slowed.strategy.hosts


@pytest.mark.slow
def test_explained_again_with_more(found, few):
    """What one more host buys is asked with the exceptions as they are."""
    rows = found.explain(cluster=few, time_limit_s=2).bought

    assert {"memory", "scale-out bandwidth", "devices"} <= {row.name for row in rows}
    assert "6 -> 7 hosts, 44 -> 52 devices" in {row.change for row in rows}
    assert all(row.gain_at_most >= row.gain_fraction >= row.gain_at_least >= 0 for row in rows)


def test_why_not(found, few):
    pp = 4 if found.strategy.pp != 4 else 2
    answer = found.why_not(f"pp={pp}", cluster=few, time_limit_s=20)

    assert answer.verdict == "worse"
    assert answer.other.strategy.hosts
    assert sum(pair.difference for pair in answer.time) == pytest.approx(answer.other.step_s - found.step_s)


def test_a_strategy_of_ones_own_beside_it(few):
    work = {"global_batch": 64, "seq_len": 4096, "precision": "bf16", "optimizer": "adam"}
    both = mine_and_plan("llama-3.2-1b", few, "tp=2,pp=2,dp=4", **work)

    assert both.mine.step_s > both.plan.step_s


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"solver": "pure-cpsat"}, "chooses no hosts"),
        ({"jobs": 2}, "jobs=2 shares out hosts that are alike"),
        ({"jobs": "auto"}, "one cluster file for each job"),
        ({"tiers": "cxl-pool:2"}, "2 pools of cxl-pool.*take one pool"),
        ({"objective": "time,energy"}, "objectives in order"),
        ({"limits": {"rack-power": 50e3}}, "rack"),
    ],
)
def test_refused_by_name(few, asked, complaint):
    with pytest.raises(BadInput, match=complaint):
        plan("llama-3.2-1b", few, **(QUICK | asked))


def test_limits_hold_on_hosts_that_differ(few, found):
    """The step of the plan as a limit of its energy: nothing is slower, and what a device may draw is kept."""
    least = plan("llama-3.2-1b", few, objective="energy", limits={"step-time": found.step_s * 1.02}, **QUICK)

    assert least.status == "optimal"
    assert found.step_s <= least.step_s <= found.step_s * 1.02
    assert least.joules_per_step <= found.joules_per_step


def test_only_targets_that_order_hosts_take_such_a_plan(found):
    with pytest.raises(Unsupported, match=r"megatron does not order hosts.*torchrun and slurm"):
        export(found, ("torchrun", "megatron"))


def test_fronts_are_of_equal_hosts(few):
    with pytest.raises(BadInput, match="swept where hosts are alike"):
        pareto("llama-3.2-1b", few, global_batch=64)


def test_switches_of_equal_hosts_and_exceptions_contradict(tmp_path):
    path = tmp_path / "both.toml"
    path.write_text(ODD + "switches = [{ name = 'leaf', hosts = 2 }]\n")

    with pytest.raises(BadInput, match="switches describe hosts that are alike"):
        read_cluster(path)
