"""Segments by prefix sums against sums layer by layer, on models with more than one kind of layer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from costs import make_rows, make_stages, small_model, two_hosts
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from cost_models.calibration import calibrate
from cost_models.chain import Chain, joules, repetition
from cost_models.memory import STATES
from cost_models.price import price
from cost_models.strategy import RECOMPUTE, LayerChoice, LayerRun, Stage
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner.read_model import read_model

CLUSTER, WORK = two_hosts(), Training(seq_len=64, global_batch=64)
ORDER = (0, 1, 1, 0, 0, 1, 0)


def chain_of(model, **degrees) -> Chain:
    rows = make_rows("dp_shard", **({"tp": 2, "pp": 2, "dp_shard": 4, "zero": 1} | degrees))
    return Chain(model, price(model, CLUSTER, WORK, rows, calibrate(CLUSTER), Ticks.of(model, CLUSTER, WORK)), 0)


CHAINS = {
    "small": chain_of(small_model(ORDER)),
    "small tied": chain_of(small_model(ORDER, tied=True)),
    "deepseek-v3": chain_of(read_model("deepseek-v3"), ep=4, zero=3, tp=1),
}


def layer_by_layer(chain, table, i, j, ends=True):
    """The sum of a table over layers ``i`` to ``j - 1``, one at a time."""
    row = table[0].tolist()
    total = sum(row[chain.order[layer]] for layer in range(i, j))
    if ends:
        total += row[-2] * (i == 0) + row[-1] * (j == chain.layers)
    return total


@pytest.mark.parametrize("name", CHAINS)
@given(data=st.data())
def test_sums_over_segments(name, data):
    chain = CHAINS[name]
    i = data.draw(st.integers(0, chain.layers - 1))
    j = data.draw(st.integers(i + 1, chain.layers))
    prices = chain.prices
    copy = j == chain.layers and i > 0

    assert chain.forward(i, j) == layer_by_layer(chain, prices.forward, i, j)
    assert chain.backward(i, j) == layer_by_layer(chain, prices.backward, i, j)
    for choice in RECOMPUTE:
        assert chain.recompute(choice, i, j) == layer_by_layer(chain, prices.extra[choice], i, j, ends=False)
        assert chain.saved(choice, i, j) == layer_by_layer(chain, prices.saved[choice], i, j, ends=False)
    for state in STATES:
        expected = layer_by_layer(chain, prices.states[state], i, j) + copy * prices.tied_states[state][0]
        assert chain.states(i, j)[state] == expected
    assert chain.state_bytes(i, j) == sum(chain.states(i, j).values())
    assert chain.logit_bytes(i, j) == (prices.logits[0] if j == chain.layers else 0)


def test_ends_hold_embedding_and_head():
    chain = CHAINS["small"]
    saved = chain.prices.saved["none"][0]

    assert chain.saved_ends(0, 3) == saved[-2]
    assert chain.saved_ends(3, 7) == saved[-1]
    assert chain.saved_ends(0, 7) == saved[-2] + saved[-1]
    assert chain.saved_ends(2, 5) == 0


def test_segments_broadcast():
    chain = CHAINS["small"]
    i, j = np.array([0, 2, 4]), np.array([2, 4, 7])

    assert chain.forward(i, j).tolist() == [chain.forward(a, b) for a, b in zip(i, j, strict=True)]
    assert chain.forward(i, j).sum() == chain.forward(0, 7)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ((1, 1, 1, 1), (0, 1)), ((0, 1, 1, 1), (1, 1)), ((0, 1, 0, 1, 0), (0, 2)), ((2, 0, 1, 0, 1), (1, 2)),
        ((0, 1, 2), (2, 1)), ((0,), (0, 1)),
    ],
)  # fmt: skip
def test_where_a_model_begins_to_repeat(order, expected):
    assert repetition(order) == expected


@pytest.mark.parametrize("name", CHAINS)
def test_segments_that_begin_in_one_place_cost_the_same(name):
    chain = CHAINS[name]
    for i in range(1, chain.layers):
        for length in range(1, min(8, chain.layers - i)):
            first = max(1, int(np.flatnonzero(chain.places == chain.places[i])[0]))
            if chain.places[first] == chain.places[i]:
                assert chain.forward(first, first + length) == chain.forward(i, i + length)
                assert chain.places[first + length] == chain.places[i + length]


@pytest.mark.parametrize("name", CHAINS)
def test_parts_of_the_tail(name):
    """What a middle, the first and the last segment reduce; the first bucket of each is its first layer's."""
    chain = CHAINS[name]
    prices, last = chain.prices, chain.layers
    for i, j, bucket in ((0, 2, -2), (2, 4, chain.order[2]), (4, last, chain.order[4])):
        parts = chain.tail_parts(i, j)
        tied = prices.tied_bytes[0] > 0 and j == last
        for part in ("reduce", "update", "gather"):
            table = getattr(prices, part)
            assert parts[part] == layer_by_layer(chain, table, i, j) + tied * table[0, -2]
        assert parts["last_bucket"] == prices.reduce[0, bucket]
        assert parts["first_bucket"] == prices.gather[0, bucket]


def test_a_tied_heads_copy_is_reduced_and_updated_too():
    tied, untied = (CHAINS[name].tail_parts(4, 7) for name in ("small tied", "small"))
    whole = [CHAINS[name].tail_parts(0, 7)["update"] for name in ("small tied", "small")]

    assert tied["update"] == pytest.approx(int(untied["update"]), rel=0.01)
    assert tied["reduce"] > 0.9 * untied["reduce"]
    assert whole[0] < whole[1]


def parts_of(reduce, update, gather, last_bucket=0, first_bucket=0):
    names = ("reduce", "update", "gather", "last_bucket", "first_bucket")
    return {k: np.array([v]) for k, v in zip(names, (reduce, update, gather, last_bucket, first_bucket), strict=True)}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (parts_of(1000, 70, 300), (1000 - 0.5 * 800) + 70 + (300 - 0.5 * 400) + 0.25 * 1300),
        (parts_of(300, 70, 100), 0 + 70 + 0 + 100),
        (parts_of(300, 70, 100, last_bucket=90, first_bucket=30), 90 + 70 + 30 + 100),
    ],
)
def test_tail_by_hand(parts, expected):
    """overlap 0.5 of backward 800 and forward 400, interference 0.25 of all that is sent."""
    chain = CHAINS["small"]
    prices = dataclasses.replace(chain.prices, overlap=0.5, interference=0.25)

    assert Chain(small_model(ORDER), prices, 0).tail(parts, np.array([400]), np.array([800])) == [expected]


def test_interleaving_hides_communication_behind_more_micro_batches():
    """Two of v = 4 stages' worth of pp = 3 micro-batches and the last one: (1 + 3 * 3) / 4 = 2.5 of 800 and of 400."""
    prices = dataclasses.replace(CHAINS["small"].prices, overlap=0.5, interference=0.0)
    chain = Chain(small_model(ORDER), prices, 0)
    chain.pp, chain.virtual = 3, 4
    parts = parts_of(1500, 70, 800)

    assert chain.tail(parts, np.array([400]), np.array([800])) == [(1500 - 0.5 * 2000) + 70 + (800 - 0.5 * 1000)]
    less = parts_of(1000, 70, 400)
    assert chain.tail(less, np.array([400]), np.array([800])) == [(1000 - 0.5 * 800) / 4 + 70 + (400 - 0.5 * 400) / 4]


def test_ends_that_have_a_stage_to_themselves_are_held_once():
    """Five stages for three layers: the first holds the embedding alone, the last the head."""
    model = small_model((0, 0, 0), vocab=4096)
    chain = chain_of(model)
    runs = chain.runs(make_stages((0, 1, 1, 1, 0)))
    i, j = (np.array([stage[0][side] for stage in runs]) for side in (1, 2))
    layer, first, last = (int(chain.prices.forward[0, kind]) for kind in (0, -2, -1))

    assert chain.forward(i, j).tolist() == [first, layer, layer, layer, last]
    assert (chain.logit_bytes(i, j) > 0).tolist() == [False] * 4 + [True]
    parts = chain.tail_parts(i, j)
    assert parts["update"].sum() == (chain.prices.update[0] * [3, 0, 1, 1]).sum()
    assert (parts["last_bucket"] <= parts["reduce"]).all() and (parts["first_bucket"] <= parts["gather"]).all()
    assert (parts["last_bucket"] == chain.prices.reduce[0, [-2, 0, 0, 0, -1]]).all()


def test_runs_of_stages_in_model_order():
    stages = (Stage((LayerRun(2, LayerChoice("full")), LayerRun(1))), Stage((LayerRun(4, LayerChoice("selective")),)))

    assert CHAINS["small"].runs(stages) == [[("full", 0, 2), ("none", 2, 3)], [("selective", 3, 7)]]


@examples(50)
@given(st.sampled_from(RECOMPUTE), st.integers(1, 9))
def test_joules_by_sums(choice, micro_batches):
    """pp 2, virtual 2: device 0 has stages 0 and 2, device 1 has 1 and 3."""
    chain = chain_of(small_model(ORDER), virtual=2, micro_batches=micro_batches)
    prices, cuts = chain.prices, (0, 1, 3, 5, 7)
    found = joules(chain, chain.runs(make_stages((1, 2, 2, 2), choice)))

    for device in range(2):
        expected = 0.0
        for c in (device, device + 2):
            i, j = cuts[c], cuts[c + 1]
            passes = layer_by_layer(chain, prices.joules_pass, i, j)
            again = layer_by_layer(chain, prices.joules_extra[choice], i, j, ends=False)
            expected += micro_batches * (passes + again) + layer_by_layer(chain, prices.joules_step, i, j)
        assert found[device] == pytest.approx(expected)


def test_a_sum_belongs_to_its_table():
    """Tables that come and go may share an address; their sums must not."""
    chain = CHAINS["small"]
    for factor in range(1, 30):
        assert chain.total(chain.prices.forward * factor, 1, 5) == factor * chain.total(chain.prices.forward, 1, 5)
