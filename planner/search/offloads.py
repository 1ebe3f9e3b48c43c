"""What rows may keep outside device memory: every way to share out the tensor classes over the cluster's tiers.

Classes leave in the order optimiser states, gradients, weights, and gradients and weights go whole to the tier that all
states are in; optimiser states leave in quarters. Where they leave whole, each stage of a 1F1B row decides how many of
its layers let the last class of states to leave go (:mod:`planner.search.columns`). Of what backward needs, half or
all of the activations leave, or all checkpoints.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cost_models.rows import Rows, shares_of
from cost_models.strategy import OFFLOADED, Strategy
from cost_models.tiers import ACTIVATIONS, CHECKPOINTS, GRADIENTS, OPTIMIZER, WEIGHTS
from planner.candidates import Space

Floats = NDArray[np.float64]
STATE_SHARES = (0.25, 0.5, 0.75, 1.0)
ACTIVATION_SHARES = (0.5, 1.0)


def ways(tiers: int) -> Floats:
    """``[ways, classes, tiers]``: the shares of every way, the one that offloads nothing first."""
    states = [_shares(tiers)]
    for t in range(tiers):
        states += [_shares(tiers, {OPTIMIZER: share}, t) for share in STATE_SHARES]
        states += [_shares(tiers, dict.fromkeys(left, 1.0), t) for left in ((OPTIMIZER, GRADIENTS), _ALL_STATES)]
    saved = [*({ACTIVATIONS: share} for share in ACTIVATION_SHARES), {CHECKPOINTS: 1.0}]
    kept = [_shares(tiers), *(_shares(tiers, shares, t) for t in range(tiers) for shares in saved)]
    return np.array([a + b for a in states for b in kept])


def offloads_less(tiers: int, *, joules: bool) -> NDArray[np.bool_]:
    """``[ways, ways]``: whether the second of two of :func:`ways` offloads less than the first, nothing of it sooner.

    A processor beside a tier updates sooner what has its gradients and weights there too, so of two ways with optimiser
    states outside only those count that leave equal shares of these. Where ``joules`` count they leave equal shares of
    the states as well: of fewer the device's own update may be the quicker, which can take more.
    """
    every = ways(tiers)
    less = (every[None] <= every[:, None]).all(axis=(2, 3)) & ~np.eye(len(every), dtype=bool)
    same = every[:, [GRADIENTS, WEIGHTS, *([OPTIMIZER] if joules else [])]]
    inside = every[:, OPTIMIZER].sum(axis=1) == 0
    return less & ((same[None] == same[:, None]).all(axis=(2, 3)) | inside[None])


_ALL_STATES = (OPTIMIZER, GRADIENTS, WEIGHTS)


def _shares(tiers: int, shares: dict[int, float] | None = None, tier: int = 0) -> Floats:
    found = np.zeros((len(OFFLOADED), tiers))
    for tensors, share in (shares or {}).items():
        found[tensors, tier] = share
    return found


def loosest(space: Space, rows: Rows) -> Rows:
    """The rows with everything offloaded, to be priced as relaxed: no way leaves less on the device."""
    tiers = tuple(tier.name for tier in space.cluster.tiers)
    return (
        rows.offloading(_shares(len(tiers), dict.fromkeys(range(len(OFFLOADED)), 1.0))[None], tiers) if tiers else rows
    )


def row_of(space: Space, it: Strategy) -> Rows:
    """The single row of a strategy, with a share in every tier of the cluster as all rows of a search there have."""
    tiers = tuple(tier.name for tier in space.cluster.tiers)
    return Rows.of(it).offloading(shares_of(it.offloads, tiers)[None], tiers) if tiers else Rows.of(it)


def with_offloads(space: Space, rows: Rows) -> Rows:
    """Every way to offload of complete rows, one below the other."""
    tiers = tuple(tier.name for tier in space.cluster.tiers)
    every = ways(len(tiers))
    origin = np.repeat(np.arange(len(rows)), len(every))
    return rows.take(origin).offloading(np.tile(every, (len(rows), 1, 1)), tiers)
