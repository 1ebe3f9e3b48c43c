"""The verifier on plans with clocks: passed as planned, refused when tampered, bound derived with every clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from searching import rederiving_agrees
from strategies import examples, small_cluster, tiny_config
from test_search_clocks import clocked

from planner.api import plan
from planner.checks.verify import verify
from planner.errors import BadInput
from planner.read_model import read_config
from planner.result import Plan

pytestmark = pytest.mark.usefixtures("steady")

MODEL = read_config(tiny_config(hidden_size=1024, num_attention_heads=8, num_hidden_layers=6, vocab_size=8192), "small")
CLUSTER = small_cluster(4)
ASKED = {"seq_len": 4096, "global_batch": 16, "precision": "bf16", "clocks": True}
STAGES = {"pp": 3, "micro_batch": 1, "virtual_stages": 1}


@pytest.fixture(scope="module")
def thrifty() -> Plan:
    return plan(MODEL, CLUSTER, objective="energy", pins=STAGES, **ASKED)


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "energy"},
        {"power_cap": 7800.0},
        {"power_cap": 6000.0, "pins": STAGES},
        {"objective": "time,energy", "slack": 0.05},
        {"limits": {"device-power": 450.0}},
    ],
)
def test_plans_with_clocks_are_verified(options):
    made = plan(MODEL, CLUSTER, **ASKED, **options)
    report = verify(Plan.from_json(made.to_json()), MODEL, CLUSTER)

    assert made.strategy.clocks
    assert made.proof.space["axes"]["clock"]
    assert report.verdict == "verified", report.summary()
    assert report.bound == made.bound


def test_stages_differ_and_the_report_says_so(thrifty):
    assert len(set(thrifty.strategy.clocks)) > 1
    assert verify(thrifty, MODEL, CLUSTER).verdict == "verified"
    assert "of the full clock" in thrifty.summary()


TAMPERED = {
    "lower": lambda it: it.model_copy(update={"clocks": [0.8, 0.8, 0.8]}),
    "none": lambda it: it.model_copy(update={"clocks": []}),
    "too many": lambda it: it.model_copy(update={"clocks": [*it.clocks, 1.0]}),
    "no step": lambda it: it.model_copy(update={"clocks": [0.87, 0.87, 0.87]}),
    "swapped": lambda it: it.model_copy(update={"clocks": it.clocks[::-1]}),
    "above": lambda it: it.model_copy(update={"clocks": [1.5, 1.0, 1.0]}),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampered_clocks_are_refused(thrifty, name):
    changed = thrifty.model_copy(update={"strategy": TAMPERED[name](thrifty.strategy)})
    if changed.strategy == thrifty.strategy:
        pytest.skip("the clocks read alike from both ends")
    report = verify(changed, MODEL, CLUSTER)

    assert report.verdict == "refused"
    assert report.reasons
    assert name != "no step" or "the options allow 1.0, 0.95" in report.reasons[0]


def test_a_plan_that_did_not_look_at_clocks_is_not_the_best_of_those_that_do(thrifty):
    """Right in every number at full clock, but its options claim every clock."""
    full = plan(MODEL, CLUSTER, objective="energy", pins=STAGES, **{**ASKED, "clocks": False})
    claimed = full.model_copy(update={"options": thrifty.options, "proof": thrifty.proof})
    report = verify(claimed, MODEL, CLUSTER)

    assert report.verdict == "refused"
    assert "exists: tp=" in report.reasons[0]


@examples(8)
@given(clocked(), st.sampled_from([1 - 1e-9, 1.0001, 1.05]))
def test_rederiving_equals_enumeration(it, factor):
    rederiving_agrees(it, factor)


def test_clocks_without_anything_that_weighs_joules_are_refused():
    with pytest.raises(BadInput, match=r"weighs no joules.*power cap"):
        plan(MODEL, CLUSTER, **ASKED)
