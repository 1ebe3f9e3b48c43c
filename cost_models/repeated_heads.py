"""Keys and values where tp is above the KV heads: every rank reads a whole head, of which its projection makes a part.

The tp group gathers what the projections made, and scatters and sums the gradients, so many elements a token:

    queries too (Megatron-Core, whose rows of queries, keys and values are interleaved)   a d_k + h (d_k + d_v)
    keys and values alone                                                                 h (d_k + d_v)

with ``a`` heads, ``h < tp`` KV heads of ``d_k`` and ``d_v`` elements. For the backward pass a rank keeps one head,
``(1 - h / tp) (d_k + d_v)`` elements more than the part that operators count. Weights stay divided by tp. What is
gathered beyond one head lives for a moment, before attention, and is not counted.

Source: NVIDIA/Megatron-LM megatron/core/transformer/attention.py@core_v0.19.2, ``get_query_key_value_tensors``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cost_models.model_graph import Attention, Layer
from cost_models.rows import Rows
from cost_models.stack import Stack

Floats = NDArray[np.float64]


def gathered_elements(layer: Layer, rows: Rows, stack: Stack) -> Floats:
    """Elements a token, of all heads, that a layer's tp group gathers, ``[rows]``; 0 where ranks have heads enough."""
    found = np.zeros(len(rows))
    for it in _projected(layer):
        queries = it.queries * it.heads * it.qk_dim if stack.gathers_queries else 0.0
        found += np.where(rows.tp > it.kv_heads, queries + it.keys * it.kv_elements, 0.0)
    return found


def kept_beyond_share(layer: Layer, rows: Rows) -> Floats:
    """Elements a token of keys and values that a rank keeps beyond its ``1 / tp`` of them, ``[rows]``."""
    each = [it.keys * (it.qk_dim + it.v_dim) * np.maximum(0.0, 1 - it.kv_heads / rows.tp) for it in _projected(layer)]
    return np.sum(each, axis=0) if each else np.zeros(len(rows))


def _projected(layer: Layer) -> list[Attention]:
    """Attentions to keys and values that the layer projects by columns; latents and states of scans are no such."""
    by_columns = any(op.name == "qkv" and op.split == "columns" for op in layer.operators)
    found = (op for op in layer.operators if op.name == "attention" and op.split == "columns" and op.attention)
    return [op.attention for op in found] if by_columns else []
