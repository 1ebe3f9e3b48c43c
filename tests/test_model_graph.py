"""Sums over operators and layers, attention's keys by counting, folding and digests."""

from __future__ import annotations

import dataclasses

import pytest
from costs import expert_layer, small_layer, small_model
from hypothesis import given
from hypothesis import strategies as st

from cost_models.model_graph import Attention, Edge, Layer, Operator
from planner.read_model import read_model


@given(st.integers(1, 60), st.one_of(st.none(), st.integers(1, 80)), st.booleans())
def test_keys_per_query_is_the_mean_over_queries(seq_len, window, causal):
    """Query ``q`` sees the keys up to itself, the last ``window`` of them; without causality a full window."""
    wide = min(window or seq_len, seq_len)
    seen = [min(q, wide) if causal else wide for q in range(1, seq_len + 1)]

    found = Attention(1, 1, 1, 1, window, causal).keys_per_query(seq_len)

    assert found == pytest.approx(sum(seen) / seq_len)


def test_attention_flop_and_cache_by_hand():
    """7 heads of width 5 and 3 over 11 keys, a multiply-add being 2."""
    attention = Attention(7, 2, qk_dim=5, v_dim=3, causal=False)

    assert attention.forward_flop_per_token(11) == 2 * 7 * (5 + 3) * 11
    assert attention.kv_elements == 2 * (5 + 3)


def test_an_operators_flop():
    assert Operator("x", "matmul", "columns", n=5, k=7).forward_flop_per_token(9) == 70
    assert Operator("x", "expert_matmul", "experts", n=5, k=7, groups=11, active=3).forward_flop_per_token(9) == 210
    assert Operator("x", "elementwise", "columns", moved=99).forward_flop_per_token(9) == 0


def test_every_parameter_of_a_layer_is_divided_in_one_way():
    layer = Layer("x", tuple(
        Operator(split, "matmul", split, parameters=p)
        for split, p in {"columns": 2, "sequence": 3, "experts": 5, "whole": 7}.items()
    ))  # fmt: skip

    assert (layer.column_parameters, layer.whole_parameters, layer.expert_parameters) == (2, 10, 5)
    assert layer.parameters == 17


def test_a_models_parameters_by_hand():
    """Order 0 1 0: two dense layers, one with 8 experts of which 2 work."""
    model = small_model((0, 1, 0))
    dense = 2 * 16 + 32 * 16 + 16 * 16 + 96 * 16 + 16 * 48
    experts = 2 * 16 + 32 * 16 + 16 * 16 + 8 * 16 + 8 * 24 * 16
    ends = 128 * 16 + 16 + 128 * 16

    assert small_layer().parameters == dense and expert_layer().parameters == experts
    assert model.parameters == 2 * dense + experts + ends
    assert model.active_parameters == model.parameters - 6 * 24 * 16
    assert model.experts == 8 and model.layers == 3


def test_a_models_flop_by_hand():
    """2 a parameter of a product, the head's included, and attention: 4 heads, 4 wide, (33 + 1) / 2 keys."""
    model = small_model((0, 0))
    products = 32 * 16 + 16 * 16 + 96 * 16 + 16 * 48

    assert model.forward_flop_per_token(33) == 2 * (2 * products + 2 * 4 * (4 + 4) * 17) + 2 * 128 * 16


def test_a_tied_head_counts_once():
    assert small_model().parameters - small_model(tied=True).parameters == 128 * 16


def test_edges_join_neighbours():
    assert small_model((0, 0, 0)).edges == (Edge(0, 1, 16), Edge(1, 2, 16))


def test_digest_follows_what_costs_depend_on():
    model = small_model()
    wider = dataclasses.replace(model, kinds=(small_layer(width=64), model.kinds[1]))

    assert model.digest == small_model().digest == dataclasses.replace(model, config={"a": 1}).digest
    assert len({model.digest, wider.digest, small_model((0,) * 5).digest, small_model(tied=True).digest}) == 4


@pytest.mark.parametrize(
    ("name", "billions", "active"),
    [("llama-3.1-8b", 8.03, 8.03), ("mixtral-8x7b", 46.7, 12.9), ("qwen3-30b-a3b", 30.5, 3.3)],
)
def test_published_sizes(name, billions, active):
    model = read_model(name)

    assert model.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert model.active_parameters / 1e9 == pytest.approx(active, rel=0.02)


def test_experts_with_biases_move_more_where_nothing_fuses_them():
    """GPT-OSS: clamps of 5760 columns (4 each) and fp32 sums with the biases of 2880 outputs (14 each), top 4."""
    operator = {op.name: op for op in read_model("gpt-oss-120b").kinds[0].operators}["experts_activation"]
    assert operator.unfused == 4 * (4 * 5760 + 14 * 2880)
    plain = {op.name: op for op in read_model("qwen3-235b-a22b").kinds[0].operators}["experts_activation"]
    assert plain.unfused == 0
