"""How long a 1F1B step is at least where layers share device memory, memory tiers and their links.

A layer keeps its last class of states on the device or lets it go, and lets its activations go or keeps and
recomputes them (:mod:`cost_models.offload`). Choice ``c`` of a layer works ``f_c`` and ``b_c`` ticks, sends for ``g_c``
and ``h_c`` ticks in the two passes, recomputes ``e_c`` ticks, updates ``u_c`` ticks a step, and takes ``a_rc`` bytes of
memory ``r``, the device's or a tier's, what every micro-batch in flight keeps included. Where stage ``s`` has ``z_c``
layers of each choice, and embedding and head leave ``R_r`` bytes, a step of ``D`` ticks has room for

    sum_c z_c (m (x_c + y_c + e_c) + u_c) <= D - s (least f + hop)        x = f or g, y = b or h: four lines
    sum_c z_c (M (x_c + y_c + e_c) + [s = 0] u_c) <= D - (1 + r) (S + 2 (pp - 1) hop) - S      m > pp: four more
    sum_c z_c a_rc <= R_r                                                 every memory r

less what embedding and head take of each: a pass is the longer of its layers' work and their traffic, what is
recomputed comes on top of that, and a device updates last. The first lines are of a stage that begins once every stage
before it had one layer go forward; the others are those of :mod:`planner.search.recompute_bound`, ``M = m - pp - 1 -
r pp``, of all stages as they are of the longest, with the first stage's own update.

At any prices ``p_i >= 0`` of these lines, with ``q_ic`` what choice ``c`` takes of line ``i`` and ``w_c`` the least
work of its kind of layer, the least work of a stage's layers is

    w = sum_c w_c z_c <= max_c (w_c / sum_i p_i q_ic) sum_i p_i (what line i leaves) = slope D + held

Stages hold the work ``W`` of all layers together, so ``D >= (W - sum held) / sum slope`` whatever the prices, and no
split fits where all slopes are 0 and ``sum held < W``. The prices taken are the duals of the most work that fits into
each stage within the ``D`` that is known, by the simplex method over all stages of all rows at once; then on from the
``D`` that follows, as by Newton's tangents. Rounding, or a simplex that stops early, make prices worse, not wrong.

Left out: reductions and gathers that stick out, the room that ranks of one pool leave each other beyond what one of
them may take, and that layers are whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.model_graph import ModelGraph
from cost_models.offload import lightest
from cost_models.price import Prices
from cost_models.strategy import RECOMPUTE
from planner.search.bounds import kind_counts, rounds_of, stages_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
CELLS_AT_ONCE = 2**20
"""Numbers in tables of stages that are looked at together, more or less."""
NEWTON_STEPS = 6
NEARER = 1e-7
"""Of a bound, below which another step is not worth it."""
LEFT = 1 - 1e-11
"""Of all work what has to fit, so that rounding asks for no more than there is."""
ZERO = 1e-9
"""Of a reduced cost, a pivot or a price, in parts of the largest that there is."""


def least_step(
    prices: Prices, model: ModelGraph, limit_bytes: int, least: Floats, longest: Floats, *, buffers: bool
) -> Floats:
    """Ticks that a step lasts at least, ``[rows]``, being ``least`` anyway, and ``longest`` those of one of its stages.

    Infinite where no split fits. ``buffers`` says whether communication buffers are known.
    """
    found = least.copy()
    for rows in _parts(prices, model):
        some = prices.take(rows)
        lines = _joined(_of_steps(some, model, longest[rows]), _of_memories(some, model, limit_bytes, buffers=buffers))
        found[rows] = _least_of(lines, least[rows])
    return found


def memories_hold(prices: Prices, model: ModelGraph, limit_bytes: int, *, buffers: bool) -> NDArray[np.bool_]:
    """Rows of which some split may fit into device memory and tiers, however long it takes."""
    found = np.zeros(len(prices.rows), dtype=bool)
    for rows in _parts(prices, model):
        lines = _of_memories(prices.take(rows), model, limit_bytes, buffers=buffers)
        found[rows] = np.isfinite(_least_of(lines, np.zeros(len(rows))))
    return found


@dataclass(frozen=True)
class _Lines:
    """The lines of every stage of every row: ``taken[cells, lines, choices]`` of what is ``left[cells, lines]``.

    ``timed[lines]`` are the lines of which a longer step leaves more; ``row`` is every stage's,
    ``worth[cells, choices]`` the least work of a layer, ``work`` of all layers of a row.
    """

    row: Ints
    taken: Floats
    left: Floats
    timed: NDArray[np.bool_]
    worth: Floats
    work: Floats

    def of_rows(self, rows: NDArray[np.bool_]) -> _Lines:
        """Those of some rows, which keep their places."""
        some = rows[self.row]
        return _Lines(self.row[some], self.taken[some], self.left[some], self.timed, self.worth[some], self.work)


def _parts(prices: Prices, model: ModelGraph) -> list[Ints]:
    """Rows in parts of so many stages each that their tables stay small."""
    choices = 8 * np.count_nonzero(kind_counts(model)[:-2])
    lines = 8 + 1 + len(prices.tier_room)
    cells = np.cumsum(prices.rows.pp) * choices * lines
    return np.split(np.arange(len(cells)), np.flatnonzero(np.diff(cells // CELLS_AT_ONCE)) + 1) if len(cells) else []


def _joined(one: _Lines, other: _Lines) -> _Lines:
    """All lines of the same stages."""
    taken, left = (np.concatenate([getattr(it, name) for it in (one, other)], axis=1) for name in ("taken", "left"))
    return dataclasses.replace(one, taken=taken, left=left, timed=np.concatenate([one.timed, other.timed]))


def _of_memories(prices: Prices, model: ModelGraph, limit_bytes: int, *, buffers: bool) -> _Lines:
    """The lines of device memory and of every tier."""
    stages = stages_of(prices, limit_bytes, buffers=buffers)
    stage, row = np.nonzero(stages.exists)
    flight, tiers = stages.flight[stage, row], tuple(prices.tier_room)

    def once(it: Prices, how: str, kind: int) -> list[NDArray]:
        return [it.state_bytes[:, kind], *(it.tier_states[name][:, kind] for name in tiers)]

    def again(it: Prices, how: str, kind: int) -> list[NDArray]:
        return [it.saved[how][:, kind], *(it.tier_saved[name][:, kind] for name in tiers)]

    states, saved = (_of_choices(prices, model, each) for each in (once, again))
    taken = states[row] + flight[:, None, None] * saved[row]
    left = [stages.room[stage, row]]
    for name in tiers:
        ends = [prices.tier_states[name][row, k] + flight * prices.tier_saved[name][row, k] for k in (-2, -1)]
        ends[1] = ends[1] + prices.tier_tied[name][row]
        left.append(prices.tier_room[name][row] - _held_by(stage, prices.rows.pp[row], *ends))
    return _lines(prices, model, row, taken, np.stack(left, axis=1), timed=False)


def _of_steps(prices: Prices, model: ModelGraph, longest: Floats) -> _Lines:
    """The lines of a step's ticks; those of return paths are empty where a row has none."""
    pp, m = prices.rows.pp, prices.rows.micro_batches
    stage, row = np.nonzero(np.arange(int(pp.max(initial=1)))[:, None] < pp)
    light, counts, first = lightest(prices), kind_counts(model), stage == 0
    work = (light.forward + light.backward) @ counts
    once = work + 2 * (pp - 1) * prices.hop
    r = np.where(once > pp * longest, rounds_of(pp, m), 0)
    back, ahead = m > pp, light.forward[:, np.flatnonzero(counts[:-2])].min(axis=1) + prices.hop
    passes, update = _of_choices(prices, model, _ticks_of_passes), _of_choices(prices, model, _ticks_of_update)
    ends, updates = ([f(prices, "none", k) for k in (-2, -1)] for f in (_ticks_of_passes, _ticks_of_update))
    ends = _held_by(stage, pp[row], *(np.stack(ticks, axis=1)[row] for ticks in ends))
    updates = _held_by(stage, pp[row], *(np.stack(ticks, axis=1)[row] for ticks in updates))

    def lines(passed: Ints, updated: NDArray[np.bool_], spent: Floats) -> tuple[Floats, Floats]:
        """``taken`` and ``left`` of stages of so many passes, some with their update, ``spent`` ticks being others'."""
        taken = passed[:, None, None] * passes[row] + updated[:, None, None] * update[row]
        return taken, -spent[:, None] - passed[:, None] * ends - updated[:, None] * updates

    begun = lines(m[row], np.ones(len(row), dtype=bool), (stage * ahead[row]).astype(float))
    others = np.where(back, (1 + r) * once + work, 0.0)
    returning = lines(np.where(back, m - pp - 1 - r * pp, 0)[row], first & back[row], others[row])
    taken, left = (np.concatenate(both, axis=1) for both in zip(begun, returning, strict=True))
    return _lines(prices, model, row, taken, left, timed=True)


def _lines(prices: Prices, model: ModelGraph, row: Ints, taken: Floats, left: Floats, *, timed: bool) -> _Lines:
    counts, light = kind_counts(model), lightest(prices)
    present = np.flatnonzero(counts[:-2])
    least = (light.forward + light.backward)[:, present].astype(float)
    worth = np.repeat(least, taken.shape[2] // len(present), axis=1)[row]
    return _Lines(row, taken, left, np.full(left.shape[1], timed), worth, least @ counts[present])


def _of_choices(prices: Prices, model: ModelGraph, of: Callable[[Prices, str, int], list[NDArray]]) -> Floats:
    """``[rows, lines, choices]`` of what ``of`` says of every choice of a layer, kind by kind.

    A layer that lets its activations go recomputes nothing. In rows where these do not leave by layers such choices are
    as good as those of layers that keep them.
    """
    keeping = [(it, how) for it in (prices.kept, prices.kept.nearer) for how in RECOMPUTE]
    ways = [(prices, "none"), (prices.nearer, "none"), *keeping]
    kinds = np.flatnonzero(kind_counts(model)[:-2])
    return np.array([of(*way, kind) for kind in kinds for way in ways], dtype=float).transpose(2, 1, 0)


def _ticks_of_passes(it: Prices, how: str, kind: int) -> list[NDArray]:
    """Ticks of both passes of a micro-batch, each its work or all its traffic: four ways."""
    forward, backward = ((getattr(it, name), it.sent[name]) for name in ("forward", "backward"))
    return [x[:, kind] + y[:, kind] + it.extra[how][:, kind] for x in forward for y in backward]


def _ticks_of_update(it: Prices, how: str, kind: int) -> list[NDArray]:
    """Ticks of a step's end that nothing hides, for each of these ways."""
    slowed = it.interference * (it.reduce[:, kind] + it.gather[:, kind])
    return [it.update[:, kind] + slowed] * 4


def _held_by(stage: Ints, pp: Ints, embedding: NDArray, head: NDArray) -> NDArray:
    """Of every stage ``[cells, ...]`` what embedding and head take there, given what they do."""
    first, last = ((here.reshape(-1, *(1,) * (head.ndim - 1))) for here in (stage == 0, stage == pp - 1))
    return first * embedding + last * head


def _least_of(lines: _Lines, least: Floats) -> Floats:
    """The least ticks ``t`` of every row's step, from ``least`` on; infinite where nothing fits, whatever they are."""
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
