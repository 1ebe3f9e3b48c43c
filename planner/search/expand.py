"""From coarse rows to exact ones, one decision at a time; each step can only raise the bound.

    degrees     (tp, cp, pp, dp, micro-batch), every axis as deep inside as it fits by itself, all states sharded
    experts     (ep, etp) chosen, each as deep inside as it fits
    placement   all axes and both meshes factored over the levels together
    sharding    ZeRO stage, shard group and replicas: a row that can be evaluated

Rows before ``sharding`` are priced with ``relaxed=True``.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cost_models.rows import AXIS_FACTORS, Rows
from planner.candidates import Space, degree_table, divisors, experts_hold, innermost, placements, relaxed_rows
from topologies.host_shape import HostShape

Ints = NDArray[np.int64]
Factors = tuple[int, ...]
Choices = dict[str, Ints]
FEW_PLACED = 256
"""Placed rows that are sharded and priced at once sooner than bounded one step after the other."""


def few_placed(space: Space) -> Rows | None:
    """Every placed row of a space, or ``None`` where there are more than ``FEW_PLACED`` or none."""
    degrees = degree_table(space)
    if not 0 < len(degrees) <= FEW_PLACED:
        return None
    rows = with_experts(space, relaxed_rows(space, degrees))
    if not 0 < len(rows) <= FEW_PLACED:
        return None
    placed = with_placement(space, rows)
    return placed if len(placed) <= FEW_PLACED else None


def with_experts(space: Space, rows: Rows) -> Rows:
    """Every legal (ep, etp) of rows of degrees."""
    if space.ep == (1,) and space.etp == (1,):
        return rows

    def legal(tp: int, stage: int) -> Ints:
        found = [(ep, etp) for ep, etp in pairs if experts_hold(space.model, tp, stage // tp, ep, etp)]
        return np.array(found, dtype=np.int64).reshape(-1, 2)

    pairs = list(itertools.product(space.ep, space.etp))
    parts, origin = _table(rows, ("tp", "stage_size"), legal)
    ep, etp = parts[:, 0], parts[:, 1]
    capacity = space.cluster.group_capacity
    return _chosen(rows.take(origin), {"ep": innermost(ep, capacity), "etp": innermost(etp, capacity)})


def with_placement(space: Space, rows: Rows) -> Rows:
    """Every placement of rows whose degrees and expert degrees are chosen."""
    key = (space.cluster.group_capacity, space.cluster.host_shape)
    names = ("tp", "cp", "dp", "pp", "etp", "ep")
    table, origin = _table(rows, names, lambda *degrees: _placed(degrees, *key))
    return _chosen(rows.take(origin), _unpacked(table, ("tp", "cp", "dp_shard", "pp", "etp", "ep", "edp"), space))


@lru_cache(maxsize=65536)
def _placed(degrees: Factors, capacity: Factors, host: HostShape) -> Ints:
    """``[ways, 7 * levels]``: factors of tp, cp, dp, pp, etp, ep, edp."""
    tp, cp, dp, pp, etp, ep = degrees
    rows = [
        (*f_tp, *f_cp, *f_dp, *f_pp, *f_etp, *f_ep, *f_edp)
        for f_tp, f_cp, f_dp, f_pp in placements((tp, cp, dp, pp), capacity, host)
        for f_etp, f_ep, f_edp in _meshes(tuple(a * b * c for a, b, c in zip(f_tp, f_cp, f_dp, strict=True)), etp, ep)
    ]
    return np.array(rows, dtype=np.int64).reshape(-1, 7 * len(capacity))


@lru_cache(maxsize=65536)
def _meshes(stage: Factors, etp: int, ep: int) -> list[tuple[Factors, Factors, Factors]]:
    """Factors of (etp, ep, edp) whose product at each level is the stage's."""
    found = []
    for f_etp in _within(stage, etp):
        rest = tuple(s // e for s, e in zip(stage, f_etp, strict=True))
        for f_ep in _within(rest, ep):
            found.append((f_etp, f_ep, tuple(r // e for r, e in zip(rest, f_ep, strict=True))))
    return found


def _within(room: Factors, degree: int) -> list[Factors]:
    """Factors of ``degree`` over the levels, each a divisor of the room there."""
    return [f for f in itertools.product(*(divisors(r) for r in room)) if math.prod(f) == degree]


def with_sharding(space: Space, rows: Rows) -> Rows:
    """Every ZeRO stage, shard group and replicas of placed rows."""
    pinned = tuple(space.pins.get(name) for name in ("dp_shard", "dp_replicate"))
    levels = range(len(space.cluster.group_capacity))
    data = rows.factors["dp_shard"]
    keys = np.concatenate([data, rows.cp[:, None]], axis=1)
    table, origin = _table_of(keys, lambda *key: _sharding(key[:-1], key[-1], space.zero, pinned))
    chosen = {"dp_shard": table[:, 1 : 1 + len(levels)], "dp_replicate": table[:, 1 + len(levels) :]}
    return _chosen(rows.take(origin), chosen, zero=table[:, 0])


@lru_cache(maxsize=65536)
def _sharding(f_dp: Factors, cp: int, legal: Factors, pinned: tuple) -> Ints:
    """``[ways, 1 + 2 levels]``: the ZeRO stage, factors of dp_shard, factors of dp_replicate."""
    found = []
    for shard in itertools.product(*(divisors(f) for f in f_dp)):
        replicate = tuple(a // b for a, b in zip(f_dp, shard, strict=True))
        degrees = math.prod(shard), math.prod(replicate)
        if all(pin in (None, degree) for pin, degree in zip(pinned, degrees, strict=True)):
            stages = (z for z in legal if (degrees[0] == 1 if z == 0 else degrees[0] * cp > 1))
            found += [(z, *shard, *replicate) for z in stages]
    return np.array(found, dtype=np.int64).reshape(-1, 1 + 2 * len(f_dp))


def _table(rows: Rows, names: tuple[str, ...], choices: Callable[..., Ints]) -> tuple[Ints, Ints]:
    return _table_of(np.stack([getattr(rows, name) for name in names], axis=1), choices)


def _table_of(keys: Ints, choices: Callable[..., Ints]) -> tuple[Ints, Ints]:
    """The choices of every row's key, one below the other, and the row each belongs to."""
    parts = [choices(*key) for key in keys.tolist()]
    origin = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return np.concatenate(parts), origin


def _unpacked(table: Ints, axes: tuple[str, ...], space: Space) -> Choices:
    levels = len(space.cluster.group_capacity)
    return {axis: table[:, k * levels : (k + 1) * levels] for k, axis in enumerate(axes)}


def _chosen(rows: Rows, factors: Choices, **columns: Ints) -> Rows:
    """The rows with new factors for some axes; degrees follow."""
    every = {axis: factors.get(axis, rows.factors[axis]) for axis in AXIS_FACTORS}
    degree = {axis: np.prod(factors[axis], axis=1) for axis in factors if axis != "edp"}
    return dataclasses.replace(rows, **{**degree, **columns}, factors=every)
