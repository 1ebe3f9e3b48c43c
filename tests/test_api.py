"""``plan()`` and ``estimate()``: what is pinned is held, limits are kept, and what cannot be read is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import clusters, examples, models, workloads

import planner
from cost_models.intervals import told_apart_log
from planner import BadInput, InfeasiblePlan, Plan, PlannerError, SearchGaveUp, UnknownName, estimate, plan
from planner.errors import PlannerBug
from planner.explanations.mine import inputs_of
from planner.read_model import PRESETS, read_model
from topologies.ready import CLUSTERS, read_cluster

CHEAP = {"time_limit_s": 20.0, "alternatives": 0}
PINS = [
    {"tp": 4}, {"pp": 4}, {"cp": 2}, {"dp": 2}, {"zero": 0}, {"zero": 3}, {"recompute": "full"}, {"recompute": "none"},
    {"micro_batch": 2}, {"virtual_stages": 2}, {"devices": 4}, {"dp_shard": 2, "dp_replicate": 2},
    {"tp": 2, "pp": 2, "dp": 2},
]  # fmt: skip


@pytest.fixture(scope="module")
def small() -> Plan:
    """Eight billion parameters on one host."""
    return plan("llama-3.1-8b", "dgx-h100")


def value_of(it: Plan, name: str) -> int | str:
    s = it.strategy
    if name == "recompute":
        return next(iter({kind for stage in s.recompute for _, kind in stage}))
    return {"dp": s.dp_replicate * s.dp_shard, "devices": it.cluster.devices_used}.get(name, getattr(s, name, 0))


def test_two_names_are_enough_and_what_is_assumed_is_said(small: Plan):
    assert small.status == "optimal"
    assert small.gap == 0
    assert small.objective == small.bound == small.step_s
    assert len([note for note in small.notes if "assumed" in note]) == 3


def test_a_plan_says_what_binds_and_what_else_there_was(small: Plan):
    assert small.binding
    assert len(small.alternatives) >= 2
    losses = [other.loses_fraction for other in small.alternatives]
    assert losses == sorted(losses)
    assert losses[0] >= 0
    assert all(other.reason for other in small.alternatives)
    assert 0.05 <= small.memory_headroom_fraction < 1


def test_a_proof_names_its_space_and_model(small: Plan):
    assert small.space == small.proof.space
    assert small.space["axes"]["tp"] == [1, 2, 4, 8]
    assert small.proof.model_digest == small.model.digest == read_model("llama-3.1-8b").digest
    assert small.proof.bound_root <= small.bound


def test_near_alternatives_are_said_to_be_near(small: Plan):
    apart = told_apart_log()
    near = [other for other in small.alternatives if math.log(other.step_s / small.step_s) < apart]

    assert bool(near) == any(note.startswith("cannot be told apart") for note in small.notes)


@pytest.mark.parametrize("pins", PINS, ids=str)
def test_what_is_pinned_is_held(small: Plan, pins: dict):
    held = plan("llama-3.1-8b", "dgx-h100", pins=pins, **CHEAP)

    assert {name: value_of(held, name) for name in pins} == pins
    assert held.status == "optimal"
    assert held.objective >= small.objective * (1 - 1e-9)


def test_pins_are_a_dictionary_or_text():
    one, other = (plan("llama-3.1-8b", "dgx-h100", pins=p, **CHEAP) for p in ({"tp": 8, "zero": 0}, "tp=8,zero=0"))

    assert one.strategy == other.strategy


@pytest.mark.parametrize("objective", ["time", "energy", "money"])
def test_no_objective_beats_its_own_plan(small: Plan, objective: str):
    best = plan("llama-3.1-8b", "dgx-h100", objective=objective, **CHEAP)

    named = {"time": small.step_s, "energy": small.joules_per_step, "money": small.usd_per_step}
    assert best.objective_name == objective
    assert best.objective <= named[objective] * (1 + 1e-9)


def test_a_power_cap_is_kept_and_costs_time(small: Plan):
    cap = 0.8 * small.watts["facility"]
    capped = plan("llama-3.1-8b", "dgx-h100", power_cap=f"{cap / 1e3} kW", **CHEAP)

    assert capped.watts["facility"] <= cap * (1 + 1e-9)
    assert capped.step_s > small.step_s
    assert capped.options["power_cap_w"] == pytest.approx(cap)


def test_headroom_is_left_free():
    spare = plan("llama-3.1-8b", "dgx-h100", headroom=0.4, **CHEAP)

    assert spare.memory_headroom_fraction >= 0.4
    assert all(stage.need_bytes <= stage.limit_bytes for stage in spare.memory)


def test_money_without_a_price_is_electricity_and_says_so():
    it = plan("llama-3.1-8b", "gb200-nvl72:1", objective="money", pins="devices=4", **CHEAP)
    tariff = read_cluster("gb200-nvl72:1").facility.figures.electricity_price.value

    assert it.usd_per_step == pytest.approx(it.joules_per_step / 3.6e6 * tariff)
    assert any("electricity alone" in note for note in it.notes)


def test_idle_devices_are_explained():
    it = plan("llama-3.1-8b", "gb200-nvl72:1", objective="money", **CHEAP)

    assert it.cluster.devices_used < 72
    assert any(f"{72 - it.cluster.devices_used} of 72 devices stay idle" in note for note in it.notes)


def test_progress_hears_of_the_incumbent_and_the_bound():
    heard: list[tuple[str, float, float]] = []
    it = plan("llama-3.1-8b", "dgx-h100", progress=lambda *said: heard.append(said), **CHEAP)

    assert heard
    assert all(bound <= best for _, best, bound in heard)
    assert min(best for _, best, _ in heard) >= it.objective * (1 - 1e-9)


def test_an_interrupt_passes_through():
    def stop(stage: str, best: float, bound: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan("llama-3.1-8b", "dgx-h100", progress=stop)


def test_paths_content_and_objects_mean_the_same(tmp_path: Path, small: Plan):
    folder = tmp_path / "llama-3.1-8b"
    folder.mkdir()
    (folder / "config.json").write_text((PRESETS / "llama-3.1-8b.json").read_text())
    (tmp_path / "own.toml").write_text((CLUSTERS / "dgx-h100.toml").read_text())
    config = json.loads((folder / "config.json").read_text())

    for model in (folder, folder / "config.json", config, read_model("llama-3.1-8b")):
        for cluster in (tmp_path / "own.toml", read_cluster("dgx-h100")):
            assert plan(model, cluster, **CHEAP).strategy == small.strategy
    it = plan(folder, tmp_path / "own.toml", **CHEAP)
    assert inputs_of(Plan.from_json(it.to_json()))[1].digest == it.cluster.digest


def test_a_strategy_in_any_form_costs_the_same(small: Plan):
    strategy = small.strategy.strategy()
    priced = estimate("llama-3.1-8b", "dgx-h100", strategy)

    assert priced.step_s == small.step_s
    assert priced.need_bytes == tuple(stage.need_bytes for stage in small.memory)
    words = {"tp": 2, "pp": 4, "recompute": "full"}
    text = "tp=2,pp=4,recompute=full"
    assert estimate("llama-3.1-8b", "dgx-h100", words).step_s == estimate("llama-3.1-8b", "dgx-h100", text).step_s


def test_a_strategy_is_priced_whether_or_not_it_fits():
    priced = estimate("llama-3.1-405b", "dgx-h100", "tp=8", power_cap="20 kW", seq_len=4096, global_batch=8)

    assert max(priced.need_bytes) > priced.memory_limit_bytes
    assert priced.watts["facility"] <= 20e3 * (1 + 1e-9)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: plan("llama-3.1-8", "dgx-h100"), "llama-3.1-8b"), (lambda: plan(5, "dgx-h100"), "found 5"),
        (lambda: plan("llama-3.1-8b", 5), "cluster"), (lambda: plan("llama-3.1-8b", "dgx-h100", pins=7), "pins"),
        (lambda: plan("llama-3.1-8b", "dgx-h100", power_cap="700"), "700 kW"),
        (lambda: plan("llama-3.1-8b", "dgx-h100", power_cap=math.nan), "power_cap_w=nan"),
        (lambda: plan("llama-3.1-8b", "dgx-h100", headroom=math.nan), "headroom=nan"),
        (lambda: plan("llama-3.1-8b", "dgx-h100", time_limit_s=-1), "time_limit_s=-1"),
        (lambda: plan("llama-3.1-8b", "dgx-h100", objective="fun"), "'energy'"),
        (lambda: plan({}, "dgx-h100"), "model_type"),
        (lambda: plan("llama-3.1-8b", "dgx-h100", seq_len=0), "seq_len=0"),
        (lambda: estimate("llama-3.1-8b", "dgx-h100", "tp=3"), "3"),
        (lambda: estimate("llama-3.1-8b", "dgx-h100", "tp=8,zero=3"), "zero=3 shards over"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(call, says: str):
    with pytest.raises((BadInput, UnknownName), match=says):
        call()


def test_time_that_is_too_short_gives_up_or_an_honest_gap():
    try:
        it = plan("llama-3.1-70b", "dgx-h100:4", time_limit_s=0.01)
    except SearchGaveUp as error:
        assert "degree tuples" in str(error)
    else:
        assert it.bound <= it.objective


ASKED = {"seq_len", "global_batch", "precision", "optimizer"}


@examples(80)
@given(models(), clusters(), workloads(), st.dictionaries(
    st.sampled_from(["tp", "cp", "pp", "dp", "dp_shard", "ep", "zero", "micro_batch", "virtual_stages", "devices"]),
    st.integers(1, 4), max_size=4,
))  # fmt: skip
def test_any_pins_give_a_plan_that_holds_them_or_a_clear_refusal(model, cluster, workload, pins):
    try:
        it = plan(model, cluster, pins=pins, time_limit_s=5, alternatives=1, **workload.model_dump(include=ASKED))
    except PlannerError as error:
        assert not isinstance(error, PlannerBug)
        assert isinstance(error, BadInput | InfeasiblePlan | SearchGaveUp)
        return
    assert {name: value_of(it, name) for name in pins} == pins
    assert Plan.from_json(it.to_json()) == it


def test_everything_public_can_be_imported():
    assert all(getattr(planner, name) for name in planner.__all__)
    with pytest.raises(AttributeError, match="no attribute 'pln'"):
        _ = planner.pln


def test_planning_imports_neither_torch_nor_plots():
    heavy = "{'torch', 'matplotlib'} & {*sys.modules}"
    code = f"import sys, planner; planner.plan('tiny-llama', 'cpu-local'); print({heavy})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout == "set()\n"


def test_an_alternative_loses_no_more_than_its_kind_must(small: Plan):
    for other in small.alternatives[:2]:
        it = other.strategy
        pins = {"tp": it.tp, "cp": it.cp, "pp": it.pp, "dp": it.dp_replicate * it.dp_shard}
        best = plan("llama-3.1-8b", "dgx-h100", pins=pins, **CHEAP)
        assert best.objective / small.objective - 1 == pytest.approx(other.loses_fraction, rel=0.2, abs=0.003)
