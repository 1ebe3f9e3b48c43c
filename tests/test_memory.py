"""Bytes by hand: ZeRO's stages with primes for every degree, activations against the published formula."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from costs import expert_layer, make_rows, plain_fits, small_layer, small_model, two_hosts
from hypothesis import given
from hypothesis import strategies as st

from cost_models.memory import (
    STATES,
    buffer_bytes,
    local_parameters,
    logit_bytes,
    saved_bytes,
    shard_group,
    state_bytes,
    workspace_bytes,
)
from cost_models.model_graph import Attention, Layer, Operator
from cost_models.stack import Stack
from cost_models.workload import Training

FITS = plain_fits(two_hosts())
WORK = Training(seq_len=11, global_batch=1)
# 2 * 3 * 5 * 7 columns' parameters over tp 3, 13 whole; 17 * 66 of experts over ep 11, etp 2.
LAYER = Layer(
    "one",
    (
        Operator("up", "matmul", "columns", parameters=210),
        Operator("norm", "elementwise", "sequence", parameters=4),
        Operator("latent", "matmul", "whole", parameters=9),
        Operator("experts", "expert_matmul", "experts", parameters=17 * 66),
    ),
    experts=66,
    top_k=1,
)
DEGREES = {"tp": 3, "cp": 2, "dp_shard": 11, "dp_replicate": 5, "ep": 11, "etp": 2}  # edp = 330 / 22 = 15
DENSE, EXPERTS = 210 / 3 + 13, 17 * 66 / 22


def test_local_parameters():
    local = local_parameters(LAYER, make_rows(**DEGREES))

    assert (local.dense[0], local.experts[0]) == (DENSE, EXPERTS)


@pytest.mark.parametrize(("zero", "expected"), [(0, (1, 1)), (1, (22, 15)), (2, (22, 15)), (3, (22, 15))])
def test_shard_groups(zero, expected):
    """Dense states over dp_shard * cp, not over replicas; those of experts over all their copies."""
    assert tuple(int(group[0]) for group in shard_group(make_rows(zero=zero, **DEGREES))) == expected


@pytest.mark.parametrize("zero", range(4))
@pytest.mark.parametrize(("precision", "sizes"), [("bf16", (2, 4, 12)), ("fp32", (4, 4, 8))])
def test_states_by_zero_stage(zero, precision, sizes):
    """Stage 1 shards the optimiser, 2 gradients too, 3 weights too."""
    work = Training(seq_len=1, global_batch=1, precision=precision)
    found = state_bytes(LAYER, make_rows(zero=zero, **DEGREES), work)
    whole, sharded = DENSE + EXPERTS, DENSE / 22 + EXPERTS / 15

    for name, size, stage in zip(STATES, sizes, (3, 2, 1), strict=True):
        assert found[name][0] == pytest.approx(size * (sharded if zero >= stage else whole), rel=1e-12)


def test_plain_sgd_keeps_only_the_master_copy():
    found = state_bytes(LAYER, make_rows(), Training(seq_len=1, global_batch=1, optimizer="sgd"))

    assert found["optimizer"][0] == 4 * LAYER.parameters


def test_saved_elements_are_divided_over_tp_and_cp():
    """16-bit: 7 tokens of 2 micro-batches, over cp 7 and tp 5; ``whole`` ones stay whole on every tp rank."""
    columns = Operator("a", "matmul", "columns", saved=500, saved_selective=100)
    whole = Operator("b", "matmul", "whole", saved=30, saved_selective=20)
    found = saved_bytes(Layer("x", (columns, whole)), 40, make_rows(tp=5, cp=7, micro_batch=2),
                        Training(seq_len=49, global_batch=1), FITS)  # fmt: skip

    assert found["none"][0] == pytest.approx(2 * 14 * (500 / 5 + 30))
    assert found["selective"][0] == pytest.approx(2 * 14 * (100 / 5 + 20))
    assert found["full"][0] == pytest.approx(2 * 14 * 40 / 5)


@pytest.mark.parametrize(("precision", "byte"), [("fp8", 1.0), ("fp4", 0.5625), ("bf16", 2.0)])
def test_inputs_of_products_are_kept_as_they_are_multiplied(precision, byte):
    """The norm keeps 16 elements in 16 bits and 16 as its product reads them; attention a second copy of its 40."""
    norm = Operator("attention_norm", "elementwise", "sequence", saved=32, saved_selective=16)
    scores = Operator("attention", "attention", "columns", saved=40, attention=Attention(4, 4, 10, 10))
    narrow = Training(seq_len=11, global_batch=1, precision=precision)
    wide = narrow.model_copy(update={"stack": Stack(quantised_inputs=False)})
    layer = Layer("x", (norm, scores))
    found, before = (saved_bytes(layer, 16, make_rows(), it, FITS)["none"][0] for it in (narrow, wide))

    assert before == pytest.approx(11 * 2 * (32 + 40))
    assert found == pytest.approx(before if precision == "bf16" else 11 * (2 * 16 + byte * 16 + (2 + byte) * 40))


def test_busy_experts_save_more():
    """Load 1.25: a device's experts keep their tokens' share of tp; routed states are gathered over etp."""
    fits = dataclasses.replace(FITS, expert_imbalance=1.25)
    inside = Operator("up", "expert_matmul", "experts", saved=600)
    routed = Operator("dispatch", "elementwise", "routed", saved=60)
    found = saved_bytes(Layer("x", (inside, routed)), 1, make_rows(tp=6, etp=3), WORK, fits)

    assert found["none"][0] == pytest.approx(2 * 11 * 1.25 * (600 / 6 + 60 * 3 / 6))


def test_a_rank_keeps_a_whole_head_of_keys_and_values():
    """2 KV heads, 4 + 4 wide, over 4 ranks: 8 elements of a token where operators count 2 * 8 / 4; full keeps none."""
    work = WORK.model_copy(update={"stack": Stack(gathers_again=True)})
    few, many = (saved_bytes(small_layer(), 16, make_rows(tp=tp), work, FITS) for tp in (2, 4))

    for choice in ("none", "selective"):
        assert many[choice][0] == pytest.approx(few[choice][0] / 2 + 2 * 11 * (8 - 4))
    assert many["full"][0] == few["full"][0] / 2


def test_logits_by_hand():
    """2 bytes a logit where the loss is fused, else 8: 3 micro-batches of 11 tokens, vocabulary 128 over tp 2."""
    single = WORK.model_copy(update={"stack": Stack(fused_loss=False)})
    rows = make_rows(tp=2, micro_batch=3)

    assert logit_bytes(small_model(), rows, WORK, FITS)[0] == 2 * 33 * 64
    assert logit_bytes(small_model(), rows, single, FITS)[0] == 8 * 33 * 64


def test_buffers_by_hand():
    """A communicator for each axis above 1, two gathered hidden states, ZeRO-3's two layers and one of gradients."""
    model, fits = small_model(kinds=(small_layer(),)), dataclasses.replace(FITS, communicator_bytes=1000.0)
    largest = max(small_layer().column_parameters / 2 + small_layer().whole_parameters, 128 * 16 / 2 + 16)
    hidden = 2 * 11 * 16 * 2

    def found(**degrees):
        return buffer_bytes(model, make_rows(**degrees), WORK, fits)[0]

    assert found() == 0
    assert found(pp=4) == 1000
    assert found(dp_shard=4, pp=2, zero=1) == 2000
    assert found(tp=2) == 1000 + hidden
    assert found(tp=2, dp_shard=3, zero=2) == 2000 + hidden + 4 * largest
    assert found(tp=2, dp_shard=3, zero=3) == 2000 + hidden + 4 * largest + 2 * 2 * largest


def test_workspace_is_what_the_hungriest_kind_saves():
    model, rows = small_model(), make_rows(tp=2)
    each = [saved_bytes(kind, 16, rows, WORK, FITS)["none"][0] for kind in model.kinds]

    assert workspace_bytes(model, rows, WORK, FITS)[0] == max(each)
    assert each[0] != each[1]


DRAWN = st.fixed_dictionaries({
    "tp": st.sampled_from([1, 2, 4]), "cp": st.sampled_from([1, 2, 4]), "dp_shard": st.sampled_from([4, 8, 16]),
    "ep": st.sampled_from([1, 2, 4]), "zero": st.integers(0, 3), "micro_batch": st.integers(1, 3),
})  # fmt: skip


@given(DRAWN, st.sampled_from(["tp", "cp", "dp_shard", "zero"]), st.sampled_from([small_layer(), expert_layer()]))
def test_more_shards_never_need_more_memory(degrees, axis, layer):
    more = degrees | {axis: min(3, degrees["zero"] + 1) if axis == "zero" else 2 * degrees[axis]}
    few, many = make_rows(**degrees), make_rows(**more)

    assert sum(state_bytes(layer, many, WORK).values()) <= sum(state_bytes(layer, few, WORK).values())
    for choice, size in saved_bytes(layer, 16, many, WORK, FITS).items():
        assert size <= saved_bytes(layer, 16, few, WORK, FITS)[choice]


@given(DRAWN, st.sampled_from([small_layer(), expert_layer()]))
def test_recomputing_more_saves_less(degrees, layer):
    saved = saved_bytes(layer, 16, make_rows(**degrees), WORK, FITS)

    assert saved["none"] >= saved["selective"] >= saved["full"] > np.zeros(1)


@pytest.mark.parametrize(("tuning", "held"), [("lora", 2 * DENSE / 22 + 2 * EXPERTS / 15), ("all", 0.0)])
def test_frozen_weights_are_no_master_copy(tuning, held):
    """Sharded fp32 weights are among the states, of which frozen ones have none: 2 bytes each, shared by 22 and 15."""
    work = WORK.model_copy(update={"tuning": tuning, "stack": Stack(master_weights_sharded=True)})
    found = state_bytes(LAYER, make_rows(zero=3, **DEGREES), work)["weights"][0]

    assert found == pytest.approx(held)
