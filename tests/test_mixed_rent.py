"""Rent and limits on mixed clusters: the search over hosts against enumeration, plans end to end, what is refused."""

import dataclasses
import itertools
import math
import time
from functools import lru_cache, partial
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mixed_cases import CLUSTER, MODEL, TIGHT, problem_of
from mixed_oracle import best_step
from strategies import examples
from test_mixed_search import mixed_instances

from planner import plan
from planner.checks import rederive_rent as rederive_rent_module
from planner.checks.rederive_rent import rederive_rent
from planner.checks.verify_mixed import verify_mixed
from planner.errors import BadInput, InfeasiblePlan
from planner.mixed.asked import Asked
from planner.mixed.result import MixedPlan
from planner.search.budget import Budget
from planner.search.mixed import alone as alone_module
from planner.search.mixed import rent
from planner.search.mixed.pipelines import durations
from planner.search.mixed.rent import RentSearch, Wanted
from planner.search.mixed.space import MixedSpace

pytestmark = pytest.mark.usefixtures("steady")

rates_of_two = st.tuples(st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([0.5, 1.0, 4.0]))


def search_of(it, wanted: Wanted, limit_s: float = 30.0) -> RentSearch:
    return RentSearch(MixedSpace(it.machine, dict(it.pins), it.limits), Budget(time.monotonic() + limit_s), wanted)


def least(it, rates, minimised: str, ticks: float = math.inf, most: float = math.inf) -> float:
    """By enumeration: ticks, or ticks times the rent of the hosts in use, of pipelines strictly below both limits."""

    def value(step, hosts, joules):
        paid = step * (np.array(rates) @ hosts)
        return np.where((step < ticks) & (paid < most), step if minimised == "time" else paid, math.inf)

    return best_step(it, value)[0]


@given(mixed_instances(), rates_of_two, st.floats(0.3, 1.5), st.sampled_from([1.0, rent.WIDEST, 1e9]))
@examples(10)
def test_the_cheapest_pipeline_is_that_of_enumeration(it, rates, share, widest):
    """Also with a step that must be quicker than the cheapest one's; wherever outlines are asked."""
    free = search_of(it, Wanted("money", np.array(rates))).run()
    assert free.proved
    assert free.value == pytest.approx(least(it, rates, "money"), rel=1e-9)
    assume(free.best is not None)
    ticks = share * durations(free.table, free.best).step

    with patch.object(rent, "WIDEST", widest):
        found = search_of(it, Wanted("money", np.array(rates), ticks=ticks)).run()
    truth = least(it, rates, "money", ticks=ticks)
    assert found.proved
    assert found.bound <= truth * (1 + 1e-9)
    assert found.value == pytest.approx(truth, rel=1e-9)
    assert (found.best is None) == math.isinf(truth)


@given(mixed_instances(), rates_of_two, st.floats(0.5, 1.5))
@examples(10)
def test_the_quickest_pipeline_within_a_rent_is_that_of_enumeration(it, rates, share):
    quickest = least(it, rates, "time")
    assume(math.isfinite(quickest))
    most = share * quickest * sum(rates)
    found, truth = search_of(it, Wanted("time", np.array(rates), rent=most)).run(), least(it, rates, "time", most=most)

    assert found.proved
    assert found.bound <= truth
    assert found.value == truth


FEW = ((1, 1), (1, 2))
rates_of_three = st.tuples(*[st.sampled_from([0.1, 1.0, 1.3, 10.0])] * 3)


@pytest.mark.slow
@given(mixed_instances(FEW, FEW, FEW, most_layers=4), rates_of_three, st.floats(0.9, 2.0))
@examples(24)
def test_of_three_parts_the_cheapest_pipeline_is_that_of_enumeration(it, rates, share):
    """Within a time and a rent near those of the quickest, of prices that differ up to a hundredfold."""
    quickest = least(it, rates, "time")
    assume(math.isfinite(quickest))
    most = {"ticks": share * quickest, "rent": share * quickest * sum(rates)}
    found = search_of(it, Wanted("money", np.array(rates), **most)).run()
    truth = least(it, rates, "money", *most.values())

    assert found.proved
    assert found.bound <= truth * (1 + 1e-9)
    assert found.value == pytest.approx(truth, rel=1e-9)


HOSTS = ((1, 1), (1, 2), (1, 3), (1, 4))
counts = st.tuples(st.integers(0, 4), st.integers(0, 4))


@given(mixed_instances(HOSTS, HOSTS), rates_of_two, counts, counts, st.floats(1.01, 2.0))
@examples(20)
def test_no_box_of_hosts_is_bounded_above_its_cheapest_pipeline(it, rates, one, other, share):
    """Pipelines within a limit on time, so that outlines are asked; halves with what the whole box knows."""
    search = search_of(it, Wanted("money", np.array(rates), ticks=share * least(it, rates, "time")))
    assume(math.isfinite(search.wanted.ticks))
    whole = search.boxes[0]
    low, high = (np.minimum(each, whole.high) for each in np.sort([one, other], axis=0))

    with patch.object(rent, "WIDEST", 1e9):
        box = rent.Box(low, high, 0.0, whole.open)
        found = search.bounded(box)
        halves = [] if found is None or found.single else list(found.halves())
        each = [(box, found), *((half, search.bounded(half)) for half in halves)]
    for some, known in each:
        truth = best_step(it, partial(within, some, rates, search.wanted.ticks))[0]
        assert math.isinf(truth) if known is None else known.bound <= truth


def within(box, rates, ticks, step, hosts, joules):
    """What is paid for steps below ``ticks`` on hosts of a box, infinite for others."""
    inside = (hosts >= box.low[:, None]).all(axis=0) & (hosts <= box.high[:, None]).all(axis=0)
    return np.where(inside & (step < ticks), step * (np.array(rates) @ hosts), math.inf)


@pytest.mark.slow
@given(mixed_instances(), rates_of_two, st.sampled_from(["time", "money"]), st.floats(0.5, 1.5))
@examples(10)
def test_the_bound_is_derived_again_by_other_means(it, rates, minimised, share):
    """Nothing is below the least of enumeration, and a claim above it is contradicted by what is below."""
    quickest, tick = least(it, rates, "time"), it.machine.ticks.second
    assume(math.isfinite(quickest))
    most = {"ticks": share * quickest} if minimised == "money" else {"most": share * quickest * sum(rates)}
    truth = least(it, rates, minimised, **most)
    limits = {"most_s": most.get("ticks", math.inf) * tick, "most_usd": most.get("most", math.inf) * tick}
    asked = Asked(minimised, tuple(rates), **limits)
    claim = (truth if math.isfinite(truth) else quickest * sum(rates) * 10) * tick

    right = rederive_rent(problem_of(it), asked, claim * (1 - 1e-9))
    assert right.complete and not right.counter_example
    assert right.bound == claim * (1 - 1e-9)
    if math.isfinite(truth):
        wrong = rederive_rent(problem_of(it), asked, claim * 1.01)
        assert wrong.complete
        assert claim * (1 - 1e-9) <= wrong.counter_example_value < claim * 1.01


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=4))
@examples(60)
def test_halves_hold_every_count_of_hosts_once(sides):
    """Of the search's boxes and of those that verify cuts by code of its own."""
    low, high = (np.array(ends) for ends in zip(*map(sorted, sides), strict=True))
    truth = sorted(itertools.product(*(range(a, b + 1) for a, b in zip(low, high, strict=True))))

    def counts_of(box, halves) -> list[tuple[int, ...]]:
        if all(a == b for a, b in zip(*box, strict=True)):
            return [tuple(box[0].tolist())]
        return [count for half in halves(*box) for count in counts_of(half, halves)]

    def of_search(low, high):
        return [(half.low, half.high) for half in rent.Box(low, high, 0.0, {}).halves()]

    for halves in (of_search, rederive_rent_module.halves):
        assert sorted(counts_of((low, high), halves)) == truth


ASKED = {"seq_len": 2048, "global_batch": 16, "precision": "bf16", "headroom": TIGHT, "alternatives": 0}


def priced(*usd_per_device_hour: float):
    """The small mixed cluster with prices of its parts."""
    parts = zip(CLUSTER.parts, usd_per_device_hour, strict=True)
    each = [dataclasses.replace(part, price_usd_per_device_hour=price) for part, price in parts]
    return dataclasses.replace(CLUSTER, parts=tuple(each))


def test_the_cheapest_plan_is_no_dearer_than_that_of_a_part():
    cluster = priced(1.0, 3.0)
    found = plan(MODEL, cluster, objective="money", **ASKED)

    assert (found.status, found.objective_name) == ("optimal", "money")
    assert found.objective == found.usd_per_step
    rent_per_s = sum(part.hosts_used * price for part, price in zip(found.parts, (2.0, 3.0), strict=True)) / 3600
    assert found.usd_per_step == pytest.approx(rent_per_s * found.step_s)
    for part in cluster.parts:
        alone = plan(MODEL, part, objective="money", **ASKED)
        assert found.objective <= alone.objective * (1 + 1e-9)
    assert "USD a step" in found.summary()
    assert MixedPlan.from_json(found.to_json()) == found
    assert verify_mixed(found, MODEL, cluster).verdict == "verified"


def test_what_is_cheapest_within_a_time_and_quickest_within_a_rent():
    """Between the quickest plan and the cheapest: a limit on one is paid for in the other."""
    cluster = priced(1.0, 3.0)
    quick, cheap = (plan(MODEL, cluster, objective=name, **ASKED) for name in ("time", "money"))
    assert quick.step_s < cheap.step_s and cheap.usd_per_step < quick.usd_per_step
    between = (quick.step_s + cheap.step_s) / 2, (quick.usd_per_step + cheap.usd_per_step) / 2
    timed = plan(MODEL, cluster, objective="money", limits={"step-time": between[0]}, **ASKED)
    paid = plan(MODEL, cluster, limits={"step-money": between[1]}, **ASKED)

    assert {timed.status, paid.status} == {"optimal"}
    assert timed.step_s <= between[0] and cheap.usd_per_step <= timed.usd_per_step <= quick.usd_per_step
    assert paid.usd_per_step <= between[1] and quick.step_s <= paid.step_s <= cheap.step_s
    for one in (timed, paid):
        assert verify_mixed(one, MODEL, cluster).verdict == "verified"
    same = plan(MODEL, cluster, limits={"step-time": quick.step_s}, **ASKED)
    assert same.step_s == quick.step_s
    for limits in ({"step-time": 0.9 * quick.step_s}, {"step-money": 0.9 * cheap.usd_per_step}):
        with pytest.raises(InfeasiblePlan, match=r"the least step-.* of any plan is .* above the limit") as refused:
            plan(MODEL, cluster, limits=limits, **ASKED)
        name, raised = next(iter(limits)), refused.value.repairs[0]["changes"][0]["to"]
        assert plan(MODEL, cluster, limits={name: raised}, **ASKED).status == "optimal"


def test_limits_that_hold_one_by_one_but_not_together():
    cluster = priced(1.0, 3.0)
    quick, cheap = (plan(MODEL, cluster, objective=name, **ASKED) for name in ("time", "money"))
    both = {"step-time": 1.001 * quick.step_s, "step-money": 1.001 * cheap.usd_per_step}
    with pytest.raises(InfeasiblePlan) as refused:
        plan(MODEL, cluster, limits=both, **ASKED)

    assert str(refused.value).count("of any plan within the other limits is") == 2
    for repair in refused.value.repairs:
        eased = {**both, repair["changes"][0]["knob"]: repair["changes"][0]["to"]}
        assert plan(MODEL, cluster, limits=eased, **ASKED).status == "optimal"


def test_limits_are_not_blamed_where_memory_is_why():
    with pytest.raises(InfeasiblePlan, match=r"no plan fits .* states of"):
        plan(MODEL, priced(1.0, 3.0), limits={"step-time": 10.0}, **{**ASKED, "headroom": 0.999})


def test_limits_of_a_training_run_are_divided_by_its_steps():
    cluster = priced(1.0, 3.0)
    quick = plan(MODEL, cluster, **ASKED)
    tokens = 1000 * quick.workload.tokens
    found = plan(MODEL, cluster, objective="money", tokens=tokens, limits={"train-time": 1100 * quick.step_s}, **ASKED)

    assert found.step_s <= 1.1 * quick.step_s
    assert found.proof.space["step-time"] == pytest.approx(1.1 * quick.step_s)
    assert "tokens in 1,000 steps: " in found.summary() and "tokens in" not in quick.summary()
    with pytest.raises(BadInput, match="add --tokens"):
        plan(MODEL, cluster, limits={"money": "5 USD"}, **ASKED)


def with_part(p: MixedPlan, at: int, **fields) -> dict:
    return {"parts": [it.model_copy(update=fields if k == at else {}) for k, it in enumerate(p.parts)]}


TAMPERED = {
    "rent": lambda p: (
        {name: 0.9 * getattr(p, name) for name in ("usd_per_step", "objective", "bound")}
        | {"proof": p.proof.model_copy(update={"bound_root": 0.0})},
        "usd_per_step is",
    ),
    "objective": lambda p: ({"objective": 0.9 * p.objective}, "the money of the step is"),
    "quantity": lambda p: ({"objective_name": "time"}, "the time of the step is"),
    "hosts": lambda p: (with_part(p, 0, hosts_used=0), "hosts"),
    "no limit": lambda p: ({"options": {**p.options, "limits": {}}}, "proof.space is not"),
    "bound": lambda p: ({"bound": 1.01 * p.bound}, "is above the objective"),
    "limit": lambda p: (
        {
            "options": {**p.options, "limits": {"step-time": 0.99 * p.step_s}},
            "proof": p.proof.model_copy(update={"space": {**p.space, "step-time": 0.99 * p.step_s}}),
        },
        "step-time is",
    ),
}  # fmt: skip


@lru_cache(maxsize=1)
def tight_and_cheap() -> MixedPlan:
    """The cheapest plan within half a way from the quickest to the cheapest, which has stages on both parts."""
    cluster = priced(1.0, 3.0)
    quick = plan(MODEL, cluster, **ASKED)
    return plan(MODEL, cluster, objective="money", limits={"step-time": 1.05 * quick.step_s}, **ASKED)


@pytest.mark.parametrize("name", TAMPERED)
def test_tampered_rents_are_refused(name):
    assert tight_and_cheap().stages
    changes, says = TAMPERED[name](tight_and_cheap())
    report = verify_mixed(tight_and_cheap().model_copy(update=changes), MODEL, priced(1.0, 3.0))

    assert report.verdict == "refused"
    assert says in "; ".join(report.reasons)


def test_a_dearer_plan_that_claims_to_be_the_cheapest_is_refused():
    """Right in every number but the claim: the cheapest plan with a pin, under the options of the one without."""
    cluster = priced(1.0, 3.0)
    limits = {"step-time": plan(MODEL, cluster, pins="recompute=full", **ASKED).step_s}
    cheap, other = (
        plan(MODEL, cluster, objective="money", limits=limits, **pins, **ASKED)
        for pins in ({}, {"pins": "recompute=full"})
    )
    assert other.stages and other.usd_per_step > 1.001 * cheap.usd_per_step
    parts = [it.model_copy(update={"alone_bound": other.bound}) for it in other.parts]
    said = {"options": cheap.options, "proof": cheap.proof, "parts": parts}
    report = verify_mixed(other.model_copy(update=said), MODEL, cluster)

    assert report.verdict == "refused"
    assert "but a pipeline of" in report.reasons[0]


def test_pins_that_one_part_cannot_hold():
    """One H100 has no tensor parallelism: what is left is on the A100s."""
    found = plan(MODEL, priced(1.0, 3.0), objective="money", pins="tp=2", **ASKED)

    assert [part.hosts_used for part in found.parts] == [1, 0]


@pytest.mark.parametrize("price", [0.0, None])
def test_a_part_without_a_price_is_refused(price):
    part = priced(1.0, 3.0).parts[0]
    figures = part.accelerator.figures.model_copy(update={"price": None})
    bare = dataclasses.replace(part, accelerator=part.accelerator.model_copy(update={"figures": figures}))
    cluster = CLUSTER.with_part(0, dataclasses.replace(bare, price_usd_per_device_hour=price))

    with pytest.raises(BadInput, match="'part-0' has no price above 0"):
        plan(MODEL, cluster, objective="money", **ASKED)
    if price is None:
        assert plan(MODEL, cluster, **ASKED).usd_per_step is None


def twins():
    """A mixed cluster of two parts alike in all but their names."""
    cluster = priced(3.0, 3.0)
    return dataclasses.replace(cluster, parts=(cluster.parts[1], dataclasses.replace(cluster.parts[1], name="twin")))


def test_of_parts_alike_one_is_rented():
    found = plan(MODEL, twins(), objective="money", **{**ASKED, "headroom": 0.05, "global_batch": 1})

    assert found.alone is not None
    assert [part.hosts_used for part in found.parts] == [1, 0]
    assert found.usd_per_step == pytest.approx(3.0 / 3600 * found.step_s)
    assert verify_mixed(found, MODEL, twins()).verdict == "verified"
    both = found.model_copy(update={"parts": [found.parts[0], found.parts[1].model_copy(update={"hosts_used": 1})]})
    assert "but use [1, 0]" in verify_mixed(both, MODEL, twins()).reasons[0]


def interrupted_when(asked) -> MixedPlan:
    """The cheapest plan so far when Ctrl-C comes at the first report that ``asked(stage, best)`` is true of."""

    def interrupt(stage: str, best: float, bound: float) -> None:
        if asked(stage, best):
            raise KeyboardInterrupt

    return plan(MODEL, priced(1.0, 3.0), objective="money", progress=interrupt, **ASKED)


def test_an_interrupt_while_a_part_is_searched_leaves_its_plan():
    found = interrupted_when(lambda stage, best: math.isfinite(best))

    assert (found.status, found.bound, found.alone.cluster.source) == ("feasible", 0.0, "part-0")
    assert any("ended by the interrupt" in note for note in found.notes)
    assert verify_mixed(found, MODEL, priced(1.0, 3.0)).verdict != "refused"


def test_an_interrupt_while_pipelines_are_searched_leaves_the_plan_of_a_part():
    found = interrupted_when(lambda stage, best: stage in ("bounding", "proving"))

    assert found.status == "feasible" and found.alone is not None
    assert 0 < found.bound < found.objective
    assert any(note.endswith("the plan is the best so far") for note in found.notes)


def test_an_interrupt_before_there_is_a_plan_is_passed_on():
    with pytest.raises(KeyboardInterrupt):
        interrupted_when(lambda *_: True)


def test_an_interrupt_while_the_second_part_is_searched_leaves_the_plan_of_the_first(monkeypatch):
    calls, one = itertools.count(), alone_module._one

    def second_interrupted(*args):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return one(*args)

    monkeypatch.setattr(alone_module, "_one", second_interrupted)
    found = plan(MODEL, priced(1.0, 3.0), objective="money", **ASKED)

    assert found.alone.cluster.source == "part-0"
    assert found.parts[0].alone_bound == found.objective and found.parts[1].alone_bound == 0.0
