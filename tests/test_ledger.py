"""Nothing gets lost: what comes into a stage is excluded, goes on, or is left open; and only what may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import best_of_all
from searching import run_by_looks, search_of
from strategies import examples, instances

from cost_models.calibration import calibrate
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner import plan
from planner.candidates import legal_space
from planner.checks.verify import verify
from planner.explanations.mine import inputs_of
from planner.options import Options
from planner.read_model import read_model
from planner.search.engine import Search
from topologies.ready import read_cluster

STAGES = ("meshes", "coarse", "degrees", "experts", "placements", "rows")


@examples(18)
@given(instances())
def test_every_row_is_somewhere_and_none_is_excluded_below_the_bound(it):
    search = search_of(it)
    if search is None:
        return
    result = search.run()
    gone = dict.fromkeys(STAGES, 0)
    for entry in result.excluded:
        gone[entry["stage"]] = gone.get(entry["stage"], 0) + entry["rows"]
        assert entry["least_bound"] is None or entry["least_bound"] >= result.bound * (1 - 1e-9)
        assert entry["reason"] != "open"
    for stage in STAGES:
        assert search.ledger.came.get(stage, 0) == gone[stage] + search.ledger.went.get(stage, 0)
    assert gone.get("evaluated", 0) == sum(not kept.point for kept in search.kept)


@examples(48)
@given(instances(most_layers=6, most_devices=4), st.integers(1, 60))
def test_cut_short_rows_in_hand_are_left_open(it, looks):
    """Ended at any look at the clock, all rows are somewhere, the best plan's among those left open or evaluated."""
    everything, search = best_of_all(it).value, search_of(it, float(looks))
    if search is None:
        return
    result = run_by_looks(search)
    gone = dict.fromkeys(STAGES, 0)
    for entry in result.excluded:
        gone[entry["stage"]] = gone.get(entry["stage"], 0) + entry["rows"]
    for stage in STAGES:
        assert search.ledger.came.get(stage, 0) == gone[stage] + search.ledger.went.get(stage, 0)
    assert gone.get("evaluated", 0) == sum(not kept.point for kept in search.kept)
    left = [entry["least_bound"] for entry in result.excluded if entry["reason"] == "open"]
    least = min([search.value, *left, *(kept.bound for kept in search.kept)])
    assert not search.ledger.came or least <= everything * (1 + 1e-9)


@pytest.mark.parametrize("looks", range(41, 70, 3))
def test_cut_short_in_the_proof_every_evaluated_row_is_closed_or_left_open(looks):
    """The search proves its plan at about the 70th look at the clock and begins to prove at the 40th."""
    model, cluster = read_model("llama-2-13b"), read_cluster("rtx-4090-host:2")
    workload = Training(seq_len=8192, global_batch=64)
    fits, ticks = calibrate(cluster, workload.stack), Ticks.of(model, cluster, workload)
    search = Search(legal_space(model, cluster, workload, {}), Options(time_limit_s=float(looks)), fits, ticks)

    result = run_by_looks(search)

    gone = sum(entry["rows"] for entry in result.excluded if entry["stage"] == "evaluated")
    assert gone == sum(not kept.point for kept in search.kept) > 4
    left = [entry["least_bound"] for entry in result.excluded if entry["reason"] == "open"]
    assert not result.proved and min([search.value, *left]) >= result.bound * (1 - 1e-9)


@pytest.fixture(scope="module")
def proved():
    return plan("llama-3.1-8b", "dgx-h100:2", global_batch=64, alternatives=0)


@examples(12)
@given(instances())
def test_rows_without_bounds_on_the_way_are_the_same_search(it):
    """Nothing is bounded before it is complete, and the best plan and the places of all rows are the same."""
    step, once = search_of(it), search_of(it)
    if step is None:
        return
    once.stepwise = False
    before, result = step.run(), once.run()
    assert (once.value, result.proved) == (step.value, before.proved)
    gone = sum(entry["rows"] for entry in result.excluded if entry["stage"] == "rows")
    assert once.ledger.came.get("rows", 0) == gone + once.ledger.went.get("rows", 0)


def test_the_summary_says_what_removed_how_many(proved):
    text = " ".join(proved.summary().split())

    assert "by their bound (least" in text
    assert "before CP-SAT" in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"least_bound": 0.5}, "have a least bound of 0.5", marks=pytest.mark.slow),
        pytest.param({"rows": 10**6}, "which is not all of them", marks=pytest.mark.slow),
        ({"reason": "open"}, "were left open"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_refused(proved, change: dict, says: str):
    entries = list(proved.proof.excluded)
    at = next(k for k, entry in enumerate(entries) if entry.stage == "meshes")
    entries[at] = entries[at].model_copy(update=change)
    wrong = proved.model_copy(update={"proof": proved.proof.model_copy(update={"excluded": entries})})

    assert verify(proved, *inputs_of(proved)).ok
    assert says in "; ".join(verify(wrong, *inputs_of(proved)).reasons)
