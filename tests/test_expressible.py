"""Plans restricted to what targets can express: pins that make them so, and the search over all of them."""

from __future__ import annotations

import math

import pytest
from command import meshwright
from plans import make_plan

from cost_models.workload import Training
from planner import plan
from planner.errors import BadInput, InfeasiblePlan, SearchGaveUp, Unsupported
from planner.export import EXPORTERS, export
from planner.export.within import pins_within, pins_within_all
from planner.expressible import Among, best_of_searches, ways_of
from planner.read_model import read_model

WORK = Training(seq_len=512, global_batch=16, precision="fp32")
SMALL = {"seq_len": 512, "global_batch": 16}


@pytest.mark.parametrize("target", EXPORTERS)
@pytest.mark.parametrize("model", ["tiny-llama", "mixtral-8x22b", "gpt2"])
def test_every_set_of_pins_is_consistent(target, model):
    ways = pins_within(target, read_model(model), WORK)

    assert ways
    assert all(pins_within_all((target,), read_model(model), WORK, way) for way in ways)


def test_sets_of_several_targets_hold_in_all():
    model = read_model("tiny-llama")
    together = pins_within_all(("torchtitan", "deepspeed"), model, WORK, {"micro_batch": 1})

    assert {one["zero"] for one in together} == {0, 1, 2, 3}
    assert all(one["recompute"] == "none" and one["pp"] == 1 and one["micro_batch"] == 1 for one in together)
    assert pins_within_all(("lightning",), model, WORK, {"pp": 2}) == []
    assert pins_within_all(("torchrun", "slurm"), model, WORK, {}) == [{}]


def best_of(targets, search):
    return best_of_searches(ways_of(Among(targets), read_model("tiny-llama"), WORK, {}), targets, {}, search, 60.0)


@pytest.mark.parametrize("target", ["megatron", "deepspeed", "maxtext"])
def test_the_best_of_all_searches_and_expressible(target):
    """No plan that the target can express, under any of its sets of pins, beats the one that is found."""
    found = plan("tiny-llama", "cpu-local:1", targets=(target,), alternatives=0, **SMALL)
    export(found, (target,))
    best = math.inf
    for pins in pins_within(target, read_model("tiny-llama"), WORK):
        try:
            other = plan("tiny-llama", "cpu-local:1", pins=pins, alternatives=0, **SMALL)
            export(other, (target,))
        except (InfeasiblePlan, BadInput, Unsupported):
            continue
        best = min(best, other.objective)

    assert found.objective == best
    assert found.notes[-1].startswith(f"the best that {target} can express")
    assert f"of {len(pins_within(target, read_model('tiny-llama'), WORK))} searches: " in found.notes[-1]
    assert "a better one may be" not in found.notes[-1]
    assert found.proof.space["pins"] == found.options["pins"] != {}


def test_a_plan_that_pins_did_not_make_expressible_is_passed_over():
    """Every search finds a quicker plan with cp across domains, which torchtitan cannot, but one."""
    split = {axis: [1, 1] for axis in ("tp", "pp", "dp_replicate")} | {"cp": [1, 2], "dp_shard": [2, 1]}

    def search(pins, seconds):
        assert 0 < seconds <= 60
        kind = pins["recompute"]
        if pins == {"zero": 3, "pp": 1, "recompute": "full"}:
            return make_plan(dp_shard=4, zero=3, recompute=kind).model_copy(update={"objective": 9.0})
        return make_plan(cp=2, dp_shard=2, zero=pins["zero"] or 3, placement=split, recompute=kind)

    found = best_of(("torchtitan",), search)

    assert found.objective == 9.0
    assert "zero=3,pp=1,recompute=none 1 (refused); zero=3,pp=1,recompute=full 9;" in found.notes[-1]
    assert found.notes[-1].endswith("a better one may be among those that were refused or cut short")


def test_ctrl_c_leaves_the_best_of_the_searches_that_had_a_plan():
    """With no claim about those that had none; where none had, it passes through."""

    def search_until(number):
        left = list(range(number))

        def search(pins, seconds):
            if not left:
                raise KeyboardInterrupt
            return make_plan(dp_shard=4, zero=3).model_copy(update={"objective": 9.0 - left.pop(0)})

        return search

    found = best_of(("lightning",), search_until(1))

    assert (found.objective, found.status, found.bound) == (9.0, "feasible", 0.0)
    assert "has none so far" in found.notes[-1] and found.notes[-1].endswith("refused or cut short")
    with pytest.raises(KeyboardInterrupt):
        best_of(("lightning",), search_until(0))


def test_searches_that_all_fail():
    """A refusal or a limit comes before "nothing fits", which it leaves open."""

    def search_with(errors):
        left = list(errors)

        def search(pins, seconds):
            raise left.pop(0)

        return search

    def error(*errors):
        with pytest.raises(type(errors[-1])) as raised:
            best_of(("megatron",), search_with(errors))
        return str(raised.value)

    assert error(InfeasiblePlan("too large"), SearchGaveUp("too late")) == "too late"
    assert error(InfeasiblePlan("too large"), Unsupported("cp")) == "cp"
    assert error(BadInput("tp=3"), BadInput("tp=3")) == "tp=3"
    assert "can express (2 searches): too large" in error(BadInput("tp=3"), InfeasiblePlan("too large"))


def test_pins_that_rule_all_out():
    with pytest.raises(BadInput, match=r"no plan with the pins pp=2 can be expressed by lightning; take a pin away"):
        plan("tiny-llama", "cpu-local:1", targets=("lightning",), pins="pp=2", **SMALL)
    with pytest.raises(BadInput, match=r"can have the schedules zbv; take a pin away, or name another schedule$"):
        plan("tiny-llama", "cpu-local:1", schedules="zbv", pins="schedule=zb-h1", **SMALL)


def test_nothing_that_fits():
    with pytest.raises(InfeasiblePlan, match=r"of what lightning can express \(5 searches\): no plan fits"):
        plan("llama-3.1-405b", "dgx-h100:1", targets=("lightning",))


def test_several_objectives_are_not_searched_for_targets():
    with pytest.raises(BadInput, match="are searched for one objective, and 'time,energy' names several"):
        plan("tiny-llama", "cpu-local:1", targets=("megatron",), objective="time,energy", **SMALL)


def test_several_kinds_of_devices_have_no_target():
    with pytest.raises(BadInput, match="not searched for on mixed clusters"):
        plan("llama-3.1-8b", "dgx-a100:1+dgx-h100:1", targets=("megatron",))


def test_the_command(tmp_path):
    asked = ("plan", "tiny-llama", "--cluster", "cpu-local:1", "--alternatives", "0", "--out", str(tmp_path))
    found = meshwright(*asked, "--target", "maxtext", "--expressible")

    assert found.code == 0
    assert "the best that maxtext can express" in found.out
    assert (tmp_path / "maxtext.yml").exists()


def test_a_plan_that_is_refused_is_shown_all_the_same(tmp_path):
    asked = ("plan", "tiny-llama", "--cluster", "cpu-local:1", "--alternatives", "0", "--out", str(tmp_path / "out"))
    refused = meshwright(*asked, "--target", "maxtext", "--pin", "recompute=none")

    assert refused.code == 2
    assert "proved optimal" in refused.out
    assert "MaxText" in refused.err and "--pin recompute=selective" in refused.err
    assert not (tmp_path / "out").exists()
