"""Rows that another row beats in everything: they cannot be part of a better plan."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cost_models.price import Prices
from planner.search.bounds import Objective

Ints = NDArray[np.int64]
CHUNK = 256


def undominated(prices: Prices, index: Ints, objective: Objective, slower: list[Prices] | None = None) -> Ints:
    """Positions in ``index`` of rows that no other row of the same degrees and schedule dominates.

    A row dominates another of the same pp, micro-batches and stage size when nothing about it is greater:
    times, bytes, joules, and what a second costs. Every path, memory sum and objective grows with these, so
    dropping dominated rows loses nothing. Of equal rows the first stays. ``slower`` are the same rows' prices at
    other rates of the network, at which nothing may be greater either.
    """
    if not len(index):
        return index
    keys = np.stack(
        [getattr(prices.rows, a)[index] for a in ("pp", "micro_batches", "stage_size", "micro_batch")], axis=1
    )
    _, group = np.unique(keys, axis=0, return_inverse=True)
    tables = [prices, *(slower or [])]
    features = np.concatenate([_features(it, index, objective) for it in tables], axis=1)
    kept = [
        members[_front(features[members])] for members in (np.flatnonzero(group == g) for g in range(group.max() + 1))
    ]
    return np.sort(np.concatenate(kept))


def _features(prices: Prices, index: Ints, objective: Objective) -> NDArray[np.float64]:
    """``[rows, quantities]``, everything in which less is better."""
    tables = [
        prices.forward, prices.backward, prices.extra["full"], prices.extra["selective"],
        prices.reduce, prices.gather, prices.update, prices.state_bytes, *prices.saved.values(),
        prices.joules_pass, prices.joules_extra["full"], prices.joules_extra["selective"], prices.joules_step,
    ]  # fmt: skip
    singles = [prices.hop, prices.fixed_bytes, prices.logits, prices.tied_bytes, objective.weight,
               objective.static.facility_w]  # fmt: skip
    return np.concatenate([*(t[index] for t in tables), np.stack([s[index] for s in singles], axis=1)], axis=1).astype(
        np.float64
    )


def _front(features: NDArray[np.float64]) -> Ints:
    """Rows that no other row dominates; in order of their sum a row can only be dominated by an earlier one."""
    varying = features[:, (features != features[0]).any(axis=0)]
    if varying.shape[1] == 0:
        return np.array([0])
    scale = np.abs(varying).max(axis=0)
    order = np.argsort((varying / np.where(scale > 0, scale, 1)).sum(axis=1), kind="stable")
    front: list[int] = []
    rows = varying[order]
    alive = np.ones(len(rows), dtype=bool)
    for k in range(len(rows)):
        if not alive[k]:
            continue
        front.append(k)
        alive[k + 1 :] &= ~(rows[k] <= rows[k + 1 :]).all(axis=1)
    return np.sort(order[front])
