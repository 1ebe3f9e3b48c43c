"""Prices: whole numbers, rounded up once, in ticks that scale with the machine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from costs import byte_cluster, expert_layer, make_rows, plain_fits, small_layer, small_model, two_hosts
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from cost_models.calibration import calibrate
from cost_models.memory import STATES, state_bytes
from cost_models.price import Prices, price
from cost_models.rows import Rows
from cost_models.stack import Stack
from cost_models.strategy import RECOMPUTE
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner.read_model import read_model
from topologies.ready import read_cluster

CLUSTER, MODEL = two_hosts(), small_model((0, 1, 0, 1), tied=True)
WORK = Training(seq_len=64, global_batch=64)
TIMES = ("forward", "backward", "extra", "hop", "reduce", "gather", "update")
SIZES = ("states", "saved", "fixed", "logits", "tied_states")


def some_rows() -> Rows:
    return Rows.concat([
        make_rows("dp_shard pp", tp=t, pp=p, cp=c, dp_shard=4, ep=2, zero=z)
        for t in (1, 2) for p in (1, 2) for c in (1, 2) for z in range(4)
    ])  # fmt: skip


def prices_of(cluster=CLUSTER, rows=None, relaxed=False, fits=None, model=MODEL, ticks=None) -> Prices:
    rows, ticks = rows or some_rows(), ticks or Ticks.of(model, cluster, WORK)
    return price(model, cluster, WORK, rows, fits or calibrate(cluster), ticks, relaxed=relaxed)


def tables(prices, names):
    """Each table with its name, those of dictionaries one by one."""
    for name in names:
        value = getattr(prices, name)
        yield from ((f"{name} {k}", v) for k, v in value.items()) if isinstance(value, dict) else [(name, value)]


def test_times_and_sizes_are_whole_and_not_negative():
    for _, table in tables(prices_of(), TIMES + SIZES):
        assert table.dtype == np.int64 and (table >= 0).all()


def test_embedding_and_head_are_the_last_two_kinds():
    prices = prices_of()

    assert prices.forward.shape == (len(some_rows()), 4)
    for column, kind in enumerate((*MODEL.kinds, MODEL.embedding, MODEL.head)):
        expected = state_bytes(kind, some_rows(), WORK)
        for name in STATES:
            assert (prices.states[name][:, column] == np.ceil(expected[name])).all()


@pytest.mark.parametrize("factor", [2, 0.25])
def test_a_machine_that_is_uniformly_faster_has_the_same_integers(factor):
    """Ticks scale with it: the search makes the same choices."""
    twin = CLUSTER.scaled(factor)
    one, two = prices_of(), prices_of(twin)

    assert two.ticks.second == one.ticks.second / factor
    for (name, a), (_, b) in zip(tables(one, TIMES + SIZES), tables(two, TIMES + SIZES), strict=True):
        assert (a == b).all(), name


def test_ticks_are_fine_and_round_up():
    model, work = read_model("llama-3.1-8b"), Training(seq_len=8192, global_batch=64)
    ticks = Ticks.of(model, CLUSTER, work)
    flop = 3 * model.forward_flop_per_token(8192) * 8192 * 64

    assert 2**44 <= flop / (8 * CLUSTER.peak_flop_per_s("bf16")) / ticks.second < 2**45
    assert np.log2(ticks.second) % 1 == 0
    assert Ticks(0.5).up(np.array([0.0, 0.1, 0.5, 0.51])).tolist() == [0, 1, 1, 2]


def test_a_step_of_latencies_alone_stays_far_below_what_an_integer_holds():
    """A hidden width of 16 and one token: what is priced is launches and messages, not FLOP."""
    tiny = Training(seq_len=1, global_batch=64)
    cluster = read_cluster("p5:64")
    ticks = Ticks.of(MODEL, cluster, tiny)
    prices = price(MODEL, cluster, tiny, make_rows("dp_shard", tp=4, dp_shard=64), calibrate(cluster), ticks)
    ticks_a_step = 64 * MODEL.layers * int((prices.forward + prices.backward).max()) + int(prices.reduce.sum())

    assert 0 < ticks_a_step < 2**63 / 8


def test_ticks_stay_within_half_a_millionth_of_the_seconds():
    prices = prices_of()
    seconds = sum(prices.parts.values())

    ticks = (prices.forward + prices.backward) * prices.ticks.second
    assert (ticks >= seconds * (1 - 1e-12)).all() and ticks == pytest.approx(seconds, rel=5e-7)


def test_hop_is_a_shard_of_the_hidden_state():
    """3 * 64 tokens over tp 2 and cp 5, 16 wide in bf16, at a byte a second."""
    cluster = byte_cluster()
    rows = make_rows("pp", tp=2, cp=5, pp=3, micro_batch=3)
    hop, none = (
        prices_of(cluster, r, fits=plain_fits(cluster), ticks=Ticks(2.0**-20)).hop[0] for r in (rows, make_rows(tp=2))
    )

    assert hop / 2**20 == pytest.approx(3 * 64 / 10 * 32)
    assert none == 0


def test_full_recompute_repeats_forward_but_not_its_weight_gathers():
    prices, relaxed = prices_of(), prices_of(relaxed=True)

    assert (prices.extra["full"] == relaxed.forward).all()
    assert (prices.extra["none"] == 0).all()
    assert (prices.extra["selective"][:, :2] > 0).all()
    assert (prices.extra["selective"] <= prices.extra["full"]).all()


def test_recompute_saves_layers_but_not_embedding_and_head():
    saved = prices_of().saved

    for less, more in zip(RECOMPUTE[1:], RECOMPUTE, strict=False):
        assert (saved[less][:, :2] < saved[more][:, :2]).all()
        assert (saved[less][:, 2:] == saved[more][:, 2:]).all()


def test_fragmentation_grows_what_is_saved():
    fits = plain_fits(CLUSTER)
    plain = prices_of(fits=fits).saved["none"]
    loose = prices_of(fits=dataclasses.replace(fits, fragmentation_fraction=0.25)).saved["none"]

    assert loose == pytest.approx(1.25 * plain, abs=1)


def test_the_reserve_is_the_context_and_the_workspaces_share():
    fits = dataclasses.replace(plain_fits(CLUSTER), fragmentation_fraction=0.5, context_bytes=1000.0)
    fixed = prices_of(fits=fits).fixed

    assert set(fixed) == {"buffers", "workspace", "reserve"}
    assert fixed["reserve"] == pytest.approx(1000 + fixed["workspace"] / 2, abs=1)
    assert (prices_of().fixed_bytes == sum(prices_of().fixed.values())).all()


@pytest.mark.parametrize("tied", [True, False])
def test_only_a_tied_model_in_stages_copies_its_embedding(tied):
    prices = prices_of(model=small_model((0, 1, 0, 1), tied=tied))
    copied = tied * (prices.rows.pp > 1)

    for name in STATES:
        assert (prices.tied_states[name] == copied * prices.states[name][:, -2]).all()
    assert (prices.tied_bytes == copied * prices.state_bytes[:, -2]).all()


def test_take_and_virtual_stages_change_nothing_else():
    prices, index = prices_of(), np.array([3, 1])
    taken, virtual = prices.take(index), prices.with_virtual(5)

    for (name, a), (_, b), (_, c) in zip(
        tables(prices, TIMES + SIZES), tables(taken, TIMES + SIZES), tables(virtual, TIMES + SIZES), strict=True
    ):
        assert (a[index] == b).all() and (a == c).all(), name
    assert taken.rows.zero.tolist() == [3, 1] and set(virtual.rows.virtual.tolist()) == {5}


@examples(80)
@given(
    tp=st.sampled_from([1, 2, 4]), cp=st.sampled_from([1, 2]), dp_shard=st.sampled_from([1, 2, 8]),
    dp_replicate=st.sampled_from([1, 2]), pp=st.sampled_from([1, 2, 4]), zero=st.integers(0, 3),
    micro_batch=st.integers(1, 4), outer=st.sampled_from(["", "dp_shard", "tp", "pp dp_replicate"]),
    layers=st.sampled_from([(small_layer(), expert_layer()), (small_layer(width=96), small_layer())]),
)  # fmt: skip
def test_relaxed_prices_are_never_above(outer, layers, **degrees):
    model, rows = dataclasses.replace(MODEL, kinds=layers), make_rows(outer, **degrees)
    full, least = (prices_of(rows=rows, relaxed=r, model=model) for r in (False, True))

    names = (*TIMES, *SIZES, "joules_pass", "joules_extra", "joules_step")
    for (name, a), (_, b) in zip(tables(least, names), tables(full, names), strict=True):
        assert (a <= b).all(), name


def test_full_recompute_that_stops_early_saves_time_and_energy_of_each_layer():
    """The last product of a dense layer; what combines experts is kept, so that their layer runs again whole."""
    early = WORK.model_copy(update={"stack": Stack(early_stop=True)})
    rows, ticks = some_rows(), Ticks.of(MODEL, CLUSTER, WORK)
    whole, stopped = (price(MODEL, CLUSTER, work, rows, calibrate(CLUSTER), ticks) for work in (WORK, early))

    for name in ("extra", "joules_extra"):
        less, more = (getattr(prices, name) for prices in (stopped, whole))
        assert (less["full"][:, 0] < more["full"][:, 0]).all(), name
        assert (less["full"][:, 1] == more["full"][:, 1]).all(), name
        assert (less["selective"] == more["selective"]).all(), name
    assert (stopped.forward == whole.forward).all()
    assert (stopped.extra["selective"][:, :2] <= stopped.extra["full"][:, :2]).all()
