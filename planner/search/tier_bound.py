"""How long the slowest stage of a row is at least where its layers share device memory, tiers and the link to them.

A layer of 1F1B keeps its last class of states on the device or lets it go, and lets its activations go or keeps and
recomputes them (:mod:`cost_models.offload`). Choice ``c`` of a layer works ``f_c`` and ``b_c`` ticks, sends for ``g_c``
and ``h_c`` ticks in the two passes, recomputes ``e_c`` ticks, and takes ``u_rc`` bytes of memory ``r``, the device's or
a tier's, what every micro-batch in flight keeps included. Where a stage has ``z_c`` layers of each choice and embedding
and head take ``F, B, G, H`` ticks and leave ``R_r`` bytes, it lasts ``t`` ticks a micro-batch at least as long as

    sum_c z_c (f_c + b_c + e_c) <= t - F - B      sum_c z_c (f_c + h_c + e_c) <= t - F - H
    sum_c z_c (g_c + b_c + e_c) <= t - G - B      sum_c z_c (g_c + h_c + e_c) <= t - G - H
    sum_c z_c u_rc <= R_r                         every memory r

since a pass is the longer of its layers' work and their traffic, and what is recomputed comes on top of that. At any
prices ``y >= 0`` of these lines, with ``a_ic`` what choice ``c`` takes of line ``i`` and ``w_c`` the least work of its
kind of layer, the least work ``w`` of the stage's layers is

    w = sum_c w_c z_c <= R_y sum_i y_i (what line i leaves)      R_y = max_c  w_c / sum_i y_i a_ic

linear in ``t``: ``w <= slope t + held``. Stages that hold the work ``W`` of all layers therefore have ``t >= (W - sum
held) / sum slope``, whatever the prices, and no split fits where the slopes are 0 and the sum of ``held`` is below
``W``. The prices taken are the duals of the most work that fits into the stage at the ``t`` that is known, by the
simplex method over all stages of all rows at once; from there on as from a tangent. Rounding, and a simplex that
stopped early, leave prices that are worse, not wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.model_graph import ModelGraph
from cost_models.offload import lightest
from cost_models.price import Prices
from cost_models.strategy import RECOMPUTE
from planner.search.bounds import kind_counts, stages_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
PASSES = (("work", "work"), ("work", "sent"), ("sent", "work"), ("sent", "sent"))
CELLS_AT_ONCE = 2**20
"""Numbers in tables of stages that are looked at together, more or less."""
NEWTON_STEPS = 6
NEARER = 1e-7
"""Of a bound, below which another step is not worth it."""
LEFT = 1 - 1e-11
"""Of all work what has to fit, so that rounding asks for no more than there is."""
ZERO = 1e-9
"""Of a reduced cost, a pivot or a price, in parts of the largest that there is."""


def longest_stage(prices: Prices, model: ModelGraph, limit_bytes: int, least: Floats, *, buffers: bool) -> Floats:
    """Ticks a micro-batch that the slowest stage lasts at least, ``[rows]``, being ``least`` anyway.

    Infinite where no split fits. ``buffers`` says whether communication buffers are known.
    """
    found = least.copy()
    for rows in _parts(prices, model):
        lines = _lines(prices.take(rows), model, limit_bytes, buffers=buffers)
        found[rows] = _least_of(lines, least[rows])
    return found


def memories_hold(prices: Prices, model: ModelGraph, limit_bytes: int, *, buffers: bool) -> NDArray[np.bool_]:
    """Rows of which some split may fit into device memory and tiers, however long it takes."""
    found = np.zeros(len(prices.rows), dtype=bool)
    for rows in _parts(prices, model):
        lines = _lines(prices.take(rows), model, limit_bytes, buffers=buffers)
        found[rows] = np.isfinite(_least_of(lines.of_memory(), np.zeros(len(rows))))
    return found


@dataclass(frozen=True)
class _Lines:
    """The lines of every stage of every row: ``taken[cells, lines, choices]`` of what is ``left[cells, lines]``.

    ``timed[lines]`` are the lines of which ``t`` leaves more; ``row`` is every stage's, ``worth[cells, choices]`` the
    least work of a layer, ``work`` of all layers of a row.
    """

    row: Ints
    taken: Floats
    left: Floats
    timed: NDArray[np.bool_]
    worth: Floats
    work: Floats

    def of_memory(self) -> _Lines:
        """Those of memory alone."""
        kept = ~self.timed
        return _Lines(self.row, self.taken[:, kept], self.left[:, kept], self.timed[kept], self.worth, self.work)

    def of_rows(self, rows: NDArray[np.bool_]) -> _Lines:
        """Those of some rows, which keep their places."""
        some = rows[self.row]
        return _Lines(self.row[some], self.taken[some], self.left[some], self.timed, self.worth[some], self.work)


def _parts(prices: Prices, model: ModelGraph) -> list[Ints]:
    """Rows in parts of so many stages each that their tables stay small."""
    choices = 8 * np.count_nonzero(kind_counts(model)[:-2])
    lines = len(PASSES) + 1 + len(prices.tier_room)
    cells = np.cumsum(prices.rows.pp) * choices * lines
    return np.split(np.arange(len(cells)), np.flatnonzero(np.diff(cells // CELLS_AT_ONCE)) + 1) if len(cells) else []


def _lines(prices: Prices, model: ModelGraph, limit_bytes: int, *, buffers: bool) -> _Lines:
    counts, light = kind_counts(model), lightest(prices)
    present = np.flatnonzero(counts[:-2])
    stages = stages_of(prices, limit_bytes, buffers=buffers)
    stage, row = np.nonzero(stages.exists)
    flight, pp = stages.flight[stage, row], prices.rows.pp
    each, per_micro_batch, passes = _tables(prices, present)
    ends, least = _ends(prices, stage, row, flight, pp), (light.forward + light.backward)[:, present].astype(float)
    room = np.stack([stages.room[stage, row], *(prices.tier_room[name][row] for name in prices.tier_room)], axis=1)
    return _Lines(
        row,
        np.concatenate([passes[row], each[row] + flight[:, None, None] * per_micro_batch[row]], axis=1),
        np.concatenate([-ends[:, : len(PASSES)], room - ends[:, len(PASSES) :]], axis=1),
        np.arange(len(PASSES) + room.shape[1]) < len(PASSES),
        np.repeat(least, each.shape[2] // len(present), axis=1)[row],
        least @ counts[present],
    )


def _tables(prices: Prices, present: Ints) -> tuple[Floats, Floats, Floats]:
    """Of every choice of a layer, kind by kind: its bytes in every memory once and a micro-batch, and ticks.

    ``[rows, memories, choices]`` twice, ``[rows, passes, choices]``.
    """
    choices = [(kind, *way) for kind in present for way in _ways(prices)]
    names = tuple(prices.tier_room)
    once = [[it.state_bytes[:, k], *(it.tier_states[name][:, k] for name in names)] for k, it, _ in choices]
    again = [[it.saved[how][:, k], *(it.tier_saved[name][:, k] for name in names)] for k, it, how in choices]
    ticks = [[sum(_pass_ticks(it, k, ways)) + it.extra[how][:, k] for ways in PASSES] for k, it, how in choices]
    return tuple(np.array(table, dtype=float).transpose(2, 1, 0) for table in (once, again, ticks))


def _ways(prices: Prices) -> list[tuple[Prices, str]]:
    """The prices and recompute of every choice: what a layer lets go it does not recompute.

    In rows whose activations do not leave by layers the first two are as good as those of layers that keep them.
    """
    keeping = [(it, how) for it in (prices.kept, prices.kept.nearer) for how in RECOMPUTE]
    return [(prices, "none"), (prices.nearer, "none"), *keeping]


def _pass_ticks(it: Prices, kind: int, ways: tuple[str, str]) -> tuple[Ints, Ints]:
    """Ticks of both passes of a kind of layer, its work or all its traffic."""
    work = {"forward": it.forward, "backward": it.backward}
    both = zip(("forward", "backward"), ways, strict=True)
    return tuple((it.sent[name] if way == "sent" else work[name])[:, kind] for name, way in both)


def _ends(prices: Prices, stage: Ints, row: Ints, flight: Ints, pp: Ints) -> Floats:
    """What embedding and head take of every line, ``[cells, lines]``; of device memory their stages have it off."""
    found = np.zeros((len(row), len(PASSES) + 1 + len(prices.tier_room)))
    for kind, here in ((-2, stage == 0), (-1, stage == pp[row] - 1)):
        ticks = np.stack([sum(_pass_ticks(prices, kind, ways)) for ways in PASSES], axis=1)[row]
        tiers = [(prices.tier_states[name], prices.tier_saved[name]) for name in prices.tier_room]
        sizes = [once[row, kind] + flight * again[row, kind] for once, again in tiers]
        found += here[:, None] * np.concatenate([ticks, np.stack([np.zeros(len(row)), *sizes], axis=1)], axis=1)
    last = (stage == pp[row] - 1)[:, None]
    tied = [prices.tier_tied[name][row] for name in prices.tier_room]
    found[:, len(PASSES) + 1 :] += last * np.array(tied).reshape(len(tied), len(row)).T
    return found


def _least_of(lines: _Lines, least: Floats) -> Floats:
    """The least ``t`` of every row, from ``least`` on, infinite where nothing fits."""
    t, timed = least.copy(), lines.timed
    if timed.any():
        np.maximum.at(t, lines.row, (-lines.left[:, timed]).max(axis=1))
    full = np.zeros(len(t), dtype=bool)
    np.logical_or.at(full, lines.row, (lines.left[:, ~timed] < 0).any(axis=1))
    t[full], moving = np.inf, ~full
    for _ in range(NEWTON_STEPS):
        some = lines.of_rows(moving)
        slope, held = _tangent(some, some.left + timed * t[some.row, None])
        slopes, held = (np.bincount(some.row, weights=each, minlength=len(t)) for each in (slope, held))
        short = np.where(moving, lines.work * LEFT - held - slopes * np.where(moving, t, 0.0), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.where(short > 0, short / slopes, 0.0)
        t, moving = t + step, np.isfinite(step) & (step > NEARER * t)
        if not moving.any():
            break
    return t


def _tangent(lines: _Lines, left: Floats) -> tuple[Floats, Floats]:
    """``slope`` and ``held`` of every stage, ``[cells]``, at prices that are best where ``left`` is left."""
    most = lines.taken.max(axis=2)
    scale = np.where(most > 0, most, 1.0)
    price = _duals(lines.taken / scale[:, :, None], np.where(most > 0, left / scale, 1.0), lines.worth) / scale
    cost = np.einsum("ci,cik->ck", price, lines.taken)
    rate = (lines.worth / np.where(cost > 0, cost, 1.0)).max(axis=1)
    slope, held = price @ lines.timed.astype(float), (price * lines.left).sum(axis=1)
    free = ((lines.worth > 0) & (cost <= 0)).any(axis=1)
    return np.where(free, 0.0, rate * slope), np.where(free, np.inf, rate * held)


def _duals(taken: Floats, left: Floats, worth: Floats) -> Floats:
    """Prices ``[cells, lines]`` of the most ``worth`` that ``taken`` leaves room for, all of ``left`` being at least 0.

    The simplex method from nothing taken, the choice that is worth most first.
    """
    cells, lines, choices = taken.shape
    table = np.zeros((cells, lines + 1, choices + lines + 1))
    table[:, :lines, :choices], table[:, :lines, -1] = taken, np.maximum(left, 0.0)
    table[:, :lines, choices:-1] = np.eye(lines)
    table[:, -1, :choices] = worth / np.maximum(worth.max(axis=1, keepdims=True), 1e-300)
    open_ = np.arange(cells)
    for _ in range(4 * lines):
        enters = table[open_, -1, :-1].argmax(axis=1)
        limited = (table[open_, :-1, enters] > ZERO).any(axis=1)
        open_, enters = (each[limited & (table[open_, -1, enters] > ZERO)] for each in (open_, enters))
        if not len(open_):
            break
        _pivot(table, open_, enters)
    return np.maximum(-table[:, -1, choices:-1], 0.0)


def _pivot(table: Floats, cells: Ints, enters: Ints) -> None:
    """Take in one choice of every cell, in place of what limits it first."""
    some = table[cells]
    column = np.take_along_axis(some, enters[:, None, None], axis=2)[:, :, 0]
    limits = column[:, :-1] > ZERO
    ratio = np.where(limits, some[:, :-1, -1] / np.where(limits, column[:, :-1], 1.0), np.inf)
    leaves, at = ratio.argmin(axis=1), np.arange(len(cells))
    pivot = some[at, leaves] / np.where(limits[at, leaves], column[at, leaves], 1.0)[:, None]
    some -= column[:, :, None] * pivot[:, None, :]
    some[at, leaves] = pivot
    table[cells] = some
