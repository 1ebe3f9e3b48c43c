"""More model types that are read, with the defaults of transformers; Grok-1's follow its published code."""

from __future__ import annotations

from planner.read_model import more_readings as read
from planner.read_model.families import GQA, POSITIONS, QWEN_MOE, TIED, UNTIED, Family

DELTA = {
    "head_dim": 256, "attention_bias": False, "full_attention_interval": 4, "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
}  # fmt: skip
MORE_FAMILIES: dict[str, Family] = {
    "nemotron": Family(read.nemotron, {**GQA, **UNTIED, "max_position_embeddings": 4096, "mlp_bias": False}),
    "nemotron_h": Family(
        read.nemotron_h,
        {
            **GQA, **UNTIED, "head_dim": 128, "num_key_value_heads": 8, "max_position_embeddings": 4096,
            "intermediate_size": 21504, "mamba_num_heads": 128, "mamba_head_dim": 64, "n_groups": 8,
            "ssm_state_size": 128, "conv_kernel": 4, "chunk_size": 128, "mamba_proj_bias": False,
            "use_conv_bias": True, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 7688,
            "moe_shared_expert_intermediate_size": 7688, "moe_latent_size": None,
        },
    ),
    "llama4_text": Family(
        read.llama4,
        {
            **UNTIED, "head_dim": 128, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "intermediate_size": 8192, "intermediate_size_mlp": 16384, "num_experts": 16, "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 1, "attention_chunk_size": 8192, "no_rope_layer_interval": 4,
        },
    ),
    "qwen3_next": Family(
        read.qwen3_next,
        {
            **QWEN_MOE, **UNTIED, **DELTA, "num_key_value_heads": 2, "num_experts": 512, "num_experts_per_tok": 10,
            "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
        },
    ),
    "qwen3_5_text": Family(
        read.qwen3_5, {**UNTIED, **DELTA, "num_key_value_heads": 4, "max_position_embeddings": 32768}
    ),
    "qwen3_5_moe_text": Family(
        read.qwen3_5_moe,
        {
            **UNTIED, **DELTA, "num_key_value_heads": 2, "max_position_embeddings": 32768, "num_experts": 256,
            "num_experts_per_tok": 8, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
        },
    ),
    "deepseek_v4": Family(
        read.deepseek_v4,
        {
            **UNTIED, "num_key_value_heads": 1, "head_dim": 512, "q_lora_rank": 1024, "num_experts": 256,
            "num_experts_per_tok": 6, "n_shared_experts": 1, "moe_intermediate_size": 2048, "sliding_window": 128,
            "o_groups": 8, "o_lora_rank": 1024, "index_n_heads": 64, "index_head_dim": 128, "index_topk": 512,
            "hc_mult": 4, "max_position_embeddings": 4096,
        },
    ),
    "grok": Family(
        read.grok,
        {**TIED, **POSITIONS, "num_key_value_heads": 8, "num_experts": 8, "num_experts_per_tok": 2},
    ),
}  # fmt: skip
