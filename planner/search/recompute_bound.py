"""How long the slowest stage of a row is at least, when memory makes stages recompute.

Stage ``s`` holds ``flight_s`` micro-batches of what its layers keep, beside their states, in ``room_s`` bytes. Each
byte that is not kept costs ``q`` ticks of recompute at least, ``q = min (extra / (saved_none - saved))`` over kinds
of layers and choices. A stage whose layers work ``w`` ticks a micro-batch therefore lasts

    t >= w        t >= w / R - q room / flight        R = max_kind  work / (work + q (saved + state / flight))

so that ``w <= min(t, R (t + q room / flight))``: concave in ``t``. No split has every stage at most ``t`` long where
these do not sum to the work of all layers. Newton's steps from the balanced split reach the least such ``t`` from
below, so each of them is a bound. With ``t`` the longest stage, ``S`` the work of all stages, and ``m`` micro-batches:

    any schedule      step >= m t
    1F1B, m > pp      step >= 2 S + (m - pp - 1) t + 2 (pp - 1) hop

The second is the return path of the longest stage ``s``, ``S + (m - pp + s) t + sum_{j>s} t_j``, in which the stages up
to ``s`` take at most ``(s + 1) t`` of ``S``. Virtual stages keep no less than 1F1B does (:mod:`planner.search.bounds`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.model_graph import ModelGraph
from cost_models.price import Prices
from planner.search.bounds import ROWS_AT_ONCE, kind_counts, stages_of

Floats = NDArray[np.float64]
NEWTON_STEPS = 5


@dataclass(frozen=True)
class ForcedRecompute:
    """The two bounds of the module in ticks, ``[rows]``."""

    any_schedule: Floats
    one_f_one_b: Floats


def forced_recompute(prices: Prices, model: ModelGraph, limit_bytes: int, *, buffers: bool) -> ForcedRecompute:
    """Ticks that no split of a row's layers, and no recompute that fits, can beat; ``buffers`` where they are known."""
    parts = np.array_split(np.arange(len(prices.rows)), max(1, -(-len(prices.rows) // ROWS_AT_ONCE)))
    some = (prices if len(parts) == 1 else prices.take(part) for part in parts)
    slowest = np.concatenate([longest_stage(it, model, limit_bytes, buffers=buffers) for it in some])
    m, pp = prices.rows.micro_batches, prices.rows.pp
    work = (prices.forward + prices.backward) @ kind_counts(model)
    filled = 2 * work + (m - pp - 1) * slowest + 2 * (pp - 1) * prices.hop
    return ForcedRecompute(m * slowest, np.maximum(m * slowest, np.where(m > pp, filled, 0.0)))


def longest_stage(prices: Prices, model: ModelGraph, limit_bytes: int, *, buffers: bool) -> Floats:
    """Ticks a micro-batch that the slowest stage lasts at least, ``[rows]``."""
    counts = kind_counts(model)
    present = np.flatnonzero(counts[:-2])
    each = (prices.forward + prices.backward)[:, present].astype(float)
    work, ends = each @ counts[present], prices.forward[:, -2:] + prices.backward[:, -2:]
    stages, per_byte = stages_of(prices, limit_bytes, buffers=buffers), _ticks_per_byte(prices, present)
    own = np.zeros(stages.flight.shape)
    own[0] = ends[:, 0]
    own[prices.rows.pp - 1, np.arange(len(own[0]))] += ends[:, 1]
    rate = np.zeros(stages.flight.shape)
    for kind, column in enumerate(present):
        held = prices.saved["none"][:, column] + prices.state_bytes[:, column] / stages.flight
        rate = np.maximum(rate, each[:, kind] / (each[:, kind] + per_byte * held))
    credit = per_byte * stages.room / stages.flight
    least = (work + ends.sum(axis=1)) / prices.rows.pp
    for _ in range(NEWTON_STEPS):
        kept = rate * (least - own + credit)
        limited = kept < least - own
        reached = np.where(stages.exists, np.where(limited, kept, least - own), 0.0).sum(axis=0)
        slope = np.where(stages.exists, np.where(limited, rate, 1.0), 0.0).sum(axis=0)
        least = least + np.maximum(work - reached, 0.0) / slope
    return least


def _ticks_per_byte(prices: Prices, present: NDArray[np.int64]) -> Floats:
    """The least ticks of recompute for a byte that is not kept; 0 where nothing can be recomputed."""
    found = []
    for choice in ("selective", "full"):
        saved = prices.saved["none"][:, present] - prices.saved[choice][:, present]
        found.append(np.where(saved > 0, prices.extra[choice][:, present] / np.maximum(saved, 1), np.inf))
    least = np.concatenate(found, axis=1).min(axis=1)
    return np.where(np.isfinite(least), least, 0.0)
