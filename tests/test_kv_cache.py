"""KV caches in memory tiers: bytes and seconds by hand, and what is never quicker."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from cost_models.calibration import calibrate
from cost_models.communication import collective_s, p2p_s
from cost_models.decoding import decoded_token
from cost_models.kv_cache import (
    DecodeRows,
    balanced_shares,
    cache_bytes_per_token,
    decode_rates,
    held,
    layer_cache_bytes,
    shares,
    stage_sums,
)
from cost_models.power import host_power
from planner.errors import InfeasiblePlan
from planner.infrastructure.kv_cache import kv_cache
from planner.read_model import read_model
from topologies.ready import read_cluster
from topologies.tiers import Tier, with_tiers

LLAMA, HOST = read_model("llama-3.1-70b"), read_cluster("dgx-h100:1")
FITS = calibrate(HOST)
LINK = 55e9
RATES = st.floats(1e9, 1e12)
LAYER_BYTES = 8 / 8 * 256 * 2
"""One KV head of keys and values of 128 each is what one of 8 ranks keeps a token and layer, in 16 bits."""


def token(rows, *tiers, share=None):
    """One token of 70B on eight H100 with shares of the cache in tiers."""
    rates = decode_rates(rows, tiers, HOST)
    part = np.zeros((len(rows.tp), 0)) if share is None else np.array([share], dtype=float)
    return decoded_token(LLAMA, HOST, rows, part, rates, FITS)


def slow_tier(read=10e9, write=10e9, latency_s=0.0, **more):
    return Tier("slow", "cxl", 1e15, LINK, read, write, latency_s, **more)


@pytest.mark.parametrize(
    ("model", "context", "bytes_a_token"),
    [
        ("llama-3.1-70b", 1000, 80 * 8 * 2 * 128 * 2),
        ("gpt3-175b", 1000, 96 * 2 * 12288 * 2),
        ("deepseek-v3", 1000, 61 * (512 + 64) * 2),
        ("gemma-2-27b", 4096, 46 * 16 * 2 * 128 * 2),
        ("gemma-2-27b", 8192, 46 * 16 * 2 * 128 * 2 * 3 / 4),
        ("mistral-7b", 32768, 32 * 8 * 2 * 128 * 2 / 8),
    ],
)
def test_bytes_of_a_token(model, context, bytes_a_token):
    """GQA, all heads, a latent, windows of 4,096 in every other layer or in all."""
    assert cache_bytes_per_token(read_model(model), context) == pytest.approx(bytes_a_token)
    assert cache_bytes_per_token(read_model(model), context, "fp8") == pytest.approx(bytes_a_token / 2)


def test_ranks_divide_heads_down_to_one_and_no_latent():
    tokens, ranks = np.array([100.0]), np.array([1.0, 4.0, 8.0, 64.0])
    latent = read_model("deepseek-v3").kinds[0]

    heads = layer_cache_bytes(LLAMA.kinds[0], tokens, ranks, 2.0)
    assert heads.tolist() == [8 * 51200.0, 2 * 51200.0, 51200.0, 51200.0]
    assert layer_cache_bytes(latent, tokens, ranks, 2.0).tolist() == [100 * 576 * 2.0] * 4


def test_states_of_a_scan_do_not_grow():
    """Mamba-2 with 8 heads of 4 x 16: fp32, whatever the context is."""
    from planner.read_model.mamba import Mamba, mamba_operators

    layer = dataclasses.replace(LLAMA.kinds[0], operators=mamba_operators(Mamba(8, 4, 1, 16, 4, 128), 32))
    found = layer_cache_bytes(layer, np.array([1.0, 1e6]), np.array([2.0]), 2.0)

    assert found.tolist() == [4 * 8 * 4 * 16 / 2] * 2


def test_a_spill_by_hand():
    """Half of 32 x 100,000 tokens of 512 B a layer comes over the link at 55 GB/s, 80 layers, hiding all else."""
    rows, tier = DecodeRows.of(32, 100_000, 8), Tier("dram", "dram", 1e15, LINK, 1e15, 1e15, 1e-5)
    found = token(rows, tier, share=[0.5])
    layer_s = 32 * 100_000 * LAYER_BYTES / 2 / LINK + 1e-5
    head_s = token(DecodeRows.of(32, 1, 8)).terms["weights"] - 80 * _own_weights_s(rows)

    assert float(found.seconds[0]) == pytest.approx(80 * layer_s + float(head_s[0]), rel=1e-9)


def _own_weights_s(rows):
    """Seconds of one layer's products: a model of one layer less than 70B's eighty."""
    shorter = dataclasses.replace(LLAMA, order=LLAMA.order[:-1])
    nothing = np.zeros((1, 0)), decode_rates(rows, (), HOST)
    return [decoded_token(LLAMA, HOST, rows, *nothing, FITS).terms["weights"]
            - decoded_token(shorter, HOST, rows, *nothing, FITS).terms["weights"]][0]  # fmt: skip


def test_a_token_in_device_memory_by_hand():
    """Reads of cache at what the fit reaches, two all-reduces a layer; products take at least their weights' reads."""
    rows, moving = DecodeRows.of(16, 50_000, 8), FITS.moving
    found = token(rows)
    read = 16 * 50_001 * LAYER_BYTES
    rate = moving.memory_fraction * 3.35e12
    reduce_s = collective_s("all_reduce", 16 * 8192 * 2.0, np.array([8]), HOST.levels, FITS)
    layer_s = moving.launch_s + moving.root_s * (read / 1e6) ** 0.5 + read / rate

    assert float(found.terms["attention"][0]) == pytest.approx(80 * layer_s)
    assert float(found.terms["tensor parallel"][0]) == pytest.approx(160 * float(reduce_s), rel=0.02)
    assert 1.0 < float(found.terms["weights"][0]) / (2 * 70.5e9 / 8 / 3.35e12) < 1.6


def test_memory_that_attends_sends_queries_only():
    """Eight modules of 1.1 TB/s: an eighth each, and 8 heads of 128 there and back; nothing is waited for."""
    tier = with_tiers(HOST, ("cxl-pnm:8",)).tiers[0]
    rows = DecodeRows.of(32, 100_000, 8)
    found = token(rows, tier, share=[0.5])
    held_bytes, queries = 32 * 100_000 * LAYER_BYTES / 2, 32 * 8 * 128 * 2
    way_s = tier.latency_s + max(queries / LINK, 8 * queries / (8 * 60e9))
    near_s = held_bytes / 1.1e12 + 2 * way_s

    assert float(found.terms["attention"][0]) == pytest.approx(80 * near_s)
    assert float(found.terms["memory tiers"][0]) == 0.0
    without = dataclasses.replace(tier, attend_bytes_per_s=0.0)
    assert float(token(rows, without, share=[0.5]).seconds[0]) > 5 * float(found.seconds[0])


@pytest.mark.parametrize("pp", [1, 2])
def test_ranks_and_stages_hold_every_weight_once(pp):
    """But for norms, whole on every rank, and an embedding that serves as head, once more on a last stage."""
    tied = read_model("llama-3.2-1b")
    for model, twice in ((LLAMA, 0), (tied, tied.embedding.parameters * (pp > 1))):
        it = held(model, HOST, DecodeRows.of(1, 1, 8, pp), FITS)
        norms = 7 * (sum(model.kinds[k].whole_parameters for k in model.order) + model.head.whole_parameters)
        assert float(it.weights.sum()) * 8 == pytest.approx(2 * (model.parameters + twice + norms))


def test_stages_pass_hidden_states_on():
    """Three hops of a rank's eighth of 8 sequences' hidden states, 4 passes of 32 being on their way."""
    cluster = read_cluster("dgx-h100:4")
    rows, fits = DecodeRows.of(32, 1000, 8, 4), calibrate(cluster)
    found = decoded_token(LLAMA, cluster, rows, np.zeros((1, 0)), decode_rates(rows, (), cluster), fits)
    hop = p2p_s(2.0 * 8 * 8192 / 8, np.array([[1, 2]]), cluster.levels, fits)

    assert float(found.terms["pipeline"][0]) == pytest.approx(3 * float(hop[0]))


def test_stages_without_a_sequence_take_no_dynamic_joules():
    """One sequence moves the same bytes in four stages as in one, two twice; idle watts take the seconds' part."""
    cluster = read_cluster("dgx-h100:1")
    model, fits = read_model("llama-3.1-8b"), calibrate(cluster)

    def dynamic_joules(batch, pp):
        rows = DecodeRows.of(batch, 1000, 2, pp)
        found = decoded_token(model, cluster, rows, np.zeros((1, 0)), decode_rates(rows, (), cluster), fits)
        return float(found.joules[0] - host_power(rows.hosts(cluster), cluster).facility_w[0] * found.seconds[0])

    one = dynamic_joules(1, 1)
    assert [dynamic_joules(batch, 4) / one for batch in (1, 2, 4)] == pytest.approx([1, 2, 4])


def test_few_tokens_read_few_experts():
    """One token meets 2 of 8 experts, 256 all: an eighth of the experts is a rank's, a quarter of that is read."""
    moe = read_model("mixtral-8x22b")
    once, often = (
        float(decoded_token(moe, HOST, r, np.zeros((1, 0)), decode_rates(r, (), HOST), FITS).terms["weights"][0])
        for r in (DecodeRows.of(1, 100, 8), DecodeRows.of(256, 100, 8))
    )
    assert once < 0.5 * often


def test_copies_share_the_cluster_s_watts():
    one, two = (kv_cache("llama-3.1-70b", f"dgx-h100:{n}", context=8192, batch=4) for n in (2, 4))

    assert (one.copies, two.copies) == (2, 4)
    assert two.joules_per_token == pytest.approx(one.joules_per_token)
    assert two.tokens_per_s == pytest.approx(2 * one.tokens_per_s)


def test_what_stays_is_what_fits_beside_two_layers_on_their_way():
    """Two stages of 40 layers at 100 a layer: with room for 1,000 of 4,000, 800 and two layers' rest stay."""
    rows = DecodeRows.of(1, 1, 1, 2)
    it = dataclasses.replace(
        held(LLAMA, HOST, rows, FITS), cache=np.array([[4000.0, 4000.0]]), room=np.array([[1000.0, 2000.0]]),
        layer=np.array([100.0]),
    )  # fmt: skip
    assert float(it.kept[0]) == pytest.approx(800 / 3800)
    assert float(it.kept[0]) * 4000 + 2 * (1 - float(it.kept[0])) * 100 == pytest.approx(1000)
    assert float(dataclasses.replace(it, room=np.array([[150.0, 5000.0]])).kept[0]) < 0
    assert float(dataclasses.replace(it, room=it.cache).kept[0]) == 1.0


def test_a_pass_stages_its_own_sequences_only():
    """64 sequences in 3 stages are 22 a pass: what stays and two layers' rest of those fill the room."""
    it = kv_cache("deepseek-v3", "dgx-h100:4", context=131072, batch=64)
    device, layer_bytes = it.places[0], 22 * 131072 * 576 * 2

    assert it.pp == 3 and 0 < device.share < 0.1
    assert device.holds_bytes + 2 * (1 - device.share) * layer_bytes == pytest.approx(device.room_bytes)
    with pytest.raises(InfeasiblePlan, match="two layers on their way need 413 GB for 1366 sequences of a pass"):
        kv_cache("deepseek-v3", "dgx-h100:4", context=131072, batch=4096)


def test_quick_tiers_are_filled_first():
    rows = DecodeRows.of(1, 1, 8)
    it = dataclasses.replace(
        held(LLAMA, HOST, rows, FITS), cache=np.array([[1000.0]]), room=np.array([[0.0]]), layer=np.array([0.0])
    )
    tiers = (slow_tier(5e9), Tier("quick", "cxl", 8 * 300.0, LINK, 100e9, 100e9, 0.0))
    assert shares(it, decode_rates(rows, tiers, HOST)).tolist() == [[pytest.approx(0.7), pytest.approx(0.3)]]


def spilling(need=1000.0):
    """A cache of 1,000 bytes of which so much does not stay."""
    rows = DecodeRows.of(1, 1, 8)
    it = held(LLAMA, HOST, rows, FITS)
    room = np.array([[1000.0 - need]])
    return rows, dataclasses.replace(it, cache=np.array([[1000.0]]), room=room, layer=np.array([0.0]))


def test_two_tiers_at_once_add_up():
    """1 and 3 GB/s a device take a quarter and three; half of the room of the quick one is the rest of the slow."""
    rows, it = spilling(800.0)
    slow, quick = slow_tier(8e9), Tier("quick", "cxl", 1e15, LINK, 24e9, 24e9, 0.0)
    small = dataclasses.replace(quick, capacity_bytes=8 * 300.0)

    assert balanced_shares(it, decode_rates(rows, (slow, quick), HOST))[0].tolist() == pytest.approx([0.2, 0.6])
    assert balanced_shares(it, decode_rates(rows, (slow, small), HOST))[0].tolist() == pytest.approx([0.5, 0.3])
    near = dataclasses.replace(slow, attend_bytes_per_s=72e9)
    assert balanced_shares(it, decode_rates(rows, (near, quick), HOST))[0].tolist() == pytest.approx([0.6, 0.2])
    assert balanced_shares(it, decode_rates(rows, (), HOST)).shape == (1, 0)


def test_memory_that_attends_alone_and_is_too_small_is_filled():
    """800 GB that spill, room for 300 a device in the only tier."""
    rows, it = spilling(800.0)
    large = dataclasses.replace(it, cache=it.cache * 1e9, room=it.room * 1e9)
    near = Tier("near", "cxl-pnm", 8 * 300e9, LINK, 8e9, 8e9, 0.0, attend_bytes_per_s=72e9)

    assert balanced_shares(large, decode_rates(rows, (near,), HOST))[0].tolist() == pytest.approx([0.3])


@examples(60)
@given(st.lists(st.tuples(RATES, st.floats(0, 900), st.booleans()), min_size=1, max_size=3), st.floats(10, 1000))
def test_no_other_shares_are_through_earlier(each, need):
    """Against shares of the quickest tier first and, for what fits, all others on a grid."""
    rows, it = spilling(need)
    tiers = tuple(
        Tier(f"t{k}", "cxl", 8 * room, LINK, rate, rate, 0.0, attend_bytes_per_s=2 * rate if attends else 0.0)
        for k, (rate, room, attends) in enumerate(each)
    )
    rates = decode_rates(rows, tiers, HOST)
    found, first = balanced_shares(it, rates), shares(it, rates)

    assert found.sum() == pytest.approx(first.sum(), abs=1e-9)
    assert (found * 1000 <= rates.room_bytes * (1 + 1e-9)).all()
    grid = np.array(list(itertools.product(np.linspace(0, 1, 6), repeat=len(tiers)))) * rates.room_bytes / 1000
    legal = grid[abs(grid.sum(axis=1) / found.sum() - 1) < 0.1] if found.sum() > 1e-3 else grid[:0]
    for other in (first, *legal[:, None] * (found.sum() / legal.sum(axis=1))[:, None, None]):
        if (other * 1000 <= rates.room_bytes * (1 + 1e-9)).all():
            assert _through_s(found, rates) <= _through_s(other, rates) * (1 + 1e-9)


def _through_s(share, rates):
    """Seconds until every tier has read its part or attended to it."""
    attends = np.isfinite(rates.attend)
    near = np.where(attends, share * np.where(attends, rates.attend, 0.0), 0.0).max()
    return max(float(near), float(rates.seconds(share * ~attends, 0.0 * share)[0]))


def test_a_spill_over_two_tiers_is_quicker_than_over_one():
    """CXL modules and drives of a DGX H100 are read at 18 and 6.9 GB/s a device, both through its link of 55."""
    ask = {"context": 131072, "batch": 16}
    both = kv_cache("llama-3.1-70b", "dgx-h100:1", **ask, tiers=("cxl-expander:4", "nvme"))
    one = kv_cache("llama-3.1-70b", "dgx-h100:1", **ask, tiers=("cxl-expander:4",))
    parts = {place.name: place.share for place in both.places}

    assert parts["nvme"] / parts["cxl-expander"] == pytest.approx(55 / (4 * 36), rel=0.01)
    assert both.token_s == pytest.approx(one.token_s * 144 / (144 + 55), rel=0.02)
    assert kv_cache("llama-3.1-70b", "dgx-h100:1", **ask, tiers=("dram", "nvme")).token_s <= one.token_s


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=12), st.integers(1, 12))
def test_stages_hold_every_layer_once(sizes, pp):
    each, stages = np.array([sizes, sizes]), float(min(pp, len(sizes)))
    found = stage_sums(each, np.array([stages, 1.0]))

    assert found.sum(axis=1) == pytest.approx(each.sum(axis=1))
    assert found[1, 1:].sum() == 0.0


@examples(120)
@given(
    st.integers(1, 256), st.integers(1, 131072), st.floats(0.05, 1.0), RATES, RATES, st.floats(1.0, 50.0),
    st.floats(0, 1e-4), st.booleans(),
)  # fmt: skip
def test_more_bytes_or_a_slower_tier_are_never_quicker(batch, context, spilled, read, write, slower, latency, attends):
    attend = 10 * read if attends else 0.0
    quick = slow_tier(read, write, latency / 2, attend_bytes_per_s=attend)
    slow = slow_tier(read / slower, write / slower, latency, attend_bytes_per_s=attend / slower)
    rows, more = DecodeRows.of(batch, context, 8), DecodeRows.of(batch + 1, 2 * context, 8)
    first = token(rows, quick, share=[spilled])

    assert token(rows, slow, share=[spilled]).seconds >= first.seconds * (1 - 1e-12)
    assert token(more, quick, share=[spilled]).seconds >= first.seconds * (1 - 1e-12)
    assert token(more, quick, share=[spilled]).joules >= first.joules * (1 - 1e-12)


def test_remote_drives_are_slower_than_local_ones_and_dram_quickest():
    names = ("dram", "nvme", "nvme-remote", "cxl-expander:4", "cxl-pnm-card:8")
    it = kv_cache("llama-3.1-70b", "dgx-h100:1", context=131072, batch=16, tiers=names)
    found = {p.name: p for p in it.places}
    alone = {name: place.alone_s for name, place in found.items()}

    assert alone["device memory"] < alone["cxl-pnm-card"] < alone["dram"] < alone["cxl-expander"] < alone["nvme-remote"]
    assert alone["dram"] < alone["nvme"] < alone["nvme-remote"]
    assert found["device memory"].share + found["cxl-pnm-card"].share > 0.9
    assert it.token_s < 0.9 * alone["cxl-pnm-card"]
    assert sum(place.holds_bytes for place in found.values()) == pytest.approx(131072 * 16 * 80 * LAYER_BYTES)
