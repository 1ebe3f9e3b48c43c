"""The model types that are read, each with its reading and the defaults of its optional fields, as in transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from planner.read_model import readings as read
from planner.read_model.config_fields import Fields
from planner.read_model.decoder import Decoder


@dataclass(frozen=True, slots=True)
class Family:
    """Reading of a ``model_type``, and defaults of the fields it may leave out."""

    reading: Callable[[Fields], Decoder]
    defaults: Mapping[str, Any]


UNTIED = {"tie_word_embeddings": False}
TIED = {"tie_word_embeddings": True}
POSITIONS = {"max_position_embeddings": 2048}
GQA = {"num_key_value_heads": None, "head_dim": None, "attention_bias": False}
MLA = {
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "attention_bias": False,
}  # fmt: skip
QWEN = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "max_position_embeddings": 32768}
QWEN_MOE = {**QWEN, "decoder_sparse_step": 1, "mlp_only_layers": None}
GEMMA = {
    **GQA, **TIED, "head_dim": 256, "sliding_window": 4096, "max_position_embeddings": 8192,
    "use_bidirectional_attention": None,
}  # fmt: skip

FAMILIES: dict[str, Family] = {
    "llama": Family(read.llama, {**GQA, **UNTIED, **POSITIONS, "mlp_bias": False}),
    "mistral": Family(
        read.mistral, {**UNTIED, "num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072}
    ),
    "mixtral": Family(
        read.mixtral,
        {
            **UNTIED, "num_key_value_heads": 8, "sliding_window": None, "max_position_embeddings": 131072,
            "num_experts": 8, "num_experts_per_tok": 2,
        },
    ),
    "qwen2": Family(read.qwen2, {**QWEN, **UNTIED, "num_key_value_heads": 32}),
    "qwen3": Family(
        read.qwen3, {**QWEN, **UNTIED, "num_key_value_heads": 32, "head_dim": 128, "attention_bias": False}
    ),
    "qwen2_moe": Family(
        read.qwen2_moe,
        {
            **QWEN_MOE, **UNTIED, "num_key_value_heads": 16, "qkv_bias": True, "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632, "num_experts": 60, "num_experts_per_tok": 4,
        },
    ),
    "qwen3_moe": Family(
        read.qwen3_moe,
        {
            **QWEN_MOE, **UNTIED, "num_key_value_heads": 4, "attention_bias": False, "moe_intermediate_size": 768,
            "num_experts": 128, "num_experts_per_tok": 8,
        },
    ),
    "deepseek_v2": Family(
        read.deepseek,
        {
            **MLA, **UNTIED, **POSITIONS, "mlp_bias": False, "first_k_dense_replace": 0, "num_experts": 64,
            "n_shared_experts": 2, "moe_intermediate_size": 1407,
        },
    ),
    "deepseek_v3": Family(
        read.deepseek,
        {
            **MLA, **UNTIED, "max_position_embeddings": 4096, "first_k_dense_replace": 3,
            "num_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 2048,
            "n_group": 8, "topk_group": 4,
        },
    ),
    "gpt_oss": Family(
        read.gpt_oss,
        {
            **UNTIED, "num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128, "attention_bias": True,
            "max_position_embeddings": 131072, "num_experts": 128, "num_experts_per_tok": 4,
        },
    ),
    "gpt2": Family(
        read.gpt2, {**TIED, "max_position_embeddings": 1024, "intermediate_size": None, "add_cross_attention": False}
    ),
    "gpt_neox": Family(read.gpt_neox, {**UNTIED, **POSITIONS, "attention_bias": True, "use_parallel_residual": True}),
    "bloom": Family(read.bloom, {**TIED, **POSITIONS}),
    "opt": Family(
        read.opt,
        {
            **TIED, **POSITIONS, "word_embed_proj_dim": None, "do_layer_norm_before": True,
            "_remove_final_layer_norm": False, "enable_bias": True, "layer_norm_elementwise_affine": True,
            "activation_function": "relu",
        },
    ),
    "falcon": Family(
        read.falcon,
        {
            **TIED, **POSITIONS, "num_key_value_heads": None, "intermediate_size": None, "alibi": False,
            "new_decoder_architecture": False, "multi_query": True, "parallel_attn": True, "bias": False,
            "num_ln_in_parallel_attn": None,
        },
    ),
    "gemma": Family(read.gemma, {**GEMMA, "num_key_value_heads": 16}),
    "gemma2": Family(read.gemma2, {**GEMMA, "num_key_value_heads": 4}),
    "gemma3_text": Family(
        read.gemma3,
        {
            **GEMMA, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262208,
            "max_position_embeddings": 131072, "sliding_window_pattern": 6,
        },
    ),
    "phi": Family(read.phi, {**GQA, **UNTIED, **POSITIONS, "qk_layernorm": False}),
    "phi3": Family(
        read.mistral, {**UNTIED, "num_key_value_heads": None, "sliding_window": None, "max_position_embeddings": 4096}
    ),
}  # fmt: skip
