"""Energy on mixed clusters: the search over hosts and joules against enumeration."""

import dataclasses
import math
import time
from functools import lru_cache
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mixed_cases import CLUSTER, MODEL, TIGHT, problem_of
from mixed_oracle import MixedInstance, best_step
from strategies import examples
from test_mixed_bands import instance
from test_mixed_search import mixed_instances

from cost_models.mixed import evaluate_mixed
from cost_models.mixed_power import idle_host_w
from planner import plan
from planner.checks.rederive_energy import rederive_energy
from planner.checks.verify_mixed import verify_mixed
from planner.errors import BadInput, InfeasiblePlan
from planner.mixed.asked import Asked
from planner.mixed.check import broken
from planner.mixed.result import MixedPlan
from planner.search.budget import Budget
from planner.search.mixed import engine, packed, rent
from planner.search.mixed.pipelines import strategy_of
from planner.search.mixed.rent import RentSearch, Wanted
from planner.search.mixed.space import MixedSpace

pytestmark = pytest.mark.usefixtures("steady")

FREE = Asked("energy")
watts_of_two = st.tuples(st.sampled_from([0.01, 0.3, 1.0, 30.0]), st.sampled_from([0.01, 0.3, 1.0, 30.0]))


def idle_w(it: MixedInstance, factors) -> np.ndarray:
    """Watts of an idle host of every part, so many times those of its devices."""
    parts = zip(it.machine.cluster.parts, factors, strict=True)
    return np.array([part.devices_per_host * part.accelerator.figures.idle_power.value * by for part, by in parts])


def search_of(it: MixedInstance, watts: np.ndarray, minimised: str = "energy", limit_s: float = 30.0, **most):
    """A search for what no part has a price for."""
    space = MixedSpace(it.machine, dict(it.pins), it.limits, FREE)
    wanted = Wanted(minimised, np.zeros(len(watts)), watts=watts, **most)
    return RentSearch(space, Budget(time.monotonic() + limit_s), wanted)


def least(it: MixedInstance, watts, minimised: str, ticks: float = math.inf, energy: float = math.inf) -> float:
    """By enumeration: ticks, or ticks times watts, of pipelines strictly below both limits."""
    tick = it.machine.ticks.second

    def value(step, hosts, joules):
        spent = step * (watts @ hosts) + joules / tick
        return np.where((step < ticks) & (spent < energy), step if minimised == "time" else spent, math.inf)

    return best_step(it, value, joules=True)[0]


@given(mixed_instances(), watts_of_two, st.floats(0.3, 1.5), st.sampled_from([1.0, rent.WIDEST, 1e9]), st.booleans())
@examples(10)
def test_the_thriftiest_pipeline_is_that_of_enumeration(it, factors, share, widest, narrow):
    """Also with a step that must be quicker than the thriftiest one's; wherever outlines are asked, and with beams so
    narrow that jobs are cut into bands and labels stand for others."""
    watts = idle_w(it, factors)
    free = search_of(it, watts).run()
    truth = least(it, watts, "energy")
    assert free.proved
    assert free.value == pytest.approx(truth, rel=1e-9)
    assert free.bound <= truth * (1 + 1e-11)
    assume(free.best is not None)
    strategy = strategy_of(free.table, free.best)
    priced = evaluate_mixed(it.machine, strategy)
    assert broken(it.machine, strategy, priced, it.limits) == []

    ticks = share * priced.step
    widths = {"FIRST_WIDTH": 1, "WIDER": 3} if narrow else {"WIDER": engine.WIDER}
    with patch.object(rent, "WIDEST", widest), patch.multiple(engine, **widths), patch.object(packed, "MOST_UNITS", 6):
        found = search_of(it, watts, ticks=ticks).run()
    truth = least(it, watts, "energy", ticks=ticks)
    assert found.proved
    assert found.bound <= truth * (1 + 1e-11)
    assert found.value == pytest.approx(truth, rel=1e-9)
    assert (found.best is None) == math.isinf(truth)


@given(mixed_instances(), watts_of_two, st.floats(0.8, 2.0))
@examples(10)
def test_the_quickest_pipeline_within_an_energy_is_that_of_enumeration(it, factors, share):
    watts = idle_w(it, factors)
    thriftiest = least(it, watts, "energy")
    assume(math.isfinite(thriftiest))
    most = share * thriftiest
    found, truth = search_of(it, watts, "time", energy=most).run(), least(it, watts, "time", energy=most)

    assert found.proved
    assert found.bound <= truth
    assert found.value == truth


def test_joules_of_stages_choose_among_pipelines():
    """Where hosts draw hardly anything idle, so that the pipeline with the shortest step is not the thriftiest."""
    it = instance(0.3)
    watts = idle_w(it, (0.01, 0.01))
    found = search_of(it, watts).run()

    assert found.proved
    assert found.value == pytest.approx(least(it, watts, "energy"), rel=1e-9)


@pytest.mark.slow
@given(mixed_instances(), st.sampled_from(["energy", "time"]), st.floats(0.9, 2.0))
@examples(10)
def test_the_bound_is_derived_again_by_other_means(it, minimised, share):
    """Nothing is below the least of enumeration, and a claim above it is contradicted or said not to be derived."""
    watts, tick = np.array([idle_host_w(part) for part in it.machine.cluster.parts]), it.machine.ticks.second
    thriftiest = least(it, watts, "energy")
    assume(math.isfinite(thriftiest))
    most = {"energy": share * thriftiest} if minimised == "time" else {}
    truth = least(it, watts, minimised, **most)
    assume(math.isfinite(truth))
    asked = Asked(minimised, None, most_j=most.get("energy", math.inf) * tick, idle_w=tuple(watts))

    right = rederive_energy(problem_of(it), asked, truth * tick * (1 - 1e-9))
    assert right.bound <= truth * tick
    assert not right.counter_example
    wrong = rederive_energy(problem_of(it), asked, truth * tick * 1.01)
    assert wrong.bound <= truth * tick * (1 + 1e-9)
    assert not wrong.complete or wrong.counter_example
    assert wrong.counter_example_value >= truth * tick * (1 - 1e-9)


ASKED = {"seq_len": 2048, "global_batch": 16, "precision": "bf16", "headroom": TIGHT, "alternatives": 0}


def test_the_thriftiest_plan_takes_no_more_than_that_of_a_part():
    found = plan(MODEL, CLUSTER, objective="energy", **ASKED)

    assert (found.status, found.objective_name) == ("optimal", "energy")
    assert found.objective == pytest.approx(found.joules_per_step)
    for part in CLUSTER.parts:
        assert found.objective <= plan(MODEL, part, objective="energy", **ASKED).objective * (1 + 1e-9)
    assert MixedPlan.from_json(found.to_json()) == found
    assert plan(MODEL, CLUSTER, objective="tokens-per-joule", **ASKED).objective == pytest.approx(found.objective)
    assert verify_mixed(found, MODEL, CLUSTER).verdict == "verified"


@lru_cache(maxsize=1)
def quick_and_thrifty() -> tuple[MixedPlan, MixedPlan]:
    """The quickest plan, and the thriftiest with both parts in use, for it may be no slower than half way."""
    quick, thrifty = (plan(MODEL, CLUSTER, objective=name, **ASKED) for name in ("time", "energy"))
    assert quick.step_s < thrifty.step_s and thrifty.joules_per_step < quick.joules_per_step
    return quick, thrifty


def test_limits_on_time_and_on_energy_trade_one_for_the_other():
    quick, thrifty = quick_and_thrifty()
    between = (quick.step_s + thrifty.step_s) / 2, (quick.joules_per_step + thrifty.joules_per_step) / 2
    timed = plan(MODEL, CLUSTER, objective="energy", limits={"step-time": between[0]}, **ASKED)
    spent = plan(MODEL, CLUSTER, limits={"step-energy": between[1]}, **ASKED)

    assert {timed.status, spent.status} == {"optimal"}
    assert timed.step_s <= between[0]
    assert thrifty.joules_per_step <= timed.joules_per_step <= quick.joules_per_step * (1 + 1e-9)
    assert spent.joules_per_step <= between[1]
    assert quick.step_s <= spent.step_s <= thrifty.step_s
    for one in (timed, spent):
        report = verify_mixed(one, MODEL, CLUSTER)
        assert report.verdict != "refused", report.reasons
    for limits in ({"step-time": 0.9 * quick.step_s}, {"step-energy": 0.9 * thrifty.joules_per_step}):
        with pytest.raises(InfeasiblePlan, match=r"the least step-.* of any plan is .* above the limit"):
            plan(MODEL, CLUSTER, limits=limits, **ASKED)


def test_energy_after_time_is_the_least_within_the_slack():
    quick, thrifty = quick_and_thrifty()
    slack = 0.5 * (thrifty.step_s / quick.step_s - 1)
    found = plan(MODEL, CLUSTER, objective="time,energy", slack=slack, **ASKED)
    alike = plan(MODEL, CLUSTER, objective="energy", limits={"step-time": (1 + slack) * quick.step_s}, **ASKED)

    assert [stage.minimises for stage in found.proof.stages] == ["time", "energy"]
    assert found.objective == pytest.approx(alike.objective)
    assert found.step_s <= (1 + slack) * quick.step_s * (1 + 1e-9)


def test_hosts_that_draw_next_to_nothing_idle_are_refused():
    """There is no tick of what they draw to count joules in."""
    part = CLUSTER.parts[1]
    figures = {"idle_power": part.accelerator.figures.idle_power.model_copy(update={"value": 0.0})}
    accelerator = part.accelerator.model_copy(update={"figures": part.accelerator.figures.model_copy(update=figures)})
    power = part.host.figures.model_copy(update={"power": part.host.figures.power.model_copy(update={"value": 0.0})})
    ports = part.fabric.figures.power_per_port.model_copy(update={"value": 0.0})
    fabric = part.fabric.figures.model_copy(update={"power_per_port": ports})
    free = dataclasses.replace(
        part, accelerator=accelerator, host=part.host.model_copy(update={"figures": power}),
        fabric=part.fabric.model_copy(update={"figures": fabric}),
    )  # fmt: skip

    for asked in ({"objective": "energy"}, {"objective": "time,energy"}, {"limits": {"step-energy": 1e3}}):
        with pytest.raises(BadInput, match=r"one of part 'part-1' draws 0 W, below 0.1% of the \S+ W that its devices"):
            plan(MODEL, CLUSTER.with_part(1, free), **ASKED, **asked)
    with pytest.raises(BadInput, match=r"objective energy counts what hosts draw idle, and those of 'part-1' draw 0 W"):
        plan(MODEL, free, objective="energy", **ASKED)


@pytest.mark.parametrize("factors", [(1e-9, 1e-9), (1e-9, 1.0), (1.0, 1e-9)])
def test_joules_past_what_is_counted_prove_nothing(factors):
    """Of hosts that draw a billionth of what they do idle: no bound is above the least, no plan is said to be it."""
    it = instance(0.3)
    watts = idle_w(it, factors)
    found, truth = search_of(it, watts).run(), least(it, watts, "energy")

    assert found.bound <= truth
    assert found.value >= truth
    assert not found.proved or found.value == pytest.approx(truth, rel=1e-9)


TAMPERED = {
    "joules": lambda p: (
        {name: 0.9 * getattr(p, name) for name in ("joules_per_step", "objective", "bound")}
        | {"proof": p.proof.model_copy(update={"bound_root": 0.0})},
        "joules_per_step is",
    ),
    "objective": lambda p: ({"objective": 0.9 * p.objective}, "the energy of the step is"),
    "quantity": lambda p: ({"objective_name": "time"}, "the time of the step is"),
    "bound": lambda p: ({"bound": 1.01 * p.bound}, "is above the objective"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_tampered_energies_are_refused(name):
    quick, _ = quick_and_thrifty()
    saved = plan(MODEL, CLUSTER, objective="energy", limits={"step-time": 1.01 * quick.step_s}, **ASKED)
    assert saved.stages
    changes, says = TAMPERED[name](saved)
    report = verify_mixed(saved.model_copy(update=changes), MODEL, CLUSTER)

    assert report.verdict == "refused"
    assert says in "; ".join(report.reasons)
