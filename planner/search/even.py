"""Even cuts of many rows at once: the objective that no plan of them beats, each with the recompute that it takes.

What :func:`planner.search.interleaved.point` finds of one row and cut, but for its schedule, which is bounded by the
paths that need none to be run, and for the room in memory tiers. Arrays are ``[rows, cuts, virtual stages]``, those of
devices ``[rows, cuts, pp]``.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cost_models.chains import Chains
from cost_models.model_graph import ModelGraph
from cost_models.pipeline import filling_micro_batches
from cost_models.price import Prices
from cost_models.schedules import Schedule
from planner.search.balanced import LEAST
from planner.search.bounds import Objective
from planner.search.deadline import look
from planner.search.interleaved import even_cuts, recompute_pairs

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
NEVER = np.iinfo(np.int64).max
CELLS_AT_ONCE = 2**20
"""Pairs of recompute of virtual stages that are looked at together, at most."""


def even_values(
    model: ModelGraph, prices: Prices, virtual: int, objective: Objective, limit_bytes: int, pinned: str | None
) -> Floats:
    """The objective that no even cut into that many virtual stages a device beats, ``[rows]``, at full clock.

    Infinite where none fits.
    """
    prices, found = prices.with_virtual(virtual), np.full(len(prices.rows), np.inf)
    shape = np.stack([prices.rows.pp, filling_micro_batches(prices.rows.pp, prices.rows.micro_batches)])
    for pp, filling in np.unique(shape, axis=1).T.tolist():
        mine = np.flatnonzero((shape == [[pp], [filling]]).all(axis=0))
        cuts = np.array(even_cuts(model.layers, pp, virtual))
        if not len(cuts):
            continue
        cells = cuts.size * len(recompute_pairs(int(np.diff(cuts).max()), pinned)[0])
        for part in np.array_split(mine, -(-len(mine) * cells // CELLS_AT_ONCE)):
            look()
            rows = Chains(model, prices.take(part), np.arange(len(part)))
            found[part] = _values(rows, cuts, objective.take(part), limit_bytes, pinned).min(axis=1)
    return found


def _values(rows: Chains, cuts: Ints, objective: Objective, limit_bytes: int, pinned: str | None) -> Floats:
    """The objective's least value under every cut, ``[rows, cuts]``; infinite for those that do not fit."""
    each, i, j, pp = rows.of(np.s_[:, None, None]), cuts[:, :-1], cuts[:, 1:], rows.schedule.pp
    full, selective, fits = _recompute(rows, i, j, limit_bytes, pinned)
    a = np.minimum(i + np.tile(full, rows.schedule.virtual), j)
    b = np.minimum(a + np.tile(selective, rows.schedule.virtual), j)
    backward = each.backward(i, j) + each.recompute("full", i, a) + each.recompute("selective", a, b)
    ticks = _longest(each, i, j, each.forward(i, j), backward, pp)
    dynamic = np.zeros(ticks.shape)
    if objective.counts_joules:
        prices, extra = rows.prices, rows.prices.joules_extra
        again = each.total(extra["full"], i, a, ends=False) + each.total(extra["selective"], a, b, ends=False)
        spent = each.micro_batches * (each.total(prices.joules_pass, i, j) + again) + each.joules_step(i, j)
        dynamic = spent.sum(axis=2) * prices.rows.stage_size[:, None]
    many = objective.take(np.repeat(rows.row, len(cuts)))
    values = many.value(ticks.ravel() * (rows.prices.ticks.second * LEAST), dynamic.ravel() * LEAST) * LEAST
    return np.where(fits, values.reshape(ticks.shape), np.inf)


def _longest(each: Chains, i: Ints, j: Ints, forward: Ints, backward: Ints, pp: int) -> Ints:
    """The longest of :func:`cost_models.critical_paths.seed_paths`, ``[rows, cuts]``."""
    parts = {name: _by_device(ticks, pp) for name, ticks in each.tail_parts(i, j).items()}
    totals = {name: parts[name].sum(axis=2) for name in ("reduce", "update", "gather")}
    totals |= {name: parts[name][:, :, 0] for name in ("last_bucket", "first_bucket")}
    held = [_by_device(ticks, pp).sum(axis=2) for ticks in (forward, backward)]
    tail, s, hop = each.tail(totals, *held), np.arange(pp), each.hop
    down, up = (np.cumsum(ticks[..., :pp], axis=2) - ticks[..., :pp] for ticks in (forward, backward))
    work = each.micro_batches * (held[0] + held[1]) + down + s * hop
    whole = (forward + backward).sum(axis=2) + 2 * (i.shape[1] - 1) * hop[..., 0] + tail[..., 0]
    return np.maximum(np.maximum(work + tail, work + up + s * hop + tail[..., :1]).max(axis=2), whole)


def _recompute(
    rows: Chains, i: Ints, j: Ints, limit_bytes: int, pinned: str | None
) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """The quickest (full, selective) layers of each virtual stage of a device that fit, and cuts that do so."""
    pp, each = rows.schedule.pp, rows.of(np.s_[:, None, None])
    full, selective = recompute_pairs(int((j - i).max()), pinned)
    states = each.state_bytes(i, j) + each.logit_bytes(i, j)
    room = limit_bytes - each.fixed_bytes - _by_device(states, pp).sum(axis=2)
    wide, i, j = rows.of(np.s_[:, None, None, None]), i[..., None], j[..., None]
    a = np.minimum(i + full, j)
    b = np.minimum(a + selective, j)
    kept = wide.saved("full", i, a) + wide.saved("selective", a, b) + wide.saved("none", b, j) + wide.saved_ends(i, j)
    time = wide.recompute("full", i, a) + wide.recompute("selective", a, b)
    peak = np.full((*room.shape, len(full)), np.iinfo(np.int64).min)
    by_device = _by_device(kept, pp)
    for held in _moments(rows.schedule):
        peak = np.maximum(peak, (by_device * held.T[..., None]).sum(axis=2))
    fits = peak <= room[..., None]
    best = np.argmin(np.where(fits, _by_device(time, pp).sum(axis=2), NEVER), axis=3)
    return full[best], selective[best], fits.any(axis=3).all(axis=2)


@lru_cache(maxsize=1024)
def _moments(schedule: Schedule) -> Ints:
    """Micro-batches that each virtual stage holds at the worst moments of its device, ``[moments, pp, v]``.

    Those of a device that has fewer moments than another are repeated.
    """
    each = [np.array(schedule.moments(device)) for device in range(schedule.pp)]
    most = max(map(len, each))
    return np.stack([np.pad(it, ((0, most - len(it)), (0, 0)), mode="edge") for it in each], axis=1)


def _by_device(values: Ints, pp: int) -> Ints:
    """Values of all virtual stages, ``[rows, cuts, v, pp, ...]``: a column of stages is a device's."""
    return values.reshape(*values.shape[:2], -1, pp, *values.shape[3:])
