"""Whole strategies: terms that add up, bounds below the step, a tied head's copy, intervals, caps."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from costs import make_rows, make_strategy, small_model, two_hosts
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from cost_models.calibration import calibrate
from cost_models.chain import Chain
from cost_models.estimate import Estimate, device_tails, estimate, evaluate
from cost_models.intervals import interval
from cost_models.pipeline import in_flight
from cost_models.power import static_power
from cost_models.price import price
from cost_models.rows import Rows
from cost_models.stack import Stack
from cost_models.strategy import (
    RECOMPUTE,
    LayerChoice,
    LayerRun,
    Stage,
    Strategy,
    filled_stages,
    full_stages,
    stages_by_cost,
    uniform_stages,
)
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner.read_model import read_model

CLUSTER = two_hosts()
LARGE = read_model("llama-3.1-8b")
MODELS = {"mixed": small_model((0, 1) * 8), "tied": small_model((0,) * 16, tied=True), "8b": LARGE}


@st.composite
def cases(draw) -> tuple[str, Training, Strategy]:
    """A legal strategy: uneven stages, any recompute, plain or interleaved."""
    name, pp = draw(st.sampled_from(list(MODELS))), draw(st.sampled_from([1, 2, 4]))
    virtual = draw(st.integers(1, 3)) if pp > 1 else 1
    layers = MODELS[name].layers
    cuts = draw(st.sets(st.integers(1, layers - 1), min_size=pp * virtual - 1, max_size=pp * virtual - 1))
    sizes = tuple(j - i for i, j in itertools.pairwise([0, *sorted(cuts), layers]))
    m = draw(st.integers(1, 12)) * (pp if virtual > 1 else 1)
    degrees = {
        "pp": pp, "tp": draw(st.sampled_from([1, 2])), "cp": draw(st.sampled_from([1, 2])),
        "dp_shard": draw(st.sampled_from([1, 2, 4])), "dp_replicate": draw(st.sampled_from([1, 2])),
    }  # fmt: skip
    strategy = make_strategy(
        sizes, outer=draw(st.sampled_from(["", "dp_shard", "pp"])),
        recompute=draw(st.sampled_from(RECOMPUTE)), zero=draw(st.integers(0, 3)), micro_batches=m, **degrees,
    )  # fmt: skip
    batch = m * degrees["dp_shard"] * degrees["dp_replicate"]
    return name, Training(seq_len=draw(st.sampled_from([64, 1024])), global_batch=batch), strategy


def estimated(strategy, *, model=LARGE, work=None, cluster=CLUSTER, **options) -> Estimate:
    degrees, schedule = strategy.degrees, strategy.schedule
    batch = schedule.micro_batch * schedule.micro_batches * degrees.dp
    work = work or Training(seq_len=1024, global_batch=batch)
    return estimate(model, cluster, work, strategy, **options)


@examples(160)
@given(cases())
def test_terms_and_classes_add_up_and_the_bound_is_below(case):
    name, work, strategy = case
    model, rows = MODELS[name], Rows.of(strategy)
    found = estimated(strategy, model=model, work=work)
    fits, ticks = calibrate(CLUSTER), Ticks.of(model, CLUSTER, work)
    chain = Chain(model, price(model, CLUSTER, work, rows, fits, ticks), 0)
    alone = evaluate(chain, chain.runs(strategy.stages))

    assert sum(seconds for _, seconds in found.time) == pytest.approx(found.step_s, rel=1e-9)
    assert all(seconds > 0 for _, seconds in found.time)
    assert found.need_bytes == pytest.approx(alone.need.tolist(), rel=1e-12)
    assert len(found.memory) == strategy.degrees.pp
    assert 0 < found.lower_bound_s <= found.step_s
    assert found.step_ticks == alone.step and found.step_s == alone.step * found.tick_s
    parts = [found.watts[part] for part in ("devices", "hosts", "network", "cooling")]
    assert sum(parts) == pytest.approx(found.watts["facility"])
    assert found.joules == pytest.approx(found.watts["facility"] * found.step_s)


def test_one_stage_by_adding_prices():
    """One device, 5 micro-batches of 4 layers, the first of them recomputed: everything one after the other."""
    model, work = small_model((0, 1, 0, 1)), Training(seq_len=64, global_batch=5)
    prices = price(model, CLUSTER, work, make_rows(micro_batches=5), calibrate(CLUSTER), Ticks(2.0**-60))
    strategy = dataclasses.replace(
        make_strategy((4,), micro_batches=5), stages=(Stage((LayerRun(1, LayerChoice("full")), LayerRun(3))),)
    )
    found = estimated(strategy, model=model, work=work, ticks=Ticks(2.0**-60))
    passes = (prices.forward + prices.backward)[0]
    step = 5 * (2 * passes[0] + 2 * passes[1] + passes[2] + passes[3] + prices.extra["full"][0, 0])
    tail = prices.update[0] @ np.array([2, 2, 1, 1])

    assert found.step_ticks == step + tail


def test_memory_of_a_stage_by_adding_prices():
    """Stage 1 of 2: layers 3 and 4, whose states and head it holds, with one micro-batch in flight."""
    model, work = small_model((0, 1, 0, 1)), Training(seq_len=64, global_batch=5)
    prices = price(model, CLUSTER, work, make_rows(pp=2, micro_batches=5), calibrate(CLUSTER), Ticks(2.0**-60))
    found = estimated(make_strategy((2, 2), pp=2, micro_batches=5), model=model, work=work)
    states, saved, fixed = prices.state_bytes[0], prices.saved["none"][0], int(prices.fixed_bytes[0])

    first, last = [0, 1, 2], [0, 1, 3]
    assert found.need_bytes[0] == states[first].sum() + 2 * saved[first].sum() + fixed
    assert found.need_bytes[1] == states[last].sum() + saved[last].sum() + fixed + prices.logits[0]


def test_interleaved_activations_are_those_of_the_worst_moment():
    model = small_model((0,) * 8)
    strategy = make_strategy((1, 3, 2, 2), pp=2, micro_batches=4)
    work = Training(seq_len=64, global_batch=4)
    prices = price(model, CLUSTER, work, Rows.of(strategy), calibrate(CLUSTER), Ticks(2.0**-60))
    layer, embedding = (int(prices.saved["none"][0, k]) for k in (0, -2))
    worst = max(a * (layer + embedding) + b * 2 * layer for a, b in in_flight(2, 2, 4, 0))

    assert estimated(strategy, model=model, work=work).memory[0]["activations"] == worst


def test_a_device_waits_for_the_bucket_of_its_first_virtual_stage():
    """All hides but the last bucket ready and the first one needed: the embedding's on rank 0, layer 3's on rank 1."""
    model, rows = small_model((0, 0, 0, 1, 0, 0, 0, 0)), make_rows(pp=2, dp_shard=4, zero=1, virtual=2, micro_batches=2)
    work = Training(seq_len=64, global_batch=8)
    prices = price(model, CLUSTER, work, rows, calibrate(CLUSTER), Ticks(2.0**-60))
    chain = Chain(model, dataclasses.replace(prices, overlap=1.0, interference=0.0), 0)
    i, j, long = np.array([0, 3, 4, 6]), np.array([3, 4, 6, 8]), np.full(4, 2**50)
    buckets, update = (prices.reduce + prices.gather)[0], prices.update[0]

    found = device_tails(chain, i, j, long, long)

    assert found[0] == buckets[-2] + 5 * update[0] + update[-2]
    assert found[1] == buckets[1] + update[1] + 2 * update[0] + update[-1]


def test_a_tied_head_has_a_second_copy_of_the_embedding():
    """On the last of two stages: 128 * 16 elements, 2 + 4 + 12 bytes each; on one stage none."""
    work = Training(seq_len=64, global_batch=2)

    def found(tied, pp):
        return estimated(make_strategy((16 // pp,) * pp, pp=pp), model=small_model((0,) * 16, tied=tied), work=work)

    weights = [found(True, 2).memory[s]["weights"] - found(False, 2).memory[s]["weights"] for s in (0, 1)]
    assert weights == [0, 0]
    assert found(False, 1).need_bytes[0] - found(True, 1).need_bytes[0] == 128 * 16 * 18


def test_recompute_costs_time_and_saves_memory():
    none, selective, full = (estimated(make_strategy((16, 16), pp=2, recompute=r, micro_batches=4)) for r in RECOMPUTE)

    assert none.step_s < selective.step_s < full.step_s
    assert none.need_bytes > selective.need_bytes > full.need_bytes
    assert "recompute" in dict(full.time) and dict(none.time).get("recompute", 0) < 1e-6 * none.step_s


def test_utilisation_by_hand():
    """3 times the forward FLOP of all tokens over 4 devices' peak."""
    found = estimated(make_strategy((32,), tp=2, dp_shard=2, micro_batches=4))
    flop = 3 * LARGE.forward_flop_per_token(1024) * 1024 * 8

    assert found.devices_used == 4 and found.hosts_used == 1
    assert found.model_flop_utilisation == pytest.approx(flop / (found.step_s * 4 * CLUSTER.peak_flop_per_s("bf16")))
    assert found.tokens_per_s_per_device == pytest.approx(1024 * 8 / found.step_s / 4)
    assert 0.2 < found.model_flop_utilisation < 0.7


def test_headroom_is_what_the_fullest_rank_leaves():
    found = estimated(make_strategy((20, 12), pp=2))

    assert found.headroom_fraction == pytest.approx(1 - max(found.need_bytes) / CLUSTER.memory_bytes)


@pytest.mark.parametrize("layers", [(32,), (8, 8, 8, 8)])
def test_the_interval_contains_the_step_and_has_a_width(layers):
    """It is that of dense training on the workload's stack and on that accelerator."""
    strategy = make_strategy(layers, pp=len(layers), tp=2, dp_shard=2, micro_batches=4)
    found = estimated(strategy)
    low, high = found.interval_s

    assert low < found.step_s < high and 0.03 < (high - low) / found.step_s < 1.0
    assert found.interval_s == interval(
        "time", found.step_s, "megatron-core", "dense", "hopper", CLUSTER.accelerator.name, hosts=found.hosts_used
    )


def test_a_step_is_that_of_the_workloads_stack():
    """A host that takes a second for each launch of either pass, if nobody records graphs of them."""
    strategy, work = make_strategy((32,), micro_batches=4), Training(seq_len=1024, global_batch=4)
    graphs = work.model_copy(update={"stack": Stack(cuda_graphs=True)})
    fits = dataclasses.replace(calibrate(CLUSTER), host_s=1.0)
    launches = sum(len(layer.operators) for layer in (*LARGE.kinds * LARGE.layers, LARGE.embedding, LARGE.head))

    assert estimated(strategy, work=graphs, fits=fits).step_s < 10
    assert estimated(strategy, work=work, fits=fits).step_s == pytest.approx(4 * 2 * launches, rel=0.01)


def test_a_power_cap_stretches_the_step_until_it_is_met():
    strategy = make_strategy((32,), tp=2, micro_batches=4)
    free = estimated(strategy)
    static_w = static_power(Rows.of(strategy), CLUSTER).facility_w[0]
    cap_w = (free.watts["facility"] + static_w) / 2
    capped = estimated(strategy, power_cap_w=cap_w)

    assert capped.step_s > free.step_s and capped.step_ticks == free.step_ticks
    assert capped.watts["facility"] == pytest.approx(cap_w)
    assert sum(dict(capped.time).values()) == pytest.approx(capped.step_s)
    assert dict(capped.time)["power cap"] == pytest.approx(capped.step_s - free.step_s)
    assert estimated(strategy, power_cap_w=1e9).step_s == free.step_s


def test_dollars_are_rent_where_there_is_a_price_and_electricity_where_not():
    strategy = make_strategy((32,), micro_batches=4)
    rented = dataclasses.replace(CLUSTER, price_usd_per_device_hour=3.0)
    figures = CLUSTER.accelerator.figures.model_copy(update={"price": None})
    owned = dataclasses.replace(
        CLUSTER, price_usd_per_device_hour=None, accelerator=CLUSTER.accelerator.model_copy(update={"figures": figures})
    )
    tariff = CLUSTER.facility.figures.electricity_price.value
    found = estimated(strategy, cluster=owned)

    assert estimated(strategy, cluster=rented).usd == pytest.approx(found.step_s * 8 * 3.0 / 3600)
    assert found.usd == pytest.approx(found.joules / 3.6e6 * tariff)


def test_longer_stages_may_be_the_last():
    """60 layers on 16: 3 on the first four, as InternEvo has them."""
    assert [stage.layers for stage in uniform_stages(60, 16, longer_last=True)] == [3] * 4 + [4] * 12


def test_stages_that_are_filled_leave_the_rest_to_the_last():
    """78 layers on 12, as BigScience's chronicle has them; none left over; more than filled ones leave any for."""
    assert [stage.layers for stage in filled_stages(78, 12)] == [7] * 11 + [1]
    assert filled_stages(72, 12, "full") == uniform_stages(72, 12, "full")
    assert filled_stages(13, 8) == uniform_stages(13, 8)


def test_full_stages_leave_the_ends_what_is_left():
    """61 layers and a prediction behind them, as Megatron-Bridge lays out DeepSeek V3; 61 as Kimi K2; one too few."""
    deepseek = [stage.layers for stage in full_stages(61, 16, behind=1)]
    assert deepseek == [4] * 15 + [2]
    assert [stage.layers for stage in full_stages(61, 32, behind=1)] == [1, *[2] * 30, 1]
    assert [stage.layers for stage in full_stages(61, 8)] == [8] * 7 + [5]
    assert full_stages(61, 40) == uniform_stages(61, 40)


def test_stages_by_cost_take_blocks_until_their_part_is_full():
    """Llama3 8B on 8 as nanotron's documentation begins, the head as 2.2 layers; a head alone; too few layers."""
    llama = [stage.layers for stage in stages_by_cost([*[1.0] * 32, 2.16], 8)]
    assert llama == [5, 4, 4, 5, 4, 4, 4, 2]
    assert [stage.layers for stage in stages_by_cost([1.0, 1.0, 1.9], 2)] == [2, 0]
    assert stages_by_cost([1.0, 1.0, 9.0], 3) == uniform_stages(2, 3)


@given(st.lists(st.floats(0.1, 10.0), min_size=2, max_size=60), st.integers(1, 12))
def test_stages_by_cost_hold_every_layer(costs, stages):
    found = [stage.layers for stage in stages_by_cost(costs, stages)]
    assert sum(found) == len(costs) - 1 and len(found) == stages and min(found) >= 0


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 2))
def test_full_stages_hold_every_layer(layers, stages, behind):
    found = [stage.layers for stage in full_stages(layers, stages, behind=behind)]
    assert sum(found) == layers + behind and len(found) == stages and min(found) >= 0


@given(st.integers(1, 200), st.integers(1, 40))
def test_uniform_stages_differ_by_one_at_most(layers, stages):
    cut = [stage.layers for stage in uniform_stages(layers, stages)]

    assert len(cut) == stages and sum(cut) == layers and max(cut) - min(cut) <= 1
    longer = [c for c, n in enumerate(cut) if n > min(cut)]
    assert not longer or abs(longer[0] + longer[-1] + 1 - stages) <= 1
