"""Model types of 2024 to 2026 that are read, with the defaults of transformers 5.23."""

from __future__ import annotations

from planner.read_model import readings
from planner.read_model import recent_readings as read
from planner.read_model.families import GQA, POSITIONS, TIED, UNTIED, Family

ERNIE = {**TIED, "head_dim": None, "max_position_embeddings": 131072, "use_bias": False}
HUNYUAN = {**GQA, **UNTIED, **POSITIONS}
RECENT_FAMILIES: dict[str, Family] = {
    "exaone4": Family(
        read.exaone4,
        {**UNTIED, **POSITIONS, "num_key_value_heads": 32, "sliding_window": 4096, "sliding_window_pattern": 4},
    ),
    "glm4": Family(
        read.glm4,
        {
            **UNTIED, "num_key_value_heads": 2, "head_dim": 128, "attention_bias": True,
            "max_position_embeddings": 131072,
        },
    ),
    "glm4_moe": Family(
        read.glm4_moe,
        {
            **UNTIED, "num_key_value_heads": 8, "attention_bias": False, "use_qk_norm": False,
            "max_position_embeddings": 131072, "first_k_dense_replace": 1, "num_experts": 128,
            "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 1408,
        },
    ),
    "dots1": Family(
        read.dots1,
        {
            **UNTIED, **POSITIONS, "num_key_value_heads": 32, "attention_bias": False, "first_k_dense_replace": 0,
            "n_shared_experts": None, "moe_intermediate_size": 1408, "sliding_window": 4096, "max_window_layers": 62,
        },
    ),
    "granite": Family(read.granite, {**GQA, **UNTIED, **POSITIONS, "mlp_bias": False}),
    "granitemoe": Family(
        read.granitemoe, {**GQA, **UNTIED, **POSITIONS, "num_experts": 8, "num_experts_per_tok": 2}
    ),
    "arcee": Family(read.arcee, {**GQA, **UNTIED, "max_position_embeddings": 4096, "mlp_bias": False}),
    "seed_oss": Family(
        read.seed_oss,
        {
            **UNTIED, "num_key_value_heads": 8, "head_dim": 128, "attention_bias": True, "attention_out_bias": False,
            "mlp_bias": False, "max_position_embeddings": 524288,
        },
    ),
    "smollm3": Family(
        read.smollm3,
        {
            **TIED, "num_key_value_heads": 4, "attention_bias": False, "mlp_bias": False,
            "max_position_embeddings": 32768, "use_sliding_window": False, "sliding_window": None,
            "no_rope_layer_interval": 4,
        },
    ),
    "ministral3": Family(
        readings.mistral,
        {
            **UNTIED, "num_key_value_heads": 8, "head_dim": 128, "sliding_window": None,
            "max_position_embeddings": 262144,
        },
    ),
    "starcoder2": Family(
        read.starcoder2,
        {**TIED, "num_key_value_heads": 2, "max_position_embeddings": 4096, "sliding_window": None, "use_bias": True},
    ),
    "ernie4_5": Family(read.ernie4_5, {**ERNIE, "num_key_value_heads": 2, "head_dim": 128}),
    "ernie4_5_moe": Family(
        read.ernie4_5_moe,
        {
            **ERNIE, "num_key_value_heads": 4, "num_experts": 64, "num_experts_per_tok": 6,
            "moe_num_shared_experts": 2, "moe_intermediate_size": 1536, "moe_layer_start_index": 1,
            "moe_layer_end_index": -1, "moe_layer_interval": 1,
        },
    ),
    "hunyuan_v1_dense": Family(read.hunyuan_dense, HUNYUAN),
    "hunyuan_v1_moe": Family(read.hunyuan_moe, {**HUNYUAN, "num_experts": 1, "num_experts_per_tok": 1}),
}  # fmt: skip
