"""How each family's fields become a ``Decoder``.

Parameters are those that ``AutoModelForCausalLM`` creates: no multi-token-prediction layers, and no
buffers such as the routing correction of DeepSeek-V3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from planner.read_model.config_fields import Fields
from planner.read_model.decoder import Decoder, Experts, FeedForward, HeadedAttention, LatentAttention

OPT_POSITION_OFFSET = 2


def _decoder(f: Fields, attention: HeadedAttention | LatentAttention, **parts: Any) -> Decoder:
    """The decoder of ``f`` with sizes every family has; full attention and dense layers unless ``parts`` says else."""
    layers = f.integer("num_hidden_layers")
    parts = {"windows": (None,) * layers, "sparse": (False,) * layers, **parts}
    return Decoder(
        hidden=f.integer("hidden_size"),
        vocab=f.integer("vocab_size"),
        max_positions=f.integer("max_position_embeddings"),
        tied=f.flag("tie_word_embeddings"),
        attention=attention,
        **parts,
    )


def _heads(f: Fields, **parts: Any) -> HeadedAttention:
    """Heads of ``f``. Raises ``BadInput`` where heads do not divide the hidden width or KV heads the heads."""
    heads = f.integer("num_attention_heads")
    kv_heads = f.integer_or_none("num_key_value_heads") or heads
    if kv_heads > heads or heads % kv_heads:
        raise f.refused(
            f"num_key_value_heads is {kv_heads}; it must divide num_attention_heads, {heads}: "
            "each key-value head serves as many query heads"
        )
    return HeadedAttention(heads, kv_heads, _head_dim(f, heads), **parts)


def _head_dim(f: Fields, heads: int) -> int:
    given = f.integer_or_none("head_dim") if "head_dim" in f.values else None
    return given or _even_head_dim(f, heads)


def _even_head_dim(f: Fields, heads: int) -> int:
    hidden = f.integer("hidden_size")
    if hidden % heads:
        raise f.refused(
            f"num_attention_heads is {heads}; it must divide hidden_size, {hidden}; "
            "set head_dim in a family that has one, or change either"
        )
    return hidden // heads


def _plain_heads(f: Fields, bias: bool, rope: bool = False) -> HeadedAttention:
    """As many key-value heads as heads, each ``hidden / heads`` wide."""
    heads = f.integer("num_attention_heads")
    return HeadedAttention(heads, heads, _even_head_dim(f, heads), qkv_bias=bias, output_bias=bias, rope=rope)


def _gated(f: Fields, bias: bool = False) -> FeedForward:
    return FeedForward(f.integer("intermediate_size"), bias=bias)


def _ungated(f: Fields, bias: bool) -> FeedForward:
    """Two matrices; a null width means four times the hidden one."""
    return FeedForward(f.integer_or_none("intermediate_size") or 4 * f.integer("hidden_size"), gated=False, bias=bias)


def _same_window(f: Fields) -> tuple[int | None, ...]:
    """``sliding_window`` in every layer; null for none."""
    return (f.integer_or_none("sliding_window"),) * f.integer("num_hidden_layers")


def _windows(f: Fields, slides: Callable[[int], bool]) -> tuple[int | None, ...]:
    """``sliding_window`` in the layers of ``layer_types`` that slide, or where ``slides(layer)`` if not listed."""
    layers, window = f.integer("num_hidden_layers"), f.integer_or_none("sliding_window")
    listed = f.layer_types(layers)
    sliding = [kind == "sliding_attention" for kind in listed] if listed else [slides(i) for i in range(layers)]
    return tuple(window if slid else None for slid in sliding)


def _switched_windows(f: Fields, slides: Callable[[int], bool]) -> tuple[int | None, ...]:
    """Windows of the Qwen families, off unless ``use_sliding_window``."""
    if not f.flag("use_sliding_window"):
        return (None,) * f.integer("num_hidden_layers")
    return _windows(f, slides)


def _last_layers(f: Fields) -> Callable[[int], bool]:
    first = f.integer("max_window_layers", least=0)
    return lambda i: i >= first


def _experts(f: Fields, width_field: str, **parts: Any) -> Experts:
    experts, top_k = f.integer("num_experts"), f.integer("num_experts_per_tok")
    if top_k > experts:
        raise f.refused(f"num_experts_per_tok is {top_k}; a token can go to at most num_experts, {experts}")
    return Experts(experts, top_k, f.integer(width_field), groups=_expert_groups(f, experts, top_k), **parts)


def _expert_groups(f: Fields, experts: int, top_k: int) -> tuple[int, int]:
    """Groups of experts and of how many a token's may be: all, unless ``topk_group`` of ``n_group`` hold ``top_k``."""
    if f.values.get("n_group") is None or f.values.get("topk_group") is None or f.values.get("topk_method") == "greedy":
        return 1, 1
    groups, most = f.integer("n_group"), f.integer("topk_group")
    return (groups, most) if most < groups and experts % groups == 0 and top_k <= most * experts // groups else (1, 1)


def llama(f: Fields) -> Decoder:
    """Llama 1 to 3."""
    bias = f.flag("attention_bias")
    attention = _heads(f, qkv_bias=bias, output_bias=bias)
    return _decoder(f, attention, feed_forward=_gated(f, f.flag("mlp_bias")))


def mistral(f: Fields) -> Decoder:
    """Mistral, Phi-3: no biases, one window for all layers."""
    return _decoder(f, _heads(f), feed_forward=_gated(f), windows=_same_window(f))


def mixtral(f: Fields) -> Decoder:
    """Mixtral: every layer has experts, as wide as ``intermediate_size``."""
    layers = f.integer("num_hidden_layers")
    return _decoder(
        f, _heads(f), feed_forward=None, windows=_same_window(f),
        sparse=(True,) * layers, experts=_experts(f, "intermediate_size"),
    )  # fmt: skip


def qwen2(f: Fields) -> Decoder:
    """Qwen 2 and 2.5: biases on queries, keys and values."""
    windows = _switched_windows(f, _last_layers(f))
    return _decoder(f, _heads(f, qkv_bias=True), feed_forward=_gated(f), windows=windows)


def _normed_heads(f: Fields) -> HeadedAttention:
    """Heads with a scale of ``head_dim`` each on queries and keys."""
    bias = f.flag("attention_bias")
    head_dim = _head_dim(f, f.integer("num_attention_heads"))
    return _heads(f, qkv_bias=bias, output_bias=bias, qk_norm=2 * head_dim)


def qwen3(f: Fields) -> Decoder:
    """Qwen 3, dense."""
    windows = _switched_windows(f, _last_layers(f))
    return _decoder(f, _normed_heads(f), feed_forward=_gated(f), windows=windows)


def _sparse_layers(f: Fields) -> tuple[bool, ...]:
    """Every ``decoder_sparse_step``-th layer, but for those in ``mlp_only_layers``."""
    layers, step = f.integer("num_hidden_layers"), f.integer("decoder_sparse_step")
    dense = f.indices("mlp_only_layers", layers)
    return tuple(i not in dense and (i + 1) % step == 0 for i in range(layers))


def qwen2_moe(f: Fields) -> Decoder:
    """Qwen 1.5 and 2 with experts: a shared network behind a gate of its own."""
    shared = FeedForward(f.integer("shared_expert_intermediate_size"))
    most = f.integer("max_window_layers", least=0)
    return _decoder(
        f, _heads(f, qkv_bias=f.flag("qkv_bias")), feed_forward=_gated(f), sparse=_sparse_layers(f),
        windows=_switched_windows(f, lambda i: i % 2 == 0 and i < most),
        experts=_experts(f, "moe_intermediate_size", shared=shared, shared_gate=True),
    )  # fmt: skip


def qwen3_moe(f: Fields) -> Decoder:
    """Qwen 3 with experts: no shared network; one window for all layers when switched on."""
    windows = _same_window(f) if f.flag("use_sliding_window") else (None,) * f.integer("num_hidden_layers")
    return _decoder(
        f, _normed_heads(f), feed_forward=_gated(f), sparse=_sparse_layers(f), windows=windows,
        experts=_experts(f, "moe_intermediate_size"),
    )  # fmt: skip


def deepseek(f: Fields) -> Decoder:
    """DeepSeek-V2 and V3: latent attention, first layers dense, ``n_shared_experts`` read as one wide network."""
    layers, first = f.integer("num_hidden_layers"), f.integer("first_k_dense_replace", least=0)
    bias = f.model_type == "deepseek_v2" and f.flag("mlp_bias")
    return _decoder(
        f, _latent_heads(f), feed_forward=_gated(f, bias), sparse=tuple(i >= first for i in range(layers)),
        experts=_experts(f, "moe_intermediate_size", shared=_shared_experts(f, bias)),
    )  # fmt: skip


def _shared_experts(f: Fields, bias: bool = False) -> FeedForward | None:
    """The ``n_shared_experts`` that all tokens pass, as one wide network; null counts as none."""
    count = f.integer("n_shared_experts", least=0) if f.values["n_shared_experts"] is not None else 0
    return FeedForward(count * f.integer("moe_intermediate_size"), bias=bias) if count else None


def _latent_heads(f: Fields) -> LatentAttention:
    return LatentAttention(
        heads=f.integer("num_attention_heads"),
        q_rank=f.integer_or_none("q_lora_rank"),
        kv_rank=f.integer("kv_lora_rank"),
        nope_dim=f.integer("qk_nope_head_dim"),
        rope_dim=f.integer("qk_rope_head_dim"),
        v_dim=f.integer("v_head_dim"),
        bias=f.flag("attention_bias"),
    )


def gpt_oss(f: Fields) -> Decoder:
    """gpt-oss: every layer has experts with biases, windows in every other layer, a learned sink a head."""
    layers, bias = f.integer("num_hidden_layers"), f.flag("attention_bias")
    attention = _heads(f, qkv_bias=bias, output_bias=bias, sinks=f.integer("num_attention_heads"))
    return _decoder(
        f, attention, feed_forward=None, windows=_windows(f, lambda i: i % 2 == 0), sparse=(True,) * layers,
        experts=_experts(f, "intermediate_size", bias=True, router_bias=True),
    )  # fmt: skip


def gpt2(f: Fields) -> Decoder:
    """GPT-2 and GPT-3: learned positions, biases everywhere."""
    if f.flag("add_cross_attention"):
        raise f.refused("add_cross_attention is true; only decoders without cross attention are read")
    return _decoder(
        f, _plain_heads(f, bias=True), feed_forward=_ungated(f, bias=True), norm_vectors=2,
        position_rows=f.integer("max_position_embeddings"),
    )  # fmt: skip


def gpt_neox(f: Fields) -> Decoder:
    """GPT-NeoX and Pythia: attention and feed-forward side by side, each behind its own norm."""
    attention = _plain_heads(f, bias=f.flag("attention_bias"), rope=True)
    parallel = f.flag("use_parallel_residual")
    return _decoder(f, attention, feed_forward=_ungated(f, bias=True), norm_vectors=2, parallel=parallel)


def bloom(f: Fields) -> Decoder:
    """BLOOM: ALiBi, a norm behind the embedding, feed-forward always four times the hidden width."""
    width = 4 * f.integer("hidden_size")
    return _decoder(
        f, _plain_heads(f, bias=True), feed_forward=FeedForward(width, gated=False, bias=True),
        norm_vectors=2, embedding_norm=True,
    )  # fmt: skip


def opt(f: Fields) -> Decoder:
    """OPT: learned positions after two unused rows, and an embedding that may be narrower than the layers."""
    bias, affine = f.flag("enable_bias"), f.flag("layer_norm_elementwise_affine")
    network = dataclasses.replace(_ungated(f, bias=bias), relu=f.values["activation_function"] == "relu")
    return _decoder(
        f, _plain_heads(f, bias=bias), feed_forward=network, norm_vectors=2 if affine else 0,
        position_rows=f.integer("max_position_embeddings") + OPT_POSITION_OFFSET,
        token_width=f.integer_or_none("word_embed_proj_dim"),
        final_norm=f.flag("do_layer_norm_before") and not f.flag("_remove_final_layer_norm"),
    )  # fmt: skip


def falcon(f: Fields) -> Decoder:
    """Falcon: one key-value head (7B) or several (new architecture), usually parallel, behind one norm or two."""
    new, parallel, bias = f.flag("new_decoder_architecture"), f.flag("parallel_attn"), f.flag("bias")
    heads = f.integer("num_attention_heads")
    kv_heads = _falcon_kv_heads(f, heads, new)
    attention = HeadedAttention(
        heads, kv_heads, _even_head_dim(f, heads), qkv_bias=bias, output_bias=bias, rope=not f.flag("alibi")
    )  # fmt: skip
    norms = f.integer_or_none("num_ln_in_parallel_attn") or (2 if new else 1)
    return _decoder(
        f, attention, feed_forward=_ungated(f, bias=bias), norm_vectors=2, parallel=parallel,
        layer_norms=2 if norms == 2 or not parallel else 1,
    )  # fmt: skip


def _falcon_kv_heads(f: Fields, heads: int, new: bool) -> int:
    return _heads(f).kv_heads if new else 1 if f.flag("multi_query") else heads


def gemma(f: Fields) -> Decoder:
    """Gemma 1."""
    _refuse_bidirectional(f)
    bias = f.flag("attention_bias")
    return _decoder(f, _heads(f, qkv_bias=bias, output_bias=bias), feed_forward=_gated(f))


def gemma2(f: Fields) -> Decoder:
    """Gemma 2: norms before and after attention and feed-forward, windows in every other layer."""
    _refuse_bidirectional(f)
    bias = f.flag("attention_bias")
    return _decoder(
        f, _heads(f, qkv_bias=bias, output_bias=bias), feed_forward=_gated(f), post_norms=True,
        windows=_windows(f, lambda i: i % 2 == 0),
    )  # fmt: skip


def gemma3(f: Fields) -> Decoder:
    """Gemma 3, text: as Gemma 2 with norms on queries and keys, full attention in every sixth layer."""
    _refuse_bidirectional(f)
    pattern = f.integer("sliding_window_pattern")
    return _decoder(
        f, _normed_heads(f), feed_forward=_gated(f), post_norms=True,
        windows=_windows(f, lambda i: (i + 1) % pattern != 0),
    )  # fmt: skip


def _refuse_bidirectional(f: Fields) -> None:
    if f.flag("use_bidirectional_attention"):
        raise f.refused("use_bidirectional_attention is true; only causal decoders are read")


def phi(f: Fields) -> Decoder:
    """Phi 1 and 2: attention and feed-forward side by side behind one norm, biases everywhere, the head too."""
    attention = _heads(f, qkv_bias=True, output_bias=True)
    if f.flag("qk_layernorm"):
        attention = _heads(f, qkv_bias=True, output_bias=True, qk_norm=4 * attention.head_dim)
    return _decoder(
        f, attention, feed_forward=_ungated(f, bias=True), norm_vectors=2, parallel=True, layer_norms=1, head_bias=True
    )  # fmt: skip
