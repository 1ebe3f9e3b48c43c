"""Layers that offload more than others: what they cost, and that the search chooses them as enumeration does."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from oracle import Instance, best_of_all
from searching import close, options_of, search_of, space_of
from strategies import coarse_ticks, small_cluster, tiny_config, with_memory

from cost_models import offload
from cost_models.calibration import calibrate
from cost_models.chain import Chain, joules
from cost_models.estimate import estimate
from cost_models.offload import LAYERS_DIFFER_IN, lightest, with_one_class_inside
from cost_models.price import price
from cost_models.rows import Rows
from cost_models.side_by_side import partly_offloaded
from cost_models.strategy import Offload, Strategy
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner import Plan, plan
from planner.candidates import legal_space
from planner.checks.check import check_strategy
from planner.checks.rederive import Problem, rederive
from planner.checks.verify import verify
from planner.errors import BadInput
from planner.named import named_strategy
from planner.options import Options
from planner.read_model import read_model
from planner.report import offload_text
from planner.search import engine
from planner.search.balanced import Balanced
from planner.search.bounds import objective_of
from planner.search.certificate import open_row
from planner.search.columns import Columns, Segments, column_joules, quickest_columns, stage_columns
from planner.search.incumbent import best_of_cut
from planner.search.screen import Screen
from planner.strategy_record import StrategyRecord
from topologies.ready import read_cluster
from topologies.tiers import Tier, with_tiers

pytestmark = pytest.mark.usefixtures("steady")

MODEL = read_model("llama-3.2-1b")
CLUSTER = with_tiers(read_cluster("dgx-h100:1"), ("dram",))
WORK = Training(seq_len=4096, global_batch=32)
TICKS = Ticks.of(MODEL, CLUSTER, WORK)
CLASSES = ("optimizer", "gradients", "weights")


def strategy(classes: int, first: int | None, second: int | None = None, **words: int) -> Strategy:
    """Two stages of eight layers that offload so many classes whole, the last one of these layers of each alone."""
    named = named_strategy(MODEL, CLUSTER, WORK, {"pp": 2, "dp": 1, "micro_batch": 1, **words})
    out = (first, first if second is None else second)
    stages = tuple(dataclasses.replace(stage, offloaded=out[s % 2]) for s, stage in enumerate(named.stages))
    return dataclasses.replace(named, stages=stages, offloads=tuple(Offload(c, "dram") for c in CLASSES[:classes]))


def layer_bytes(which: str) -> float:
    """Bytes of one layer's states of a class on its device: 12 of the optimiser, 4 a gradient, 2 a weight."""
    return {"optimizer": 12.0, "gradients": 4.0, "weights": 2.0}[which] * MODEL.kinds[0].parameters


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_a_layer_keeps_one_class_more(classes):
    """Of five and of two of eight layers less lies in DRAM and more on the device, by the bytes of the last class."""
    every, some = (estimate(MODEL, CLUSTER, WORK, strategy(classes, *out)) for out in ((None, None), (5, 2)))
    kept = layer_bytes(CLASSES[classes - 1])

    for rank, layers in enumerate((3, 6)):
        in_dram = [found.tiers[0].need_bytes[rank] for found in (every, some)]
        on_device = [found.need_bytes[rank] for found in (every, some)]
        assert in_dram[0] - in_dram[1] == pytest.approx(layers * kept)
        assert on_device[1] - on_device[0] == pytest.approx(layers * kept)
    assert some.step_s < every.step_s
    assert some.joules < every.joules


def test_the_update_waits_for_the_layers_that_left_alone():
    """Each layer streams 12 bytes a parameter in and out of DRAM; its own update hides a part, always the same."""
    waits = [dict(estimate(MODEL, CLUSTER, WORK, strategy(1, out)).time)["memory tiers"] for out in (0, 3, 8)]

    assert waits[1] - waits[0] == pytest.approx(3 / 8 * (waits[2] - waits[0]))
    stream_s = 2 * layer_bytes("optimizer") / 2 / CLUSTER.tiers[0].device_bytes_per_s
    assert 0.5 * stream_s < (waits[2] - waits[0]) / 8 < stream_s


def test_layers_may_keep_the_last_class_that_leaves_where_all_leave_whole():
    share = [Rows.of(strategy(classes, None)).offload for classes in (1, 2, 3)]

    for one, less in zip(share, (0 * share[0], *share), strict=False):
        assert (with_one_class_inside(one) == less).all()
    for other in (0 * share[0], share[0] * 0.5):
        assert (with_one_class_inside(other) == other).all()


def planted(
    *, near: float = 0.0, pools: int = 0, room: float = 1e12, memory: float = 9.2, layers: int = 4, **fields: object
) -> Instance:
    """Layers on two devices that hold some of their states; the rest goes to a slow tier.

    A device has ``memory`` bytes a parameter of the model, each of two holding half of these.
    """
    model = read_model(tiny_config(num_hidden_layers=layers, hidden_size=256, intermediate_size=768))
    work, cluster = Training(seq_len=128, global_batch=4), small_cluster(2)
    fits = dataclasses.replace(calibrate(cluster, work.stack), context_bytes=0.0, communicator_bytes=1e4)
    tier = Tier("slow", "dram", room, 1e9, 1e9, 1e9, 1e-6, near, 1e9 if pools else math.inf, pools, 1e-6)
    cluster = dataclasses.replace(with_memory(cluster, memory * model.parameters), tiers=(tier,))
    pins = {"tp": 1, "cp": 1, "dp": 1, "pp": 2, "micro_batch": 1, "virtual_stages": 1}
    ticks = coarse_ticks(model, cluster, work)
    return Instance(model, cluster, work, fits, ticks, headroom=0.0, pins=tuple(pins.items()), **fields)


PLANTED = [{}, pytest.param({"near": 1e10}, marks=pytest.mark.slow), {"pools": 1, "objective": "energy"}]


@pytest.mark.parametrize("fields", PLANTED)
def test_the_search_chooses_layers_as_enumeration_does(fields):
    it = planted(**fields)
    search = search_of(it)
    best = search.run().best

    assert best.found.leaving
    agrees(it, search.value)


def agrees(it: Instance, value: float) -> None:
    """The value is the least of all plans, and of all that are bounded again."""
    problem = Problem(it.model, it.cluster, it.workload, options_of(it), it.fits, it.ticks)
    assert close(value, best_of_all(it).value)
    for factor in (1 - 1e-9, 1.001):
        found = rederive(problem, value * factor)
        assert found.complete
        assert bool(found.counter_example) == (factor > 1)
        assert close(found.bound, min(value, found.target))


SCARCE = [
    ("gradients", {"memory": 5.8, "room": 7.2}),
    pytest.param("gradients", {"memory": 5.8, "room": 7.2, "near": 1e10}, marks=pytest.mark.slow),
    ("gradients", {"memory": 5.8, "room": 7.2, "objective": "energy"}),
    ("weights", {"memory": 2.6, "room": 8.95, "layers": 8}),
]
"""A tier of ``room`` bytes a parameter a device, which holds all of what leaves first and part of the class named."""


@pytest.mark.parametrize(("last", "fields"), SCARCE)
def test_gradients_and_weights_leave_by_layers_where_nothing_else_fits(last, fields, monkeypatch):
    """The tier has no room for the class of all layers, the device none for that of all: some layers let it go."""
    model = planted(layers=fields.get("layers", 4)).model
    it = planted(**{**fields, "room": 2 * fields["room"] * model.parameters})
    search = search_of(it)
    best = search.run().best

    assert best.found.leaving
    share = best.prices.rows.offload[0].sum(axis=1)
    assert [name for name, part in zip(CLASSES, share, strict=False) if part == 1][-1] == last
    agrees(it, search.value)
    monkeypatch.setattr(offload, "with_one_class_inside", lambda share: share)
    assert search_of(it).run().best is None


def test_the_solver_counts_in_a_pool_what_layers_let_go(monkeypatch):
    """A pool with room for the best plan to the byte, and no plan known before: what layers keep takes none of it."""
    it = planted(pools=1)
    search = search_of(it)
    best = search.run().best
    used = int(sum(best.found.evaluation.tiers["slow"]))
    monkeypatch.setattr(engine, "best_of_cuts", lambda *_: None)
    for room, same in ((used, True), (used - 1, False)):
        tight = search_of(planted(pools=1, room=room))
        tight.run()
        assert (tight.value == search.value) is same


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_columns_spend_what_the_plan_of_them_does(classes):
    it = strategy(classes, 5, 2)
    cluster = dataclasses.replace(CLUSTER, tiers=(dataclasses.replace(CLUSTER.tiers[0], joules_per_byte=1e-9),))
    chain = Chain(MODEL, price(MODEL, cluster, WORK, Rows.of(it), calibrate(CLUSTER), TICKS), 0)
    stages = np.repeat(np.arange(2), 9), np.repeat([0, 8], 9), np.repeat([8, 16], 9), np.tile(np.arange(9), 2)
    stage, i, j, out = stages
    none = np.zeros_like(i)
    every = Columns(stage, i, j, none, none, none, none, none, np.ones(18), none, out, none, none)
    plan_of = partly_offloaded(chain, [8, 8], [(5, None), (2, None)])

    spent = column_joules(chain, every)[[5, 11]]
    assert spent == pytest.approx(joules(plan_of, plan_of.runs(it.stages)), rel=1e-12)


def test_where_a_layers_states_lie_changes_its_passes_its_update_and_its_bytes_alone():
    """What bounds and columns rely on, with a tier that takes joules; optimiser states change nothing of a pass."""
    changed = [tables_that_differ(classes) for classes in (1, 2, 3)]

    assert changed[0] == {"tier_update", "update", "joules_step"}
    assert set.union(*changed) == {"tier_update", *LAYERS_DIFFER_IN}


def tables_that_differ(classes: int) -> set[str]:
    """The tables of prices in which layers differ that keep the last of so many classes or not."""
    cluster = dataclasses.replace(CLUSTER, tiers=(dataclasses.replace(CLUSTER.tiers[0], joules_per_byte=1e-9),))
    out = price(MODEL, cluster, WORK, Rows.of(strategy(classes, 5, 2)), calibrate(CLUSTER), TICKS)
    tables = {name: table for name, table in vars(out).items() if isinstance(table, np.ndarray) and table.ndim == 2}
    assert all((out.extra[kind] == out.nearer.extra[kind]).all() for kind in out.extra)
    return {name for name, table in tables.items() if (table != getattr(out.nearer, name)).any()}


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_no_plan_is_below_the_bound_of_its_row(classes):
    """Where memory lets layers keep as many states as a plan does, to the byte; less memory is hardly lower a bound
    (prices of lines are not the best to the last digit), and a higher one where optimiser states leave, whose traffic
    nothing hides."""
    space, objective, bounds = legal_space(MODEL, CLUSTER, WORK, {}), Options(), []
    for out in ((0, 0), (5, 2), (8, 0), (8, 8)):
        it = strategy(classes, *out)
        found = estimate(MODEL, CLUSTER, WORK, it, ticks=TICKS)
        prices = price(MODEL, CLUSTER, WORK, Rows.of(it), calibrate(CLUSTER), TICKS)
        screen = Screen(space, int(max(found.need_bytes)), TICKS)
        by_row = screen.schedules(prices, objective_of(prices.rows, CLUSTER, objective), np.inf)
        bounds += [value for value, _, virtual, _ in by_row if virtual == 1]
        assert bounds[-1] <= found.step_s
    assert len(bounds) == 4
    assert bounds[-1] > (1 if classes == 1 else 0.99) * bounds[0]


@pytest.mark.parametrize("micro_batches", [2, 3, 4, 8, 64])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_no_plan_is_below_the_bound_of_its_columns(classes, micro_batches):
    """With sequences so short that gradients' traffic sticks out of passes: layers that keep them are much quicker."""
    work, bounds = Training(seq_len=256, global_batch=micro_batches), []
    ticks = Ticks.of(MODEL, CLUSTER, work)
    for pp, out in ((2, (0, 0)), (2, (1, 0)), (2, (8, 8)), (4, (0, 0)), (4, (4, 0))):
        named = named_strategy(MODEL, CLUSTER, work, {"pp": pp, "dp": 1, "micro_batch": 1})
        stages = tuple(dataclasses.replace(stage, offloaded=out[s % 2]) for s, stage in enumerate(named.stages))
        offloads = tuple(Offload(c, "dram") for c in CLASSES[:classes])
        it = dataclasses.replace(named, stages=stages, offloads=offloads)
        found = estimate(MODEL, CLUSTER, work, it, ticks=ticks)
        chain = Chain(MODEL, price(MODEL, CLUSTER, work, Rows.of(it), calibrate(CLUSTER), ticks), 0)
        objective, limit = objective_of(chain.prices.rows, CLUSTER, Options()), int(max(found.need_bytes))
        row = open_row(chain, objective, 1, 0.0, 2 * found.step_s, limit, None, [])
        bounds.append(row.bound / found.step_s)

    assert max(bounds) <= 1
    assert min(bounds) > 0.4


@pytest.mark.parametrize("classes", [2, 3])
def test_of_a_segment_no_way_to_offload_is_lost_but_to_one_as_quick(classes):
    """Every number of layers that lets one class more go has a column at most as long in everything; of these no two
    are one at most as long as the other."""
    work = Training(seq_len=256, global_batch=8)
    named = named_strategy(MODEL, CLUSTER, work, {"pp": 2, "dp": 1, "micro_batch": 1})
    it = dataclasses.replace(named, offloads=tuple(Offload(c, "dram") for c in CLASSES[:classes]))
    ticks = Ticks.of(MODEL, CLUSTER, work)
    chain = Chain(MODEL, price(MODEL, CLUSTER, work, Rows.of(it), calibrate(CLUSTER), ticks), 0)
    limit, spared = int(max(estimate(MODEL, CLUSTER, work, it, ticks=ticks).need_bytes)), 0
    for j in range(1, chain.layers):
        every = np.arange(j + 1)
        segments = Segments.alike(0 * every, 0 * every, 0 * every + j, every)
        each, ok = quickest_columns(chain, 1.0, segments, limit, None)
        ways = np.stack([each.forward, each.backward, each.tail], axis=1)[ok]
        found = stage_columns(chain, np.array([0]), np.array([0]), np.array([j]), limit)
        kept = np.stack([found.forward, found.backward, found.tail], axis=1)
        below = (kept[:, None] <= ways[None]).all(axis=2)

        assert below.any(axis=0).all()
        assert ((kept[:, None] <= kept[None]).all(axis=2).sum(axis=0) == 1).all()
        spared += len(ways) - len(kept)
    assert spared > 0


@pytest.mark.parametrize("memory", [2.2, pytest.param(5.8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("near", [0.0, 1e10])
def test_the_bound_prices_the_bytes_that_layers_free(memory, near):
    """It is at most the best plan of every row, and of some above that of layers that free them at no cost."""
    it = planted(layers=8, memory=memory, near=near)
    answer, screen = best_of_all(it), Screen(space_of(it), it.limit_bytes, it.ticks)
    objective = objective_of(answer.rows, it.cluster, options_of(it))
    bounds, free = (
        screen.promising(prices, objective, np.inf, buffers=True)[0]
        for prices in (answer.prices, lightest(answer.prices))
    )

    assert (bounds <= np.array(answer.by_row)).all()
    assert (bounds >= free).all()
    assert (bounds > 1.01 * free).any()


@pytest.mark.parametrize(("memory", "room"), [(2.6, 1e6), (5.8, 14.4)])
def test_a_cut_is_no_better_than_its_lightest_layers_say(memory, room):
    """Of every row, with layers that may differ, and a tier with room for all that leaves of them or for some."""
    it = planted(layers=8, memory=memory, room=room * planted(layers=8).model.parameters)
    answer, seen = best_of_all(it), 0
    objective = objective_of(answer.rows, it.cluster, options_of(it))
    balanced = Balanced.of(it.model, answer.prices, objective, it.limit_bytes, None)
    for row, stage_size in enumerate(answer.rows.stage_size.tolist()):
        chain, alone = Chain(it.model, answer.prices, row), objective.take(np.array([row]))
        cuts = balanced.boundaries[row]
        for k, (least, cut) in enumerate(zip(balanced.least[row], cuts, strict=True)):
            if (np.diff(cut) < 1).any() or cut[0] or (cut == cuts[:k]).all(axis=1).any():
                continue
            found = best_of_cut(chain, cut, alone, stage_size, it.limit_bytes, None, np.inf)
            seen += found is not None and bool(found.leaving)
            assert found is None or -np.inf < least <= found.value
    assert seen


def test_a_plan_says_and_keeps_which_layers_offload():
    cluster = read_cluster("dgx-h100:2")
    (dram,) = (tier for tier in cluster.present_tiers if tier.name == "dram")
    cluster = dataclasses.replace(cluster, present_tiers=(dataclasses.replace(dram, capacity_bytes=8e9),))
    pins = {"tp": 2, "pp": 4, "dp": 1, "cp": 1, "micro_batch": 1, "zero": 0, "virtual_stages": 1}
    asked = {"seq_len": 2048, "global_batch": 64, "headroom": 0.94, "tiers": "dram", "alternatives": 0}
    found = plan("llama-3.2-1b", cluster, pins=pins, **asked)
    layers = " + ".join(map(str, found.strategy.layers_per_stage))

    assert found.strategy.offloaded
    assert found.status == "optimal"
    assert f"optimizer of {', '.join(map(str, found.strategy.offloaded))} of {layers} layers to dram" in found.summary()
    again = Plan.from_json(found.to_json())
    assert again == found
    assert verify(again, MODEL, cluster).verdict == "verified"
    for wrong in ([*found.strategy.offloaded, 1], found.strategy.layers_per_stage):
        saved = json.loads(found.to_json())
        saved["strategy"]["offloaded"] = list(wrong)
        assert verify(Plan.from_json(json.dumps(saved)), MODEL, cluster).verdict == "refused"


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (strategy(1, 9), "stage 0 offloads 9 of its 8 layers; from 0 to all of them may"),
        (strategy(1, 2, virtual_stages=2), "stage 0 offloads 2 of its 4 layers; they may differ under 1F1B"),
        (
            dataclasses.replace(strategy(1, 2), offloads=(Offload("optimizer", "dram", 0.5),)),
            "stage 0 offloads 2 of its 8 layers; they may differ where all optimiser states leave",
        ),
    ],
)
def test_layers_that_cannot_differ(wrong, complaint):
    assert any(complaint in text for text in check_strategy(MODEL, CLUSTER, WORK, wrong))


@pytest.mark.parametrize(("layout", "change"), [({}, {"offloads": ()}), ({"virtual_stages": 2}, {})])
def test_layers_that_no_price_tells_apart_are_refused(layout, change):
    """Prices of layers that keep their states are those of 1F1B with offloads."""
    some = dataclasses.replace(strategy(1, 3, **layout), **change)

    with pytest.raises(BadInput, match=r"stage 0 offloads 3 of its [84] layers; they may differ under 1F1B"):
        estimate(MODEL, CLUSTER, WORK, some, ticks=TICKS)


def test_a_record_names_layers_only_where_some_keep_more():
    alike, some = (StrategyRecord.of(strategy(1, *out)) for out in ((8, 8), (8, 3)))

    assert (alike.offloaded, some.offloaded) == ([], [8, 3])
    assert some.strategy() == strategy(1, 8, 3)
    assert offload_text(some) == "optimizer of 8, 3 of 8 + 8 layers to dram"


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_columns_take_as_long_as_the_plan_of_them_does(classes):
    chain = Chain(MODEL, price(MODEL, CLUSTER, WORK, Rows.of(strategy(classes, 5, 2)), calibrate(CLUSTER), TICKS), 0)
    stage, i, j, x = np.arange(2), np.array([0, 8]), np.array([8, 16]), np.array([5, 10])
    found, ok = quickest_columns(chain, 1.0, Segments.alike(stage, i, j, x), 2**60, None)
    plan_of = partly_offloaded(chain, [8, 8], [(5, None), (2, None)])

    assert ok.all()
    assert found.forward.tolist() == plan_of.forward(i, j).tolist()
    assert found.backward.tolist() == plan_of.backward(i, j).tolist()
    assert found.tail.tolist() == plan_of.tail(plan_of.tail_parts(i, j), found.forward, found.backward).tolist()
