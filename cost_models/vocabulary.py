"""Embedding and head on ranks of their own count: ``vocab_tp`` of a stage's ``tp cp`` ranks divide the vocabulary.

    tp' = vocab_tp,    cp' = tp cp / vocab_tp        tp divides vocab_tp, which divides tp cp

Neither end mixes tokens, so ranks that hold other parts of one sequence may as well hold other parts of the vocabulary:
hidden states are gathered among them before the head and scattered behind the embedding, as among tp ranks, and
weights, gradients, states and logits are divided by ``vocab_tp``. What a rank keeps of the sequence between the layers
is the same, so nothing else changes hands. The ``vocab_tp`` ranks are those of tp and cp that are nearest each other.
Token ids and labels, four bytes each, are left out.

Source: Narayanan et al., arXiv:2104.04473 (the vocabulary over tp); PKU-DAIR/Hetu-Galvatron
galvatron/core/runtime/hybrid_parallel_config.py@38b79ada (``vocab_tp``, a count of its own).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from cost_models.model_graph import Layer
from cost_models.rows import Rows

ENDS = ("embedding", "head")


def rows_of(layer: Layer, rows: Rows) -> Rows:
    """The rows as ``layer`` sees them: the ends with ``vocab_tp`` in place of tp, where rows have one."""
    return rows_of_ends(rows) if rows.vocab_tp and layer.kind in ENDS else rows


def rows_of_ends(rows: Rows) -> Rows:
    """The rows as embedding and head see them; rows that cannot have their ``vocab_tp`` with what divides it."""
    if not rows.vocab_tp:
        return rows
    both, factors = rows.tp * rows.cp, rows.factors
    tp = np.gcd(both, rows.vocab_tp)
    together = factors["tp"] * factors["cp"]
    inside = _innermost(tp, together)
    placed = {**factors, "tp": inside, "cp": together // inside}
    return dataclasses.replace(rows, tp=tp, cp=both // tp, factors=placed)


def may_split(tp: NDArray[np.int64], cp: NDArray[np.int64], vocab_tp: int) -> NDArray[np.bool_]:
    """Which degrees leave room for the ends' own: tp divides it, and it divides tp cp; all where it is 0."""
    if not vocab_tp:
        return np.ones(np.broadcast_shapes(np.shape(tp), np.shape(cp)), dtype=bool)
    return (vocab_tp % tp == 0) & (tp * cp % vocab_tp == 0)


def _innermost(degree: NDArray[np.int64], room: NDArray[np.int64]) -> NDArray[np.int64]:
    """``[rows, levels]`` factors of a degree that divide those of ``room``, as deep inside as they go."""
    found, rest = np.ones_like(room), degree.copy()
    for level in range(room.shape[1]):
        found[:, level] = np.gcd(rest, room[:, level])
        rest //= found[:, level]
    return found
