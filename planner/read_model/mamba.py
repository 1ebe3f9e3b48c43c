"""Operators of mixers that carry a state along the sequence: Mamba-2 and the gated delta rule.

Mamba-2 with H heads of P elements, G groups, a state of N elements a head element and chunks of Q tokens
works on chunks: scores between the tokens of a chunk, and a state passed from chunk to chunk. FLOP a token:

    2 Q (G N + H P)  +  4 H N P        scores and their sum; state written and read

The graph has no operator of its own for it. An ``Attention`` with a window of Q keys stands in, with
2 Q H (N + P) FLOP: for Q = 128 that is 0.92 of the true figure where N = 128, P = 64, H = 8 G, and
0.98 where N = 256, P = 64, H = 32 G. What the states move is an elementwise operator behind it.

Source: Dao and Gu, arXiv:2405.21060, section 6; kernels ``mamba_chunk_scan_combined`` of state-spaces/mamba.
"""

from __future__ import annotations

from dataclasses import dataclass

from cost_models.model_graph import Attention, Operator
from planner.read_model.blocks import matmul

FP32_ELEMENTS = 2
STATE_PASSES = 4


@dataclass(frozen=True, slots=True)
class Mamba:
    """A Mamba-2 mixer: ``heads`` of ``head_dim`` elements, ``groups`` that share input and output maps of ``state``.

    ``kernel`` is the length of the convolution before the scan, ``chunk`` the tokens that a scan takes at once.
    """

    heads: int
    head_dim: int
    groups: int
    state: int
    kernel: int
    chunk: int
    bias: bool = False
    conv_bias: bool = True

    @property
    def width(self) -> int:
        """Elements of all heads together."""
        return self.heads * self.head_dim

    @property
    def conv_width(self) -> int:
        """Elements that the convolution sees: heads, and both maps of every group."""
        return self.width + 2 * self.groups * self.state


def mamba_operators(it: Mamba, hidden: int) -> tuple[Operator, ...]:
    """Input projection, convolution, scan, gated norm and output projection; tp divides heads and groups.

    Kept for backward: the projection's output (gate, convolution's input and step sizes), the scan's output and
    the norm's; the fused kernel computes the rest again.
    """
    projected = it.width + it.conv_width + it.heads
    conv_parameters = it.conv_width * (it.kernel + it.conv_bias)
    return (
        matmul("mamba_in", projected, hidden, bias=it.bias, saved=projected),
        Operator("conv", "elementwise", "columns", parameters=conv_parameters, moved=2 * it.conv_width),
        *_scan(it),
        Operator("gated_norm", "elementwise", "columns", parameters=it.width, moved=3 * it.width, saved=it.width),
        matmul("mamba_out", hidden, it.width, bias=it.bias),
    )


def _scan(it: Mamba) -> tuple[Operator, ...]:
    """The scan's products, then what it moves: inputs twice, the output, and the states of each chunk in fp32."""
    states = FP32_ELEMENTS * STATE_PASSES * it.width * it.state / it.chunk
    scores = Attention(it.heads, it.groups, it.state, it.head_dim, it.chunk)
    scan = Operator(
        "scan", "attention", "columns", parameters=3 * it.heads, saved=it.width, saved_selective=it.width,
        attention=scores,
    )  # fmt: skip
    return (scan, Operator("states", "elementwise", "columns", moved=2 * it.conv_width + it.width + states))


@dataclass(frozen=True, slots=True)
class DeltaRule:
    """A gated delta-rule mixer: ``key_heads`` shared by ``heads`` value heads, states of ``key_dim x head_dim``."""

    heads: int
    head_dim: int
    key_heads: int
    key_dim: int
    kernel: int
    chunk: int = 64

    @property
    def width(self) -> int:
        """Elements of all value heads together."""
        return self.heads * self.head_dim

    @property
    def conv_width(self) -> int:
        """Elements that the convolution sees: queries, keys and values."""
        return self.width + 2 * self.key_heads * self.key_dim


def delta_rule_operators(it: DeltaRule, hidden: int) -> tuple[Operator, ...]:
    """Projections, convolution, the chunked delta rule, gated norm and output projection.

    Within a chunk of C tokens the rule needs scores of keys with keys, the inverse of their triangle (C^2/3 a
    head), and scores of queries; across chunks three products with the state. FLOP a token and head, with keys
    of K and values of V elements: ``2 C (3 K + 2 V) + 6 K V``, for which a window of that many keys stands in.

    Source: Yang et al., "Gated Delta Networks", arXiv:2412.06464, section 3.3.
    """
    k, v, c = it.key_dim, it.head_dim, it.chunk
    window = round((2 * c * (3 * k + 2 * v) + 6 * k * v) / (2 * (k + v)))
    states = FP32_ELEMENTS * STATE_PASSES * it.width * k / c
    qkvz = it.conv_width + it.width
    scores = Attention(it.heads, it.key_heads, k, v, window)
    return (
        matmul("delta_in", qkvz, hidden, saved=qkvz),
        matmul("delta_gates", 2 * it.heads, hidden, saved=2 * it.heads),
        Operator("conv", "elementwise", "columns", parameters=it.conv_width * it.kernel, moved=2 * it.conv_width),
        Operator(
            "delta_rule", "attention", "columns", parameters=2 * it.heads, saved=it.width, saved_selective=it.width,
            attention=scores,
        ),
        Operator("states", "elementwise", "columns", moved=2 * it.conv_width + it.width + states),
        Operator("gated_norm", "elementwise", "whole", parameters=v),
        Operator("gate", "elementwise", "columns", moved=3 * it.width, saved=it.width),
        matmul("delta_out", hidden, it.width),
    )  # fmt: skip
