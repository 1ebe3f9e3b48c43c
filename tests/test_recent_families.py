"""Families of 2024 to 2026: the parameters of transformers, and layers as a trace of its modules shows them."""

import pytest
from test_read_model import built as whole
from test_torch_module import GROUPED, MANY, SIZES, WIDE_HEADS, agree

from planner.read_model import read_config
from planner.read_model.recent_families import RECENT_FAMILIES
from topologies.errors import BadInput

pytest.importorskip("torch")

WIDTHS = {**SIZES, "num_hidden_layers": 4, "sliding_window": 16}
FIRST_DENSE = {**WIDE_HEADS, **MANY, "n_routed_experts": 8, "first_k_dense_replace": 1, "n_shared_experts": 2}
del FIRST_DENSE["num_experts"]
CONFIGS = {
    "exaone4": [
        {**WIDTHS, "num_key_value_heads": 4},
        {**WIDTHS, "num_key_value_heads": 8, "layer_types": ["full_attention"] * 4},
    ],
    "glm4": [{**WIDE_HEADS, "pad_token_id": 0}, {**WIDE_HEADS, "attention_bias": False, "pad_token_id": 0}],
    "glm4_moe": [FIRST_DENSE, {**FIRST_DENSE, "use_qk_norm": True, "attention_bias": True, "n_shared_experts": 1}],
    "dots1": [{**FIRST_DENSE, "max_window_layers": 1, "sliding_window": 16}, {**FIRST_DENSE, "n_shared_experts": 1}],
    "granite": [GROUPED, {**SIZES, "attention_bias": True, "mlp_bias": True}],
    "granitemoe": [{**GROUPED, "num_local_experts": 4}],
    "arcee": [GROUPED, {**GROUPED, "mlp_bias": True}],
    "seed_oss": [WIDE_HEADS, {**WIDE_HEADS, "attention_out_bias": True, "mlp_bias": True}],
    "smollm3": [
        {**GROUPED, "pad_token_id": 0},
        {**WIDTHS, "num_key_value_heads": 4, "use_sliding_window": True, "pad_token_id": 0},
    ],
    "ministral3": [WIDE_HEADS, {**WIDE_HEADS, "sliding_window": 16}],
    "starcoder2": [GROUPED, {**GROUPED, "use_bias": False, "sliding_window": 16, "tie_word_embeddings": False}],
    "ernie4_5": [WIDE_HEADS, {**WIDE_HEADS, "use_bias": True}],
    "ernie4_5_moe": [
        {**GROUPED, "moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 64},
        {
            **GROUPED, "num_hidden_layers": 6, "moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 64,
            "moe_layer_interval": 2, "moe_layer_end_index": 4, "moe_num_shared_experts": 0, "use_bias": True,
        },
    ],
    "hunyuan_v1_dense": [{**WIDE_HEADS, "pad_token_id": 0}],
    "hunyuan_v1_moe": [{**WIDE_HEADS, "num_experts": 8, "moe_topk": 2, "pad_token_id": 0}],
}  # fmt: skip
CASES = [(family, sizes) for family, cases in CONFIGS.items() for sizes in cases]
NAMED = [f"{family} {index}" for family, cases in CONFIGS.items() for index, _ in enumerate(cases)]


def test_every_family_is_compared():
    assert set(CONFIGS) == set(RECENT_FAMILIES)


@pytest.mark.parametrize(("family", "sizes"), CASES, ids=NAMED)
def test_trace_and_config_agree(transformers, family, sizes):
    agree(transformers, family, sizes)


@pytest.mark.parametrize("family", CONFIGS)
def test_defaults_are_those_of_transformers(transformers, family):
    """Parameters where a configuration says no more than the sizes that every family needs."""
    needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    no_default = {"dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1}}
    config = {"model_type": family, **{name: SIZES[name] for name in needed}, "num_attention_heads": 32}
    config |= {"head_dim": 16} if "hunyuan" in family else no_default.get(family, {})
    module = whole(transformers, config | {"pad_token_id": 0})

    graph = read_config(config, family)

    assert graph.parameters == sum(p.numel() for p in module.parameters())
    assert (graph.tied, graph.max_positions) == (
        module.config.tie_word_embeddings, module.config.max_position_embeddings,
    )  # fmt: skip
    assert graph.kv_heads == module.config.num_key_value_heads


def test_a_pattern_in_letters_is_asked_for_as_layer_types():
    with pytest.raises(BadInput, match="sliding_window_pattern is 'LLLG'; it must be a whole number"):
        read_config({**GROUPED, "model_type": "exaone4", "sliding_window_pattern": "LLLG"}, "exaone4")
