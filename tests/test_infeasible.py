"""When nothing fits: the arithmetic is right, every repair that is offered gives a plan, and it is quick."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from planner.api import plan
from planner.errors import BadInput, InfeasiblePlan
from planner.infeasible import repairs
from planner.limits import LIMITS
from planner.read_model import read_model
from topologies.ready import read_cluster
from topologies.resized import resized

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama-3.1-70b", "dgx-h100", {}),
    ("llama-3.1-405b", "dgx-h100:10", {}),
    ("llama-3.1-8b", "dgx-h100", {"headroom": 0.9}),
    ("llama-3.1-8b", "rtx-4090-host", {"headroom": 0.3}),
    ("llama-3.1-70b", "dgx-h100:4", {"pins": "dp=32,recompute=none"}),
    ("llama-3.1-70b", "dgx-h100:4", {"pins": "tp=1,pp=1,zero=0"}),
    ("llama-3.1-70b", "dgx-h100:4", {"power_cap": "9 kW"}),
    ("llama-3.1-70b", "dgx-h100:4", {"pins": "devices=31"}),
    ("llama-3.1-8b", "dgx-h100:2", {"limits": {"step-time": 20.0, "step-energy": 5e5}}),
    ("mixtral-8x22b", "dgx-h100:2", {}),
]


def no_plan(model: str, cluster: Any, **options: Any) -> InfeasiblePlan:
    with pytest.raises(InfeasiblePlan) as error:
        plan(model, cluster, **options)
    return error.value


def repaired(cluster: Any, options: dict[str, Any], changes: list[dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
    """The question with changes applied as their records say."""
    for change in changes:
        cluster, options = changed(cluster, options, change)
    return cluster, options


def changed(cluster: Any, options: dict[str, Any], change: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The question with one change applied."""
    knob, to = change["knob"], change["to"]
    if knob == "hosts":
        return resized(cluster, to), options
    if knob in LIMITS:
        return cluster, {**options, "limits": {**options["limits"], knob: to}}
    if knob in ("headroom", "power_cap", "seq_len", "tiers"):
        return cluster, {**options, knob: to}
    pins = dict(part.split("=") for part in options["pins"].split(","))
    assert knob in pins
    pins = {**pins, knob: to}
    return cluster, {**options, "pins": ",".join(f"{k}={v}" for k, v in pins.items() if v is not None)}


@pytest.mark.parametrize(
    ("model", "cluster", "options"),
    [*CASES[::4], *(pytest.param(*case, marks=pytest.mark.slow) for k, case in enumerate(CASES) if k % 4)],
)
def test_every_repair_gives_a_plan(model: str, cluster: str, options: dict[str, Any]):
    machine, graph = read_cluster(cluster), read_model(model)
    error = no_plan(model, cluster, **options)

    assert error.repairs, str(error)
    sets = [{(change["knob"], change["to"]) for change in repair["changes"]} for repair in error.repairs]
    assert not any(a <= b or b <= a for a, b in itertools.combinations(sets, 2))
    order = [(len(repair["changes"]), repair["size_doublings"]) for repair in error.repairs]
    assert order == sorted(order), "few changes before many, small before large"
    given = {"seq_len": min(8192, graph.max_positions), "time_limit_s": 4.0, "alternatives": 0} | options
    batch = 512 if "gpt3" not in model else 2048
    for repair in error.repairs:
        other, options = repaired(machine, given, repair["changes"])
        best = plan(model, other, global_batch=batch, **options)
        assert best.step_s <= repair["step_s"] * (1 + 1e-9) or best.status == "feasible", repair
        assert repair["need_bytes"] <= repair["limit_bytes"] == pytest.approx(best.memory[0].limit_bytes)
        assert repair["change"] in str(error)


def test_the_arithmetic_adds_up():
    message = str(no_plan("llama-3.1-70b", "dgx-h100:4", pins="dp=32,recompute=none"))
    found = re.search(r"needs ([0-9.]+) GB a device \((.*?)\), but h100-sxm leaves ([0-9.]+) GB", message)

    assert found is not None, message
    parts = [float(part.split()[-1]) for part in found[2].split(" + ")]
    assert sum(parts) == pytest.approx(float(found[1]), rel=0.02)
    assert float(found[3]) < float(found[1])


@pytest.mark.slow
def test_states_alone_may_show_that_nothing_fits():
    message = str(no_plan("llama-3.1-405b", "dgx-h100"))
    parameters = read_model("llama-3.1-405b").parameters

    assert f"{parameters:,} parameters at 18 bytes" in message
    assert f"{parameters * 18 / 8 / 1e9:.1f} GB each" in message


def test_a_machine_that_nothing_helps_says_what_was_tried():
    error = no_plan("llama-3.1-405b", "rtx-4090-host", pins="tp=1,pp=1,dp=1,cp=1")

    assert "devices of 'rtx-4090-host'" in str(error) or "GB" in str(error)
    assert error.space["pins"] == {"tp": 1, "pp": 1, "dp": 1, "cp": 1}


def test_a_pinned_number_of_replicas_does_not_hide_the_reason():
    """The leanest degrees of all have no 16 replicas; the power cap is why nothing fits, not memory."""
    message = str(no_plan("llama-3.1-8b", "dgx-h100:16", power_cap="5 kW", pins="dp_replicate=16"))

    assert "the power cap is 5.00 kW, but the smallest plan that fits draws" in message
    assert "power cap 26.0 kW" in message


def test_trials_that_the_clock_ends_are_not_said_to_have_failed(monkeypatch):
    monkeypatch.setattr(repairs, "REPAIR_SECONDS", 0.0)
    message = str(no_plan("llama-3.1-70b", "dgx-h100:4", pins="tp=1,pp=1,zero=0"))

    assert "the time for them ended before all were tried: headroom 2%" in message


def test_infeasible_as_json_says_so():
    record = no_plan("llama-3.1-70b", "dgx-h100").as_json()

    assert record.keys() == {"schema_version", "status", "message", "leanest", "repairs", "space"}
    assert record["status"] == "infeasible"


def test_contradicting_pins_are_bad_input():
    with pytest.raises(BadInput, match=r"8\*80\*64 = 40960"):
        plan("llama-3.1-70b", "dgx-h100:4", pins={"tp": 8, "pp": 80, "dp": 64})


def test_two_changes_where_neither_helps_alone():
    """8 pinned devices hold 159 GB of states each: more hosts are of no use to them, and without those no pin is."""
    pins = "devices=8"
    error = no_plan("llama-3.1-70b", "dgx-h100", pins=pins)

    assert error.repairs
    for repair in error.repairs:
        knobs = {change["knob"] for change in repair["changes"]}
        assert knobs == {"tiers"} or (knobs == {"devices", "hosts"} and len(repair["changes"]) == 2)


@pytest.mark.parametrize(("model", "cluster", "options"), [CASES[0], pytest.param(*CASES[4], marks=pytest.mark.slow)])
def test_no_part_of_a_set_is_enough(model: str, cluster: str, options: dict[str, Any]):
    """Each change of a pair without the other leaves nothing that fits."""
    machine, graph = read_cluster(cluster), read_model(model)
    given = {"seq_len": min(8192, graph.max_positions), "global_batch": 512, "time_limit_s": 20.0} | options
    pairs = [repair["changes"] for repair in no_plan(model, cluster, **options).repairs if len(repair["changes"]) > 1]

    assert pairs
    for change in itertools.chain(*pairs):
        other, fewer = repaired(machine, given, [change])
        no_plan(model, other, **fewer)


def test_the_leanest_plan_stands_in_the_record():
    error = no_plan("llama-3.1-70b", "dgx-h100:4", pins="dp=32,recompute=none")
    lean = error.as_json()["leanest"]

    assert sum(lean["classes"].values()) == pytest.approx(lean["need_bytes"])
    assert lean["need_bytes"] > lean["limit_bytes"]
