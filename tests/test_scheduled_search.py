"""Schedules as a choice: searches under each, proved again by other code; what is refused, and how it is said."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searching import options_of, space_of
from strategies import examples, instances

from cost_models.chain import Chain
from cost_models.price import price
from cost_models.schedules import BIDIRECTIONAL, FEW_CUTS, FURTHER, may_run, virtual_stages_of
from cost_models.strategy import MIRRORED, RECOMPUTE
from planner import estimate, pareto, plan
from planner.candidates import degree_table, relaxed_rows
from planner.checks.rederive import Problem, rederive
from planner.checks.verify import verify
from planner.errors import BadInput, InfeasiblePlan, Unsupported
from planner.export import export
from planner.read_model import read_model
from planner.result import Plan
from planner.search.bounds import objective_of
from planner.search.folded import Cuts, FoldedScreen
from planner.search.incumbent import weigh
from planner.search.scheduled import FreeScreen, ScheduledSearch, legal_in_flight
from topologies.ready import read_cluster

SMALL = {"alternatives": 0, "global_batch": 8, "seq_len": 128}
MODEL, CLUSTER = "tiny-llama", "cpu-local:1"
PLENTY = 2**60


def small_plan(kind, **more):
    return plan(MODEL, CLUSTER, pins=f"schedule={kind}", **SMALL, **more)


@pytest.mark.parametrize("kind", FURTHER)
def test_a_plan_is_proved_again_by_other_code(kind):
    """Every split or cut of every row is enumerated by :mod:`planner.checks.branching_schedules`: none is better.

    The built-in trainer runs it; DualPipe, which holds each stage on two devices, is refused.
    """
    found = small_plan(kind)
    report = verify(found, read_model(MODEL), read_cluster(CLUSTER))

    assert (found.status, report.verdict) == ("optimal", "verified")
    assert (found.strategy.schedule, found.proof.space["axes"]["schedule"]) == (kind, [kind])
    assert found.strategy.pp > 1
    if kind == MIRRORED:
        with pytest.raises(Unsupported, match=r"torchrun runs the schedules .*, and the plan has dualpipe"):
            export(found, ("torchrun",))
    else:
        assert "-m planner.runtime.train" in export(found, ("torchrun",))["launch.sh"][0]
    assert Plan.from_json(found.to_json()) == found


@pytest.mark.parametrize("kind", ["zb-h1", "zbv"])
def test_where_memory_is_short_and_joules_count(kind):
    """Devices recompute, each what it must: the proof holds there too."""
    cluster, work = read_cluster(CLUSTER), {"alternatives": 0, "global_batch": 8, "seq_len": 512}
    pins = f"schedule={kind},pp=2,dp=1,tp=2,micro_batch=2"
    need = max(it.need_bytes for it in plan(MODEL, CLUSTER, pins=pins, **work).memory)
    headroom = 1 - 0.97 * need / cluster.memory_bytes
    found = plan(MODEL, CLUSTER, pins=pins, headroom=headroom, objective="energy", **work)

    assert {kind for runs in found.strategy.recompute for _, kind in runs} != {"none"}
    assert verify(found, read_model(MODEL), cluster).verdict == "verified"


def test_a_plan_that_claims_too_much_is_refused():
    found = small_plan("zbv")
    better = found.model_copy(update={"objective": found.objective * 1.5, "bound": found.bound * 1.5})

    assert verify(better, read_model(MODEL), read_cluster(CLUSTER)).verdict == "refused"


def test_the_best_of_several_schedules():
    """Each is searched by itself; the plan is the best of them, and says what the others came to."""
    kinds, pinned = ("zb-h1", "zbv"), {**SMALL, "pins": "pp=2"}
    each = [plan(MODEL, CLUSTER, **SMALL, pins={"pp": 2, "schedule": kind}).objective for kind in kinds]
    found = plan(MODEL, CLUSTER, schedules=("1f1b", *kinds), **pinned)

    assert (found.status, found.objective) == ("optimal", min(*each, plan(MODEL, CLUSTER, **pinned).objective))
    assert found.notes[-1].startswith("the best, of 3 searches: schedule=1f1b or interleaved ")
    assert all(f"schedule={kind} {value:.6g}" in found.notes[-1] for kind, value in zip(kinds, each, strict=True))


def test_estimates_by_name():
    """zb-h1 takes the bubble out; a V holds both ends of the model on its first device."""
    plain, split, folded = (
        estimate(MODEL, CLUSTER, f"pp=2,tp=1,dp=2,micro_batch=1{more}", global_batch=8, seq_len=128)
        for more in ("", ",schedule=zb-h1", ",schedule=zbv")
    )
    ends = [ranks[0]["weights"] - ranks[-1]["weights"] for ranks in (plain.memory, folded.memory)]

    assert dict(split.time)["pipeline bubble"] < dict(plain.time)["pipeline bubble"]
    assert ends[1] > ends[0]


def test_late_weight_gradients_hide_less():
    """Behind interleaved stages' last backwards hides what sticks out behind the last weights' gradients of a V."""
    usual, folded = (
        estimate("llama-3.1-8b", "dgx-a100:2", f"pp=2,tp=1,dp=8{more}", seq_len=512, global_batch=64)
        for more in (",virtual_stages=2", ",schedule=zbv")
    )

    assert dict(folded.time)["gradients and weights"] > 2 * dict(usual.time)["gradients and weights"]


@pytest.mark.parametrize(
    ("pins", "said"),
    [
        ("schedule=zbv,pp=1", "schedule=zbv without pipeline stages"),
        ("schedule=zbv,pp=3", r"does not cut 4 layers into 2\*3 stages"),
        ("schedule=zbv,virtual_stages=3", "schedule=zbv has 2 virtual stages a device"),
        ("schedule=interleaved", "interleaved is 1f1b with virtual_stages above 1"),
    ],
)
def test_pins_that_cannot_hold(pins, said):
    with pytest.raises(BadInput, match=said):
        plan(MODEL, CLUSTER, pins=pins, **SMALL)


def test_what_a_schedule_says_is_no_pin_of_its_own():
    assert plan(MODEL, CLUSTER, pins="schedule=1f1b", **SMALL).options["pins"] == {"virtual_stages": 1}
    assert small_plan("zbv,virtual_stages=2").options["pins"] == {"schedule": "zbv"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"schedules": "zbw"}, "schedules='zbw' is no schedule; legal: all, 1f1b, zb-h1"),
        ({"schedules": 3}, "schedules='3' are names of schedules"),
        ({"schedules": "zbv", "pins": "schedule=zb-h1"}, "have the schedules zbv"),
        ({"schedules": "zbv", "objective": "time,energy"}, "for one objective"),
        ({"pins": "schedule=zbv", "solver": "pure-cpsat"}, "schedule=zbv: not for solver=pure-cpsat"),
    ],
)
def test_what_is_not_searched_is_refused(more, said):
    with pytest.raises(BadInput, match=said):
        plan(MODEL, CLUSTER, **SMALL, **more)


def test_why_not_1f1b():
    """Another schedule takes the place of the pinned one, whichever pin says it."""
    answer = small_plan("zbv").why_not("schedule=1f1b")

    assert (answer.replaced, answer.pins) == ({"schedule": "zbv"}, {"virtual_stages": 1})
    assert answer.other.objective == plan(MODEL, CLUSTER, pins="virtual_stages=1", **SMALL).objective


def test_a_front_searches_none_of_them():
    with pytest.raises(BadInput, match="schedule=zbv is searched by plan"):
        pareto(MODEL, CLUSTER, pins="schedule=zbv", global_batch=8, seq_len=128)


def test_mixed_and_irregular_clusters_are_refused():
    with pytest.raises(BadInput, match="under 1F1B alone"):
        plan(MODEL, "dgx-a100:1+dgx-h100:1", schedules="zbv")
    with pytest.raises(BadInput, match="whose hosts differ"):
        plan(MODEL, "irregular-64", pins="schedule=zbv")


def test_nothing_fits_under_a_schedule():
    with pytest.raises(InfeasiblePlan, match="no plan fits under schedule=v-min"):
        plan("llama-3.1-8b", "dgx-h100:1", schedules="v-min", headroom=0.9)


def test_other_targets_run_few_of_them():
    """torchtitan its own zero bubble V; the others say what they run."""
    found = small_plan("zbv")
    with pytest.raises(Unsupported, match="megatron runs the schedules 1f1b, interleaved, and the plan has zbv"):
        export(found, ("megatron",))


@examples(25)
@given(instances(most_layers=6), st.data())
def test_no_cut_is_below_its_rows_bound(it, data):
    """Any cut of any row, with or without recompute, takes at least what the row is bounded by before it is known."""
    space, kind = space_of(it), data.draw(st.sampled_from(FURTHER))
    rows = None if space is None else relaxed_rows(space, degree_table(space))
    rows = None if rows is None else rows.take(np.flatnonzero(rows.pp > 1))
    if rows is None or not len(rows) or "virtual_stages" in dict(it.pins):
        return
    row = rows.take(np.array([data.draw(st.integers(0, len(rows) - 1))]))
    held = data.draw(st.sampled_from(list(legal_in_flight(kind, int(row.pp[0])))))
    row = row.scheduled(kind, virtual_stages_of(kind), held)
    if row.pp[0] * row.virtual[0] > it.model.layers or not may_run(kind, row.pp, row.micro_batches)[0]:
        return
    prices = price(it.model, it.cluster, it.workload, row, it.fits, it.ticks)
    screen = FoldedScreen(space, PLENTY, it.ticks, kind) if kind in FEW_CUTS else FreeScreen(space, PLENTY, it.ticks)
    objective, chain = objective_of(row, it.cluster, options_of(it)), Chain(it.model, prices, 0)
    bound = min((bound for bound, *_ in screen.schedules(prices, objective, np.inf)), default=np.inf)
    stages = chain.pp * chain.virtual
    if kind in FEW_CUTS:
        cuts = Cuts.of(it.model, kind, chain.pp).table
        cut = cuts[data.draw(st.integers(0, len(cuts) - 1))] if len(cuts) else None
    else:
        cut = [0, *sorted(data.draw(st.permutations(range(1, it.model.layers)))[: stages - 1]), it.model.layers]
    if cut is None:
        return
    runs = [[(data.draw(st.sampled_from(RECOMPUTE)), int(i), int(j))] for i, j in itertools.pairwise(cut)]
    found = weigh(chain, runs, objective, int(row.stage_size[0]), PLENTY)

    assert bound <= found.value


@examples(18)
@given(instances(most_layers=6, most_devices=4), st.sampled_from(FURTHER), st.sampled_from([4, 8, 12]))
def test_the_search_finds_the_best_of_all_that_other_code_enumerates(it, kind, batch):
    """Or nothing where that finds none; dense and with experts, memory from ample to short."""
    pins = {
        **{name: pin for name, pin in it.pins if name not in ("virtual_stages", "dp", "micro_batch")},
        "schedule": kind,
    }
    it = dataclasses.replace(
        it, pins=tuple(pins.items()), workload=it.workload.model_copy(update={"global_batch": batch})
    )
    space = space_of(it)
    if space is None:
        return
    search = ScheduledSearch(space, options_of(it), it.fits, it.ticks)
    result = search.run()
    problem = Problem(it.model, it.cluster, it.workload, options_of(it), it.fits, it.ticks)
    beaten = rederive(problem, min(search.value * (1 - 1e-9), 1e30))

    assert result.proved
    assert beaten.complete
    assert not beaten.counter_example
    assert search.value == np.inf or rederive(problem, search.value * (1 + 1e-9)).counter_example


@pytest.mark.parametrize("kind", BIDIRECTIONAL)
def test_the_timeline_shows_every_device_at_one_piece_of_work_at_a_time(kind):
    found = small_plan(kind)
    work = [it for it in found.plot.timeline_data(found.strategy.micro_batches) if it["pass"] != "power cap"]
    forwards = [it for it in work if it["pass"] == "forward"]

    assert len(forwards) == found.strategy.micro_batches * len(found.strategy.layers_per_stage)
    for rank in range(found.strategy.pp):
        mine = [it for it in work if it["rank"] == rank]
        assert {it["virtual_stage"] for it in mine if it["pass"] != "tail"} == set(found.strategy.stages_of(rank))
        assert all(later["start_s"] > one["end_s"] - 1e-12 for one, later in itertools.pairwise(mine))
