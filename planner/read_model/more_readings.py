"""Readings of families whose layers are of several sorts, and of ungated or doubly normed ones."""

from __future__ import annotations

import dataclasses

from cost_models.model_graph import Attention, Layer, Operator
from planner.read_model import blocks
from planner.read_model.config_fields import Fields, shown
from planner.read_model.decoder import Decoder, Experts, FeedForward, HeadedAttention
from planner.read_model.mamba import DeltaRule, Mamba, delta_rule_operators, mamba_operators
from planner.read_model.readings import _decoder, _experts, _gated, _heads, _normed_heads, _sparse_layers

COMPRESSED = {"sliding_attention": 0, "compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
"""Tokens made one in DeepSeek-V4's layers, by the names that transformers gives them."""
DELTA_TYPES = ("linear_attention", "full_attention")
MARKS = {
    "mamba": "M", "linear_attention": "M", "attention": "*", "full_attention": "*", "moe": "E", "mlp": "-",
}  # fmt: skip


def nemotron(f: Fields) -> Decoder:
    """Nemotron-3 and 4: squared ReLU without a gate, scales and shifts in the norms, no biases in products."""
    bias = f.flag("attention_bias")
    network = FeedForward(f.integer("intermediate_size"), gated=False, bias=f.flag("mlp_bias"))
    return _decoder(f, _heads(f, qkv_bias=bias, output_bias=bias), feed_forward=network, norm_vectors=2)


def grok(f: Fields) -> Decoder:
    """Grok-1: experts as wide as ``intermediate_size`` in every layer, norms before and after both parts."""
    layers = f.integer("num_hidden_layers")
    return _decoder(
        f, _heads(f), feed_forward=None, post_norms=True, sparse=(True,) * layers,
        experts=_experts(f, "intermediate_size"),
    )  # fmt: skip


def llama4(f: Fields) -> Decoder:
    """Llama 4, text: experts beside a shared network in every n-th layer; chunks of keys but in every fourth.

    A chunk is read as a window, which sees up to twice its keys where the sequence is longer than the chunk.
    """
    layers, step = f.integer("num_hidden_layers"), f.integer("interleave_moe_layer_step")
    chunk, full = f.integer_or_none("attention_chunk_size"), f.integer("no_rope_layer_interval")
    width = f.integer("intermediate_size")
    return _decoder(
        f, _heads(f), feed_forward=FeedForward(f.integer("intermediate_size_mlp")),
        sparse=tuple((i + 1) % step == 0 for i in range(layers)),
        windows=tuple(None if (i + 1) % full == 0 else chunk for i in range(layers)),
        experts=_experts(f, "intermediate_size", shared=FeedForward(width)),
    )  # fmt: skip


def nemotron_h(f: Fields) -> Decoder:
    """Nemotron-H and Nemotron 3: each layer is a Mamba-2 mixer, attention, a network or experts, by its mark."""
    pattern = _pattern(f)
    marks = set(pattern)
    f = dataclasses.replace(f, values={**f.values, "num_hidden_layers": len(pattern)})
    network = FeedForward(f.integer("intermediate_size"), gated=False) if "-" in marks else None
    plain = _decoder(
        f, _heads(f, rope=False), feed_forward=network, experts=_latent_experts(f) if "E" in marks else None,
        sparse=tuple(mark == "E" for mark in pattern),
    )  # fmt: skip
    mixer = _mamba(f) if "M" in marks else None
    layers = {mark: _lone_layer(plain, mixer, mark) for mark in marks}
    return dataclasses.replace(plain, built=tuple(layers[mark] for mark in pattern))


def _pattern(f: Fields) -> str:
    """One mark a layer: M mixer, * attention, - network, E experts."""
    listed, pattern = f.values.get("layers_block_type"), f.values.get("hybrid_override_pattern")
    if isinstance(listed, list) and listed and all(kind in MARKS for kind in listed):
        pattern = "".join(MARKS[kind] for kind in listed)
    if not isinstance(pattern, str) or not pattern or set(pattern) - set(MARKS.values()):
        raise f.refused(
            f"hybrid_override_pattern is {shown(pattern)} and layers_block_type {shown(listed)}; give one mark a "
            'layer, M for a Mamba mixer, * for attention, - for a network, E for experts, for example "MEM*E"'
        )
    if f.values.get("num_hidden_layers") not in (None, len(pattern)):
        raise f.refused(
            f"num_hidden_layers is {shown(f.values['num_hidden_layers'])}; hybrid_override_pattern has "
            f"{len(pattern)} marks, one a layer; make them agree"
        )
    return pattern


def _mamba(f: Fields) -> Mamba:
    return Mamba(
        heads=f.integer("mamba_num_heads"),
        head_dim=f.integer("mamba_head_dim"),
        groups=f.integer("n_groups"),
        state=f.integer("ssm_state_size"),
        kernel=f.integer("conv_kernel"),
        chunk=f.integer("chunk_size"),
        bias=f.flag("mamba_proj_bias"),
        conv_bias=f.flag("use_conv_bias"),
    )


def _latent_experts(f: Fields) -> Experts:
    shared = FeedForward(f.integer("moe_shared_expert_intermediate_size"), gated=False)
    latent = f.integer_or_none("moe_latent_size")
    return _experts(f, "moe_intermediate_size", gated=False, shared=shared, latent=latent)


def _lone_layer(decoder: Decoder, mixer: Mamba | None, mark: str) -> Layer:
    """A layer of one part between a norm and an addition: it gathers and scatters the sequence once."""
    h, it = decoder.hidden, decoder.experts
    if mark == "M":
        name, operators = "mamba", mamba_operators(mixer, h)
    elif mark == "*":
        name, operators = "attention", blocks.attention_operators(decoder, None)
    elif mark == "-":
        name, operators = "feed-forward", blocks.feed_forward_operators(decoder.feed_forward, h)
    else:
        name, operators = "experts", blocks.expert_operators(it, h)
    sparse = mark == "E"
    parts = (blocks.norm(decoder, "norm", 2, saved=2 * h, selective=h), *operators)
    counts = {"experts": it.experts, "top_k": it.top_k, "expert_groups": it.groups} if sparse else {}
    return Layer(name, (*parts, blocks.residual(h, 3 if sparse else 2)), boundaries=1, **counts)


def qwen3_next(f: Fields) -> Decoder:
    """Qwen3-Next: three gated delta-rule mixers for each gated attention, experts behind all of them."""
    return _delta_hybrid(f, _sparse_layers(f), _gated(f))


def qwen3_5(f: Fields) -> Decoder:
    """Qwen3.5, dense, text: the mixers of Qwen3-Next, a gated network behind all of them."""
    return _delta_hybrid(f, (False,) * f.integer("num_hidden_layers"), _gated(f))


def qwen3_5_moe(f: Fields) -> Decoder:
    """Qwen3.5 with experts, text: the layers of Qwen3-Next, none of them dense."""
    return _delta_hybrid(f, (True,) * f.integer("num_hidden_layers"), None)


def _delta_hybrid(f: Fields, sparse: tuple[bool, ...], network: FeedForward | None) -> Decoder:
    """Delta-rule mixers and gated attention by turns, before experts where ``sparse``, else before ``network``."""
    experts = None
    if any(sparse):
        shared = FeedForward(f.integer("shared_expert_intermediate_size"))
        experts = _experts(f, "moe_intermediate_size", shared=shared, shared_gate=True)
    plain = _decoder(f, _normed_heads(f), feed_forward=network, sparse=sparse, experts=experts)
    mixers = {
        True: ("gated attention", _gated_attention(plain)),
        False: ("delta rule", delta_rule_operators(_delta_rule(f), plain.hidden)),
    }
    keys = tuple(zip(_full(f), sparse, strict=True))
    kinds = {key: blocks.mixed_layer(plain, *mixers[key[0]], key[1]) for key in set(keys)}
    return dataclasses.replace(plain, built=tuple(kinds[key] for key in keys))


def _full(f: Fields) -> tuple[bool, ...]:
    """Whether each layer has full attention: by ``layer_types``, else in every ``full_attention_interval``-th."""
    layers, types = f.integer("num_hidden_layers"), f.values.get("layer_types")
    if types is None:
        every = f.integer("full_attention_interval")
        return tuple((i + 1) % every == 0 for i in range(layers))
    if not isinstance(types, list) or len(types) != layers or not all(it in DELTA_TYPES for it in types):
        raise f.refused(
            f"layer_types is {shown(types)}; it must list {layers:,} times one of {', '.join(DELTA_TYPES)}, or be left "
            "out for the pattern of the family"
        )
    return tuple(it == "full_attention" for it in types)


def _delta_rule(f: Fields) -> DeltaRule:
    return DeltaRule(
        heads=f.integer("linear_num_value_heads"),
        head_dim=f.integer("linear_value_head_dim"),
        key_heads=f.integer("linear_num_key_heads"),
        key_dim=f.integer("linear_key_head_dim"),
        kernel=f.integer("linear_conv_kernel_dim"),
    )


def _gated_attention(decoder: Decoder) -> tuple[Operator, ...]:
    """Attention whose output a gate scales; the gate is one more projection as wide as the queries."""
    it: HeadedAttention = decoder.attention
    queries = it.heads * it.head_dim
    *before, output = blocks.attention_operators(decoder, None)
    return (
        *before,
        blocks.matmul("gate", queries, decoder.hidden, saved=queries),
        Operator("gating", "elementwise", "columns", moved=3 * queries, saved=queries),
        output,
    )


def deepseek_v4(f: Fields) -> Decoder:
    """DeepSeek-V4: one key-value head, windows beside compressed keys, experts, four streams of hidden states.

    ``max_position_embeddings`` stands for the sequence that is trained: it decides how many compressed keys a
    query sees. The final mix of the streams (``hc_mult^2`` times hidden parameters) is left out.
    """
    layers, h = f.integer("num_hidden_layers"), f.integer("hidden_size")
    ratios = _ratios(f, layers)
    shared = FeedForward(f.integer("n_shared_experts") * f.integer("moe_intermediate_size"))
    plain = _decoder(
        f, _heads(f, sinks=f.integer("num_attention_heads")), feed_forward=None, sparse=(True,) * layers,
        experts=_experts(f, "moe_intermediate_size", shared=shared),
    )  # fmt: skip
    kinds = {
        ratio: blocks.mixed_layer(plain, f"compressed {ratio}", _compressed(f, ratio), True, _streams(f, h))
        for ratio in set(ratios)
    }
    return dataclasses.replace(plain, built=tuple(kinds[ratio] for ratio in ratios))


def _ratios(f: Fields, layers: int) -> list[int]:
    """Tokens made one in each layer, 0 for none, as ``compress_ratios`` or the layers' types say."""
    types = f.values.get("layer_types")
    by_type = [COMPRESSED.get(str(it)) for it in types] if isinstance(types, list) else None
    ratios = f.values.get("compress_ratios", by_type)
    if not isinstance(ratios, list) or len(ratios) != layers or not all(ratio in (0, 4, 128) for ratio in ratios):
        raise f.refused(f"compress_ratios is {shown(ratios)}; it must list 0, 4 or 128 for each of {layers} layers")
    return ratios


def _streams(f: Fields, hidden: int) -> tuple[Operator, ...]:
    """What the ``m`` streams add to a part: weights from all of them, one state taken out, its result put back.

    Moves ``(4 m + 2) h`` elements: streams read for the weights and the state, mixed, and written.
    """
    m = f.integer("hc_mult")
    outputs = (2 + m) * m
    weights = Operator(
        "stream_weights", "matmul", "sequence", parameters=outputs * (m * hidden + 1) + 3, n=outputs, k=m * hidden
    )
    mixing = Operator("streams", "elementwise", "sequence", moved=(4 * m + 2) * hidden, saved=m * hidden)
    return (weights, mixing)


def _compressed(f: Fields, ratio: int) -> tuple[Operator, ...]:
    """Attention of one layer: low-rank queries, one key-value head, compressed keys, output in groups."""
    h, heads, d = f.integer("hidden_size"), f.integer("num_attention_heads"), f.integer("head_dim")
    rank, out = f.integer("q_lora_rank"), f.integer("o_groups") * f.integer("o_lora_rank")
    window = f.integer("sliding_window") + round(_compressed_keys(f, ratio))
    return (
        blocks.matmul("q_a", rank, h, saved=rank, split="whole"),
        blocks.matmul("kv", d, h, saved=d, split="whole"),
        Operator("latent_norm", "elementwise", "whole", parameters=rank + d, moved=2 * (rank + d), saved=rank + d),
        blocks.matmul("q_b", heads * d, rank, saved=heads * d),
        Operator("rope", "elementwise", "columns", moved=4 * heads * d),
        *_compressor(f, ratio),
        blocks.attention_core(Attention(heads, 1, d, d, window), heads),
        blocks.matmul("output_groups", out, heads * d // f.integer("o_groups"), saved=out),
        blocks.matmul("output", h, out),
    )


def _compressed_keys(f: Fields, ratio: int) -> float:
    """Mean compressed keys of a query: half of all, at most ``index_topk`` at ratio 4."""
    if ratio == 0:
        return 0.0
    entries = f.integer("max_position_embeddings") / ratio
    most = min(entries, f.integer("index_topk")) if ratio == 4 else entries
    return most * (entries - most / 2) / entries if entries else 0.0


def _compressor(f: Fields, ratio: int) -> tuple[Operator, ...]:
    """Keys of ``ratio`` tokens made one; at ratio 4 in two overlapping sets, chosen by an indexer."""
    if ratio == 0:
        return ()
    h, d, sets = f.integer("hidden_size"), f.integer("head_dim"), 2 if ratio == 4 else 1
    width = 2 * sets * d
    compress = Operator(
        "compress", "elementwise", "whole", parameters=ratio * sets * d + d, moved=width + d / ratio, saved=width
    )
    indexer = _indexer(f, ratio) if ratio == 4 else ()
    return (blocks.matmul("compress_kv", width, h, split="whole"), compress, *indexer)


def _indexer(f: Fields, ratio: int) -> tuple[Operator, ...]:
    """Scores of all compressed keys with small heads, of which the best ``index_topk`` are attended to."""
    h, heads, d = f.integer("hidden_size"), f.integer("index_n_heads"), f.integer("index_head_dim")
    keys = max(1, f.integer("max_position_embeddings") // (2 * ratio))
    return (
        blocks.matmul("index_kv", 4 * d, h, saved=4 * d, split="whole"),
        Operator("index_compress", "elementwise", "whole", parameters=2 * ratio * d + d, moved=4 * d + d / ratio),
        blocks.matmul("index_q", heads * d, f.integer("q_lora_rank"), saved=heads * d),
        blocks.matmul("index_weights", heads, h, saved=heads),
        Operator("index", "attention", "columns", attention=Attention(heads, 1, d, 0, keys)),
    )
