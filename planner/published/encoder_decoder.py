"""T5 as one chain of layers: the encoder's, then the decoder's with attention over the encoder's tokens.

All figures of a graph are per token of one sequence, here the encoder's. With r = decoder tokens / encoder
tokens, a decoder operator counts r times its width, so that its FLOP, moved and kept elements are a token's of
the encoder; its parameters stay whole. Self-attention of the decoder sees r s / 2 keys for r of the queries.

Source: Raffel et al., arXiv:1910.10683; T5 v1.1 of google-research/text-to-text-transfer-transformer.
"""

from __future__ import annotations

import dataclasses

from cost_models.model_graph import Attention, Layer, ModelGraph, Operator
from planner.read_model.blocks import attention_core, feed_forward_operators, matmul
from planner.read_model.decoder import FeedForward

SPAN_CORRUPTION = 114 / 512
BUCKETS = 32


def t5(name: str, config: dict, seq_len: int, decoder_len: int | None = None) -> ModelGraph:
    """T5 v1.1 for sequences of ``seq_len`` into the encoder and ``decoder_len`` out of the decoder.

    Left out, ``decoder_len`` is 114 of 512: what span corruption of 15 % in spans of three leaves to predict.
    """
    ratio = decoder_len / seq_len if decoder_len else SPAN_CORRUPTION
    h, vocab, heads = config["hidden_size"], config["vocab_size"], config["num_attention_heads"]
    layers = config["num_hidden_layers"]
    return ModelGraph(
        name=name, hidden=h, vocab=vocab, heads=heads, kv_heads=heads, max_positions=seq_len,
        kinds=(_encoder_layer(config), _decoder_layer(config, seq_len, ratio)),
        order=(0,) * layers + (1,) * layers,
        embedding=_embedding(h, vocab, heads, ratio), head=_head(h, vocab, ratio), tied=False,
        widths=(("attention heads", heads), ("feed-forward width", config["intermediate_size"])),
    )  # fmt: skip


def _norm(name: str, h: int, moved: int) -> Operator:
    return Operator(name, "elementwise", "sequence", parameters=h, moved=moved, saved=2 * h, saved_selective=h)


def _network(c: dict) -> tuple[Operator, ...]:
    h = c["hidden_size"]
    network = feed_forward_operators(FeedForward(c["intermediate_size"]), h)
    return (
        _norm("feed_forward_norm", h, 4 * h),
        *network,
        Operator("residual", "elementwise", "sequence", moved=3 * h),
    )


def _encoder_layer(c: dict) -> Layer:
    h, width = c["hidden_size"], c["num_attention_heads"] * c["head_dim"]
    scores = Attention(c["num_attention_heads"], c["num_attention_heads"], c["head_dim"], c["head_dim"], causal=False)
    mixer = (
        matmul("qkv", 3 * width, h, saved=3 * width),
        attention_core(scores),
        matmul("output", h, width),
    )
    return Layer("encoder", (_norm("attention_norm", h, 2 * h), *mixer, *_network(c)), boundaries=2)


def _decoder_layer(c: dict, seq_len: int, ratio: float) -> Layer:
    """Self-attention, attention over the encoder's output, network; boundaries are the encoder's length too."""
    h, heads, d = c["hidden_size"], c["num_attention_heads"], c["head_dim"]
    width = heads * d
    own = Attention(heads, heads, d, d, max(1, round(ratio * ratio * seq_len / 2)), causal=False)
    across = Attention(heads, heads, d, d, max(1, round(ratio * seq_len)), causal=False)
    scaled = (
        _norm("attention_norm", h, 2 * h),
        matmul("qkv", 3 * width, h, saved=3 * width),
        matmul("output", h, width),
        _norm("cross_norm", h, 4 * h),
        matmul("cross_q", width, h, saved=width),
        matmul("cross_output", h, width),
        *_network(c),
    )
    whole = (
        matmul("cross_kv", 2 * width, h, saved=2 * width),
        dataclasses.replace(attention_core(own), saved=ratio * width, saved_selective=ratio * width),
        dataclasses.replace(
            attention_core(across), name="cross_attention", saved=ratio * width, saved_selective=ratio * width
        ),
    )
    return Layer("decoder", (*(_part(op, ratio) for op in scaled), *whole), boundaries=1)


def _part(op: Operator, ratio: float) -> Operator:
    """``op`` at work on ``ratio`` of the tokens."""
    return dataclasses.replace(
        op, n=round(op.n * ratio), moved=op.moved * ratio, saved=op.saved * ratio,
        saved_selective=op.saved_selective * ratio,
    )  # fmt: skip


def _embedding(h: int, vocab: int, heads: int, ratio: float) -> Layer:
    tokens = Operator("tokens", "lookup", "columns", parameters=vocab * h, moved=2 * h * (1 + ratio))
    bias = Operator("position_bias", "lookup", "columns", parameters=2 * BUCKETS * heads)
    return Layer("embedding", (tokens, bias))


def _head(h: int, vocab: int, ratio: float) -> Layer:
    """The encoder's and the decoder's last norm, logits and loss of the decoder's tokens."""
    norms = Operator("final_norm", "elementwise", "sequence", parameters=2 * h, moved=2 * h * (1 + ratio), saved=2 * h)
    logits = Operator("logits", "matmul", "columns", parameters=vocab * h, n=round(vocab * ratio), k=h)
    return Layer("head", (norms, logits, Operator("loss", "loss", "columns", moved=4 * vocab * ratio)))
