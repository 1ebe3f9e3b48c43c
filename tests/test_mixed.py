"""Mixed clusters: reading them, prices of uneven pipelines, plans end to end, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixed_cases import CLUSTER, MODEL, TIGHT, planned
from mixed_oracle import simulated
from strategies import examples, tiny_config
from test_mixed_search import mixed_of, small_cluster

from cost_models.critical_paths import critical_path
from cost_models.mixed import Machine, MixedStage, MixedStrategy, evaluate_mixed, inner_copies, placement
from cost_models.mixed_power import mixed_watts
from cost_models.pipeline import ends, schedule_graph, step_ticks
from cost_models.strategy import LayerChoice, LayerRun
from cost_models.workload import Training
from planner import plan
from planner.api import estimate
from planner.checks.verify_mixed import verify_mixed
from planner.errors import BadInput, InfeasiblePlan, PlannerError, UnknownName
from planner.mixed.check import broken
from planner.mixed.result import MixedPlan
from planner.read_model import read_config
from planner.result import Plan
from topologies.mixed import MixedCluster
from topologies.ready import CLUSTERS, read_any_cluster, read_cluster

pytestmark = pytest.mark.usefixtures("steady")


def test_text_names_the_parts_and_the_slower_nic_joins_them():
    """8 NICs of 200 Gb/s for 8 A100s, of 400 Gb/s for 8 H100s: 25 GB/s a device between the parts."""
    mixed = read_any_cluster("dgx-a100:2+dgx-h100:3")

    assert isinstance(mixed, MixedCluster)
    assert [part.devices for part in mixed.parts] == [16, 24]
    assert mixed.devices == 40
    assert mixed.join.bandwidth_bytes_per_s == pytest.approx(25e9)
    assert mixed.digest != read_any_cluster("dgx-a100:2+dgx-h100:4").digest


def test_a_file_lists_parts_and_may_give_the_link(tmp_path):
    file = tmp_path / "both.toml"
    file.write_text('name = "both"\nparts = ["dgx-a100:1", "dgx-h100:1"]\nlink_bandwidth = "3 GB/s"\n')
    mixed = read_any_cluster(file)

    assert mixed.join.bandwidth_bytes_per_s == 3e9
    assert mixed.join.latency_s == read_any_cluster("dgx-a100+dgx-h100").join.latency_s


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("dgx-a100:0+dgx-h100:4", BadInput, "whole one from 1"),
        ("dgx-a100:2+h1000:1", UnknownName, "nearest"),
        ("dgx-a100:2+", BadInput, "empty part"),
        ("dgx-a100:2+dgx-a100:1", BadInput, "twice"),
        ("dgx-h100:200000+dgx-a100:200000", BadInput, "limit"),
        ("+".join(["dgx-h100:1"] * 9), BadInput, "at most 8"),
    ],
)
def test_bad_parts_are_refused(text, error, says):
    with pytest.raises(error, match=says):
        read_cluster(text)


def test_two_parts_of_one_name_are_refused(tmp_path):
    """A copy of a file with another price: tables by part could not tell them apart."""
    copied = (CLUSTERS / "dgx-h100.toml").read_text()
    (tmp_path / "spot.toml").write_text(copied)
    with pytest.raises(BadInput, match="two parts named 'dgx-h100:1'; give one of their files another name"):
        read_any_cluster(f"dgx-h100:1+{tmp_path / 'spot.toml'}:1")
    (tmp_path / "spot.toml").write_text(copied.replace('name = "dgx-h100"', 'name = "spot"', 1))
    named = read_any_cluster(f"dgx-h100:1+{tmp_path / 'spot.toml'}:1")
    assert [part.name for part in named.parts] == ["dgx-h100:1", "spot:1"]


def test_a_file_with_wrong_fields_names_them(tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text('name = "bad"\nparts = ["dgx-a100:1"]\nlink_bandwidth = "3 GB"\n')
    with pytest.raises(BadInput, match="link_bandwidth"):
        read_cluster(file)


@pytest.mark.parametrize(
    "asked",
    [
        {"solver": "pure-cpsat"}, {"jobs": 2}, {"jobs": "auto"}, {"workers": 2},
        {"start": "plan.json"}, {"objective": "goodput"}, {"pins": "dp=2"},
        {"objective": "time,goodput", "slack": "2%"}, {"limits": "step-goodput=12 s"},
    ],
)  # fmt: skip
def test_what_is_not_searched_on_mixed_clusters_is_refused(asked):
    with pytest.raises(BadInput, match="mixed cluster"):
        plan("tiny-llama", "dgx-a100:1+dgx-h100:1", **asked)


def test_only_plan_takes_a_mixed_cluster():
    with pytest.raises(BadInput, match=r"mixed cluster.*name one of its parts: dgx-a100:1, dgx-h100:1"):
        read_cluster("dgx-a100:1+dgx-h100:1")


@st.composite
def uneven(draw):
    """Durations of a batch of pipelines of one shape, hops of their own on every boundary."""
    pp, m, batch = draw(st.integers(2, 5)), draw(st.integers(1, 12)), 3
    ticks = st.lists(st.integers(1, 50), min_size=batch * pp, max_size=batch * pp)
    f, b, tail, hop = (np.array(draw(ticks), dtype=np.int64).reshape(batch, pp) for _ in range(4))
    return m, f, b, tail, hop[:, 1:]


@given(uneven())
@examples(60)
def test_hops_by_boundary_against_a_simulation(case):
    m, f, b, tail, hop = case
    step = step_ticks(f.shape[1], 1, m, f, b, hop, tail)

    assert (step == simulated(m, f.T, b.T, tail.T, hop.T)).all()
    path = critical_path(schedule_graph(f.shape[1], 1, m), f[0], b[0], hop[0], tail[0])
    assert path.forward @ f[0] + path.backward @ b[0] + path.crossed @ hop[0] + tail[0, path.device] == step[0]


def test_one_hop_for_all_is_the_same_by_boundary():
    graph, ones = schedule_graph(3, 1, 4), np.full((1, 3), 5)
    by_number = ends(graph, ones, ones, np.array([2]))
    assert (by_number == ends(graph, ones, ones, np.full((1, 2), 2))).all()


def test_places_of_stages():
    """18 copies of 4 on domains of 72: all in one; 32 of 4: 16 in each of two; 5 devices on hosts of 4: nowhere."""
    assert inner_copies((72, 2), 4, 4, 18) == 18
    assert inner_copies((72, 2), 4, 4, 32) == 16
    assert inner_copies((8,), 4, 1, 5) == 0
    assert placement((8, 4), 8, 2, 1, 16, 4) == ((2, 1), (1, 1), (4, 4), (4, 1), (2, 4))


def tiny_machine(global_batch=4):
    model = read_config(tiny_config(), "tiny")
    parts = mixed_of(small_cluster(2, base="dgx-a100"), small_cluster(2, base="dgx-h100"))
    return Machine.of(model, parts, Training(seq_len=64, global_batch=global_batch))


def stage(part, layers, dp=1, tp=1, micro_batch=2):
    return MixedStage(part, tp, 1, dp, 1, int(dp > 1), micro_batch, (LayerRun(layers, LayerChoice("none")),))


def test_a_hop_takes_its_slower_side():
    """Two stages of the same B: one device that sends takes longer than two that receive."""
    machine = tiny_machine()
    strategy = MixedStrategy((stage(0, 2), stage(1, 2, dp=2, micro_batch=1)), 2)
    found, tokens = evaluate_mixed(machine, strategy), 2 * 64

    one = machine.side(0, tokens, np.array([1]), across=True)[0]
    two = machine.side(1, tokens, np.array([2]), across=True)[0]
    assert found.hop.tolist() == [one]
    assert one > two
    assert broken(machine, strategy, found, (10**12, 10**12)) == []


def test_broken_rules_are_named():
    machine = tiny_machine()
    strategy = MixedStrategy((stage(0, 2, tp=3), stage(1, 1, dp=4)), 2)
    found = evaluate_mixed(tiny_machine(), MixedStrategy((stage(0, 2), stage(1, 1)), 2))
    text = "; ".join(broken(machine, strategy, dataclasses.replace(found, need=np.array([1, 10])), (1, 1)))

    for says in ("hold 3 layers", "tp=3", "global batch is 4", "needs 10 bytes", "no room"):
        assert says in text


def test_a_plan_end_to_end():
    """Bound below step, no slower than a part alone, its space and restrictions printed, JSON both ways."""
    found = planned()
    assert isinstance(found, MixedPlan)
    assert found.bound <= found.step_s
    for part in CLUSTER.parts:
        alone = plan(MODEL, part, seq_len=2048, global_batch=16, precision="bf16", headroom=TIGHT, alternatives=0)
        assert found.step_s <= alone.step_s * (1 + 1e-9)
    assert any("one part" in text for text in found.space["restrictions"])
    assert MixedPlan.from_json(found.to_json()) == found
    assert json.loads(found.to_json())["kind"] == "mixed"
    assert ("advisory" in found.summary()) == found.advisory
    with pytest.raises(BadInput, match="mixed"):
        Plan.from_json(found.to_json())


def test_a_plan_whose_model_no_launch_target_runs_is_advisory():
    """Its stages have meshes of their own: a host of two starts two stages of one device."""
    unnamed = dataclasses.replace(MODEL, config=None)
    found = plan(unnamed, CLUSTER, seq_len=2048, global_batch=16, precision="bf16", headroom=TIGHT, alternatives=0)

    assert found.stages == planned().stages
    assert found.advisory and not planned().advisory


def test_a_part_that_is_too_slow_is_left_unused():
    """One V100 host beside four B200 hosts: the plan is that of the B200s alone, and can be launched."""
    found = plan("llama-3.2-1b", "dgx-1-v100:1+dgx-b200:1", global_batch=8, seq_len=1024, time_limit_s=15.0)

    assert not found.advisory
    assert found.alone is not None
    assert next(part.devices_used for part in found.parts) == 0
    assert found.step_s == found.alone.step_s


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"objective": "goodput"}, BadInput, "objective goodput"),
        ({"power_cap": "3 kW"}, BadInput, "limit site-power is 3.000 kW, but one host draws"),
        ({"pins": "pp=4"}, BadInput, "pp=4 cannot be pinned"),
        ({"pins": "tp=3"}, BadInput, "tp=3"),
        ({"pins": "recompute=none", "seq_len": 131072, "global_batch": 2}, PlannerError, "."),
    ],
)
def test_what_is_not_searched_is_refused(fields, error, says):
    with pytest.raises(error, match=says):
        plan("llama-3.1-70b", "dgx-a100:1+dgx-h100:1", time_limit_s=10.0, **fields)


def test_nothing_fits():
    with pytest.raises(InfeasiblePlan, match="no plan fits"):
        plan("llama-3.1-405b", "dgx-a100:1+dgx-h100:1", time_limit_s=20.0)


def test_one_strategy_is_not_estimated_on_many_parts():
    with pytest.raises(BadInput, match="mixed"):
        estimate("llama-3.2-1b", "dgx-a100:1+dgx-h100:1", "tp=2")


def test_two_parts_alike_draw_what_one_cluster_of_both_does():
    """The same two stages on two hosts: static draw of both, and joules above it but for what passes between them."""
    together = small_cluster(2, hosts=2)
    one = plan(
        MODEL, together, seq_len=2048, global_batch=16, precision="bf16", pins="pp=2,dp=2,tp=1,cp=1,virtual_stages=1"
    )
    strategy = one.strategy.strategy()
    part = small_cluster(2, hosts=1)
    machine = Machine.of(MODEL, mixed_of(part, dataclasses.replace(part, name="other")), one.workload)
    stages = tuple(MixedStage(k, 1, 1, 2, 1, one.strategy.zero, one.strategy.micro_batch, strategy.stages[k].runs)
                   for k in range(2))  # fmt: skip
    watts = mixed_watts(machine, MixedStrategy(stages, one.strategy.micro_batches), (1, 1), one.step_s)

    assert watts["hosts"] == pytest.approx(one.watts["hosts"])
    assert watts["devices"] == pytest.approx(one.watts["devices"], rel=0.01)
    assert watts["facility"] == pytest.approx(sum(w for name, w in watts.items() if name != "facility"))


def test_watts_and_joules_are_the_stages_and_are_checked():
    found = planned()
    machine = Machine.of(MODEL, CLUSTER, found.workload)
    idle = mixed_watts(machine, MixedStrategy((), found.micro_batches), (1, 1), found.step_s)

    assert found.joules_per_step == pytest.approx(found.watts["facility"] * found.step_s)
    assert found.watts["devices"] > 1.2 * idle["devices"]
    assert "J a token" in found.summary()
    for changes in ({"joules_per_step": 1.01 * found.joules_per_step}, {"watts": {**found.watts, "hosts": 0.0}}):
        assert verify_mixed(found.model_copy(update=changes), MODEL, CLUSTER).verdict == "refused"
    older = found.model_copy(update={"joules_per_step": None, "watts": {}})
    assert verify_mixed(older, MODEL, CLUSTER).verdict == "verified"


def test_a_pin_that_only_a_part_alone_can_have_plans_there():
    """Stages stay inside a scale-up domain, plans on one part need not; what neither can have is refused."""
    cluster = mixed_of(small_cluster(1, 2, base="dgx-a100"), small_cluster(1, 1, base="dgx-h100"))
    asked = {"seq_len": 2048, "global_batch": 4, "alternatives": 0}
    found = plan(MODEL, cluster, pins={"cp": 2}, **asked)

    assert found.status == "optimal" and found.alone.strategy.cp == 2
    assert found.objective == plan(MODEL, cluster.parts[0], pins={"cp": 2}, precision="bf16", **asked).objective
    assert verify_mixed(found, MODEL, cluster).verdict != "refused"
    with pytest.raises(BadInput, match=r"cp=4 is not legal in any stage; legal: 1"):
        plan(MODEL, cluster, pins={"cp": 4}, **asked)
