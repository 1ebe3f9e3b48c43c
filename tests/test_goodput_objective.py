"""The objective goodput: against enumeration, its bound, its proof by other code, fewer devices where they pay."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from command import meshwright
from costs import make_rows
from failures_oracle import failing, longer
from hypothesis import given
from hypothesis import strategies as st
from oracle import best_of_all
from searching import close, search_agrees, value_of
from strategies import examples, instances, small_cluster, tiny_config

from cost_models.checkpoints import checkpoint_bytes
from cost_models.estimate import estimate
from cost_models.goodput import longer_by_failures
from cost_models.rows import Rows
from cost_models.workload import Training
from planner import BadInput, Plan, plan
from planner.checks.verify import verify
from planner.errors import PlannerBug
from planner.limits import broken_limits
from planner.options import Options
from planner.read_model import read_config, read_model
from planner.search.bounds import objective_of
from planner.search.relax import packed
from topologies.catalogue import load
from topologies.cluster import Cluster
from topologies.ready import read_cluster

pytestmark = pytest.mark.usefixtures("steady")

MODEL, CLUSTER = read_model("llama-3.2-1b"), read_cluster("dgx-h100:8")
WORK = Training(seq_len=2048, global_batch=64)
SIZE = checkpoint_bytes(MODEL, WORK)
OFTEN = st.sampled_from([1.0, 1e4, 1e5, 3e5, 1e6, 1e8])
TINY = read_config(tiny_config(num_hidden_layers=3), "tiny")
WORDS = {"seq_len": 1024, "global_batch": 8, "alternatives": 0}


@examples(12)
@given(instances(most_layers=4, most_devices=4), OFTEN)
def test_the_search_equals_enumeration(it, often):
    """Of all plans the one that comes to the fewest seconds with failures, from none to one every few steps."""
    search_agrees(dataclasses.replace(it, objective="goodput", cluster=failing(it.cluster, often)))


@examples(5)
@given(instances(most_layers=3, most_devices=3), OFTEN, st.floats(1.0, 1.5))
def test_a_limit_on_seconds_with_failures(it, often, slack):
    """The least energy among plans within the slack, as two objectives in order ask for it."""
    it = dataclasses.replace(it, objective="goodput", cluster=failing(it.cluster, often))
    least = best_of_all(it).value
    if not np.isfinite(least):
        return
    limited = dataclasses.replace(it, objective="energy", limits=(("step-goodput", slack * least),))

    assert close(value_of(limited)[0], best_of_all(limited).value)


ROWS = Rows.concat([
    make_rows("pp", tp=8, pp=3), make_rows("pp dp_shard", tp=4, dp_shard=2, pp=3),
    make_rows("dp_replicate", dp_replicate=8), make_rows(tp=2), make_rows("tp", tp=7),
])  # fmt: skip
STORES = ["superpod", "tectonic", "local-nvme", "tape"]


def writing_to(cluster, store):
    """The cluster with that store; ``tape`` is one that takes most of an hour."""
    found = load("stores", "superpod" if store == "tape" else store)
    slow = found.figures.host_write_bandwidth.model_copy(update={"value": 1e6})
    figures = found.figures.model_copy(update={"host_write_bandwidth": slow} if store == "tape" else {})
    return dataclasses.replace(cluster, store=found.model_copy(update={"figures": figures}))


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("often", [1e-3, 1.0, 1e3, 1e5, 1e9])
def test_longer_by_failures_against_tried_intervals(store, often):
    cluster = writing_to(failing(CLUSTER, often), store)
    hosts = [3, 6, 8, 1, 7]

    expected = [longer(MODEL, cluster, WORK, int(n), h) for n, h in zip(ROWS.world_size, hosts, strict=True)]
    assert longer_by_failures(ROWS, cluster, SIZE) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("often", [1.0, 1e4, 1e6])
def test_no_placement_beats_the_bound_of_none(store, often):
    """Fewest hosts to fail and most to write with; 8 devices on 8 hosts write quicker than on one."""
    cluster = writing_to(failing(CLUSTER, often), store)

    least = longer_by_failures(packed(ROWS, cluster), cluster, 100 * SIZE, placed=False)
    assert np.all(least <= longer_by_failures(ROWS, cluster, 100 * SIZE))
    assert np.all(least >= 1)


def test_a_job_that_writes_from_more_hosts_may_finish_sooner():
    """Why the bound looks at the most hosts: where devices alone fail, one host writes for longer than eight."""
    one, many, often = make_rows(tp=8), make_rows("tp", tp=8), failing(CLUSTER, 1e4)
    figures = often.fleet.figures
    never = {name: getattr(figures, name).model_copy(update={"value": 0.0}) for name in OTHERS}
    fleet = often.fleet.model_copy(update={"figures": figures.model_copy(update=never)})
    slow = dataclasses.replace(often, fleet=fleet)

    quicker = longer_by_failures(many, slow, 100 * SIZE)[0]
    assert quicker < longer_by_failures(one, slow, 100 * SIZE)[0]
    assert longer_by_failures(packed(one, slow), slow, 100 * SIZE, placed=False)[0] <= quicker


OTHERS = ("host_failures", "network_failures", "software_failures")


def test_nobody_asks_without_the_bytes_of_a_checkpoint():
    with pytest.raises(PlannerBug, match="nothing says how large a checkpoint is"):
        objective_of(ROWS, CLUSTER, Options(objective="goodput"))


@pytest.fixture(scope="module")
def chosen() -> tuple[Plan, Plan, Cluster]:
    """The quickest step and the fewest seconds with failures, on a cluster where something fails every few minutes."""
    cluster = failing(small_cluster(4, 2), 3e5)
    timed, kept = (plan(TINY, cluster, objective=name, **WORDS) for name in ("time", "goodput"))
    return timed, kept, cluster


def test_fewer_devices_may_train_sooner(chosen):
    timed, kept, _ = chosen

    assert (timed.status, kept.status) == ("optimal", "optimal")
    assert kept.cluster.devices_used < timed.cluster.devices_used
    assert kept.step_s > timed.step_s
    assert kept.goodput.effective_step_s < timed.goodput.effective_step_s
    assert kept.goodput.effective_tokens_per_s > timed.goodput.effective_tokens_per_s
    assert any("stay idle: using all" in note and "worse" in note for note in kept.notes)


def test_the_objective_is_the_seconds_that_a_step_comes_to(chosen):
    _, kept, cluster = chosen
    devices, hosts = kept.cluster.devices_used, kept.cluster.hosts_used

    assert kept.objective_name == "goodput"
    assert kept.objective == pytest.approx(kept.goodput.effective_step_s)
    assert kept.objective == pytest.approx(kept.step_s * longer(TINY, cluster, kept.workload, devices, hosts))
    assert kept.goodput.effective_step_s <= kept.step_s / kept.goodput.fraction * (1 + 1e-12)
    assert "goodput " in kept.summary() and "bound" in kept.summary()


def test_the_proof_is_derived_again(chosen):
    timed, kept, cluster = chosen
    better = {"objective": kept.objective * 0.9, "bound": kept.bound * 0.9}
    dearer = kept.model_copy(update={"options": {**kept.options, "checkpoint_bytes": 1.0}})

    assert verify(kept, TINY, cluster, time_limit_s=60).verdict == "verified"
    assert verify(dearer, TINY, cluster, time_limit_s=60).verdict == "verified"
    refused = verify(kept.model_copy(update=better), TINY, cluster, time_limit_s=60)
    assert any("objective is" in reason for reason in refused.reasons)
    claimed = timed.model_copy(
        update={
            "objective_name": "goodput", "objective": timed.goodput.effective_step_s,
            "bound": timed.goodput.effective_step_s, "options": {**timed.options, "objective": "goodput"},
        }
    )  # fmt: skip
    assert any("a plan of" in reason for reason in verify(claimed, TINY, cluster, time_limit_s=60).reasons)


def test_what_is_saved_does_not_hold_the_bytes(chosen):
    assert "checkpoint_bytes" not in chosen[1].options


def test_a_plan_above_a_limit_on_it_is_told_apart(chosen):
    _, kept, cluster = chosen
    found = estimate(TINY, cluster, kept.workload, kept.strategy.strategy())
    above, below = (Options(limits={"step-goodput": part * kept.goodput.effective_step_s}) for part in (0.99, 1.01))

    (complaint,) = broken_limits(found, above, kept.workload)
    assert "step-goodput is" in complaint and "above the limit" in complaint
    assert broken_limits(found, below, kept.workload) == []


def test_in_order_with_another(chosen):
    found = plan(TINY, chosen[2], objective="goodput,energy", slack="20%", **WORDS)

    first, last = found.proof.stages
    assert (first.minimises, last.minimises) == ("goodput", "energy")
    assert found.goodput.effective_step_s <= first.at_most * (1 + 1e-9)
    assert verify(found, TINY, chosen[2], time_limit_s=60).verdict == "verified"


def test_the_command_takes_it():
    answer = meshwright("plan", "tiny-llama", "-c", "cpu-local", "--objective", "goodput", "--json")

    assert answer.code == 0, answer.err
    assert answer.json["objective_name"] == "goodput"
    assert answer.json["goodput"]["effective_step_s"] == pytest.approx(answer.json["objective"])


def test_clocks_gain_nothing_from_it():
    with pytest.raises(BadInput, match="objective 'goodput' without a power cap weighs no joules"):
        plan(MODEL, CLUSTER, seq_len=2048, global_batch=64, objective="goodput", clocks=True)
