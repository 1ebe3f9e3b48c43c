"""Readings of decoders of 2024 to 2026, other than Llama or Mixtral in a norm, a bias, a window or their experts."""

from __future__ import annotations

from planner.read_model.config_fields import Fields
from planner.read_model.decoder import Decoder, Experts, FeedForward, HeadedAttention
from planner.read_model.readings import (
    _decoder,
    _experts,
    _gated,
    _heads,
    _last_layers,
    _normed_heads,
    _same_window,
    _shared_experts,
    _ungated,
    _windows,
)


def exaone4(f: Fields) -> Decoder:
    """EXAONE 4: norms behind both parts and on each head's queries and keys; full attention by the pattern."""
    heads = _heads(f)
    attention = _heads(f, qk_norm=2 * heads.head_dim)
    return _decoder(
        f, attention, feed_forward=_gated(f), pre_norms=False, post_norms=True,
        windows=_windows(f, lambda i: (i + 1) % f.integer("sliding_window_pattern") != 0),
    )  # fmt: skip


def glm4(f: Fields) -> Decoder:
    """GLM-4 of 2025: norms before and behind both parts, biases on queries, keys and values."""
    attention = _heads(f, qkv_bias=f.flag("attention_bias"))
    return _decoder(f, attention, feed_forward=_gated(f), post_norms=True)


def glm4_moe(f: Fields) -> Decoder:
    """GLM-4.5 and 4.6: first layers dense, shared experts, norms on queries and keys where switched on."""
    heads = _heads(f)
    norm = 2 * heads.head_dim if f.flag("use_qk_norm") else 0
    attention = _heads(f, qkv_bias=f.flag("attention_bias"), qk_norm=norm)
    return _first_dense(f, attention, (None,) * f.integer("num_hidden_layers"))


def dots1(f: Fields) -> Decoder:
    """dots.llm1: first layers dense, shared experts, norms on each head's queries and keys, windows in the last."""
    return _first_dense(f, _normed_heads(f), _windows(f, _last_layers(f)))


def _first_dense(f: Fields, attention: HeadedAttention, windows: tuple[int | None, ...]) -> Decoder:
    first = f.integer("first_k_dense_replace", least=0)
    return _decoder(
        f, attention, feed_forward=_gated(f), windows=windows,
        sparse=tuple(i >= first for i in range(f.integer("num_hidden_layers"))),
        experts=_experts(f, "moe_intermediate_size", shared=_shared_experts(f)),
    )  # fmt: skip


def _all_sparse(f: Fields, attention: HeadedAttention, experts: Experts) -> Decoder:
    sparse = (True,) * f.integer("num_hidden_layers")
    return _decoder(f, attention, feed_forward=None, sparse=sparse, experts=experts)


def granite(f: Fields) -> Decoder:
    """Granite 3 and 4, dense: Llama with factors on embedding, residuals, scores and logits."""
    return _decoder(f, _biased_heads(f), feed_forward=_gated(f, f.flag("mlp_bias")))


def granitemoe(f: Fields) -> Decoder:
    """Granite 3 with experts in every layer, as wide as ``intermediate_size``."""
    return _all_sparse(f, _biased_heads(f), _experts(f, "intermediate_size"))


def _biased_heads(f: Fields) -> HeadedAttention:
    bias = f.flag("attention_bias")
    return _heads(f, qkv_bias=bias, output_bias=bias)


def arcee(f: Fields) -> Decoder:
    """Arcee AFM: Llama with a squared ReLU in the place of a gate."""
    return _decoder(f, _biased_heads(f), feed_forward=_ungated(f, f.flag("mlp_bias")))


def seed_oss(f: Fields) -> Decoder:
    """Seed-OSS: Llama with biases on queries, keys and values alone."""
    attention = _heads(f, qkv_bias=f.flag("attention_bias"), output_bias=f.flag("attention_out_bias"))
    return _decoder(f, attention, feed_forward=_gated(f, f.flag("mlp_bias")))


def smollm3(f: Fields) -> Decoder:
    """SmolLM3: Llama without rotation in every fourth layer, where windows are if they are switched on.

    Its unrotated layers are priced as rotated ones.
    """
    every = f.integer("no_rope_layer_interval")
    windows = (None,) * f.integer("num_hidden_layers")
    if f.flag("use_sliding_window"):
        windows = _windows(f, lambda i: (i + 1) % every == 0)
    return _decoder(f, _biased_heads(f), feed_forward=_gated(f, f.flag("mlp_bias")), windows=windows)


def starcoder2(f: Fields) -> Decoder:
    """StarCoder 2: scales and shifts in the norms, two matrices a network, biases everywhere but in the head."""
    bias = f.flag("use_bias")
    return _decoder(
        f, _heads(f, qkv_bias=bias, output_bias=bias), feed_forward=_ungated(f, bias), norm_vectors=2,
        windows=_same_window(f),
    )  # fmt: skip


def ernie4_5(f: Fields) -> Decoder:
    """ERNIE 4.5, dense: Llama with biases in all layers or in none."""
    bias = f.flag("use_bias")
    attention = _heads(f, qkv_bias=bias, output_bias=bias)
    return _decoder(f, attention, feed_forward=_gated(f, bias))


def ernie4_5_moe(f: Fields) -> Decoder:
    """ERNIE 4.5 with experts in every n-th of the layers from one to another, beside shared ones.

    The correction of the router's choice is a parameter here, which its published training moves without a gradient.
    """
    bias, count = f.flag("use_bias"), f.integer("moe_num_shared_experts", least=0)
    shared = FeedForward(count * f.integer("moe_intermediate_size"), bias=bias) if count else None
    return _decoder(
        f, _heads(f, qkv_bias=bias, output_bias=bias), feed_forward=_gated(f, bias), head_bias=bias,
        sparse=_ernie_sparse(f), experts=_experts(f, "moe_intermediate_size", shared=shared, router_bias=True),
    )  # fmt: skip


def _ernie_sparse(f: Fields) -> tuple[bool, ...]:
    layers, every = f.integer("num_hidden_layers"), f.integer("moe_layer_interval")
    first, last = f.integer("moe_layer_start_index", least=0), f.integer("moe_layer_end_index", least=-1)
    last = layers - 1 if last == -1 else last
    return tuple((i + 1) % every == 0 and first <= i <= last for i in range(layers))


def hunyuan_dense(f: Fields) -> Decoder:
    """Hunyuan of 2025, dense: Llama with norms on each head's queries and keys."""
    return _decoder(f, _normed_heads(f), feed_forward=_gated(f))


def hunyuan_moe(f: Fields) -> Decoder:
    """Hunyuan of 2025 with experts in every layer, each as wide as the network that all tokens share."""
    shared = FeedForward(f.integer("intermediate_size"))
    return _all_sparse(f, _normed_heads(f), _experts(f, "intermediate_size", shared=shared))
