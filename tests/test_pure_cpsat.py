"""CP-SAT alone against enumeration and against the search: two formulations, one answer."""

from __future__ import annotations

import dataclasses
import itertools
import time

import pytest
from command import meshwright, refused
from hypothesis import given
from hypothesis import strategies as st
from oracle import best_of_all
from searching import options_of, space_of
from strategies import examples, instances, small_cluster, tiny_config
from test_search import close

from planner.api import plan
from planner.checks.verify import verify
from planner.errors import BadInput, InfeasiblePlan
from planner.search.pure_cpsat import PureSearch

MODEL = tiny_config(hidden_size=1024, num_attention_heads=8, num_hidden_layers=6, vocab_size=8192)


def pure_search(it, time_limit_s: float = 60.0) -> PureSearch | None:
    space = space_of(it)
    return None if space is None else PureSearch(space, options_of(it, time_limit_s), it.fits, it.ticks)


@examples(20)
@given(instances(most_devices=4))
def test_it_equals_enumeration(it):
    """Objectives, caps, pins, experts, interleaved plans: the best of all plans, proved, or none."""
    search = pure_search(it)
    if search is None:
        return
    everything, result = best_of_all(it).value, search.run()

    assert close(search.value, everything)
    assert result.proved
    assert result.bound_root <= everything


@examples(8)
@given(instances(most_layers=7, most_devices=3), st.sampled_from([(("pp", 2),), (("pp", 3),)]))
def test_uneven_stages(it, pins):
    it = dataclasses.replace(it, pins=(*pins, ("virtual_stages", 1)), headroom=0.0)
    search = pure_search(it)
    if search is not None:
        search.run()
        assert close(search.value, best_of_all(it).value)


@examples(12)
@given(instances(most_layers=4, most_devices=3), st.integers(1, 30))
def test_out_of_time_it_claims_no_more_than_it_proved(it, looks):
    search, clock = pure_search(it, float(looks)), itertools.count()
    if search is None:
        return
    everything = best_of_all(it).value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: float(next(clock)))
        result = search.run()

    assert result.bound <= everything * (1 + 1e-9)
    assert search.value >= everything * (1 - 1e-9)
    assert not result.proved or close(search.value, everything)


CASES = [
    (MODEL, small_cluster(4, 2), {"seq_len": 4096, "global_batch": 16, "pins": {"pp": 4}}),
    ("llama-3.2-1b", "dgx-h100:1", {"seq_len": 4096, "global_batch": 64, "pins": {"pp": 4, "virtual_stages": 1}}),
    ("llama-3.1-8b", "dgx-h100:1", {"seq_len": 4096, "global_batch": 64, "pins": {"pp": 8, "tp": 1, "dp": 1}}),
]


@pytest.mark.parametrize(("model", "cluster", "options"), CASES, ids=["tiny", "1b", "8b"])
def test_it_agrees_with_the_search_on_real_prices(model, cluster, options):
    one = plan(model, cluster, alternatives=0, solver="pure-cpsat", **options)
    other = plan(model, cluster, alternatives=0, **options)

    assert one.status == other.status == "optimal"
    assert one.objective == pytest.approx(other.objective, rel=1e-9)
    assert "pure-cpsat" in one.proof.solver
    assert "pure-cpsat" not in other.proof.solver


def test_its_plan_is_a_plan_like_any():
    """Checked, verified by the third derivation, written and read."""
    from planner.read_model import read_model

    cluster = small_cluster(2, 2)
    made = plan(MODEL, cluster, seq_len=2048, global_batch=8, solver="pure-cpsat")

    assert verify(type(made).from_json(made.to_json()), read_model(MODEL), cluster).verdict == "verified"
    assert made.options["solver"] == "pure-cpsat"


def test_nothing_fits_is_said_as_ever():
    with pytest.raises(InfeasiblePlan, match="no plan fits"):
        plan("tiny-llama", "cpu-local:1", solver="pure-cpsat", headroom=0.9999)


def test_the_command_takes_it():
    words = ("plan", "llama-3.2-1b", "--cluster", "dgx-h100:1", "--global-batch", "16", "--pin", "tp=1,cp=1,pp=1")
    answer = meshwright(*words, "--solver", "pure-cpsat", "--json", "--alternatives", "0")

    assert answer.json["status"] == "optimal"
    assert "pure-cpsat" in answer.json["proof"]["solver"]
    assert "'default' or 'pure-cpsat'" in refused(*words, "--solver", "cplex")


def test_a_solver_that_is_not_one_is_refused():
    with pytest.raises(BadInput, match="solver='simplex'"):
        plan("llama-3.2-1b", "dgx-h100:1", solver="simplex")
