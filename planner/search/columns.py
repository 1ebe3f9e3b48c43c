"""Columns: everything one pipeline stage may hold, with the least recompute that lets it fit.

A column is layers ``i`` to ``j - 1`` of stage ``s``, of those that keep their activations the first ``full`` recomputed
in full, the next ``selective`` selectively. Memory decides the recompute, so only the fastest fitting one of each
segment is kept. Folding is exact: a longer backward lengthens every path through it by more than it can hide of the
stage's tail. Where joules count, in the objective or under a power cap, a slower one that spends fewer of them
stays too. There each segment also comes at every clock that is priced: memory does not ask for it, so each clock has
its own recompute, and of all of a segment those stay that no other equals in time and joules.

Where layers may offload differently (:mod:`cost_models.offload`) a segment comes with every number ``out`` of first
layers that let one class of states more go. Where that never makes anything quicker, one more is worth a column only
while it spares recompute. Where layers may keep their activations or let them go, so it comes with every number that
does, but those that cost nothing: of as many as can leave unnoticed the most do. Their traffic makes forward passes
longer and spares recompute of backward ones, so columns stay that no other equals in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.clocks import FULL
from cost_models.critical_paths import Path
from cost_models.offload import LAYERS_DIFFER_IN
from planner.search.deadline import look

Ints = NDArray[np.int64]
NEVER = np.iinfo(np.int64).max
CELLS_AT_ONCE = 2**16
"""Numbers of layers of segments that are looked at together, at most."""


@dataclass(frozen=True)
class Columns:
    """``[columns]`` arrays: layers, ticks of one micro-batch, exposed ticks at the end of the step, clock.

    ``weights`` is the part of ``backward`` that the schedule splits off; 0 where it splits nothing. The first ``out``
    layers offload all states that the row does; these are all of them where layers are alike. The last ``kept`` keep
    activations that the row lets go. The first ``skipped`` recompute nothing, as theirs are not on the device.
    """

    stage: Ints
    i: Ints
    j: Ints
    full: Ints
    selective: Ints
    forward: Ints
    backward: Ints
    tail: Ints
    clock: NDArray[np.float64]
    weights: Ints
    out: Ints
    kept: Ints
    skipped: Ints

    def __len__(self) -> int:
        return len(self.stage)

    def take(self, index: NDArray) -> Columns:
        """Some columns."""
        return Columns(*(getattr(self, name)[index] for name in Columns.__dataclass_fields__))

    def along(self, path: Path) -> Ints:
        """Ticks that each column adds to a path, hops left aside."""
        s, late = self.stage, 0 if path.weights is None else self.weights
        ticks = path.forward[s] * self.forward + path.backward[s] * (self.backward - late)
        ticks = ticks if path.weights is None else ticks + path.weights[s] * late
        return ticks + np.where(s == path.device, self.tail, 0)

    def runs(self, at: int) -> list[tuple[str, int, int]]:
        """A column's runs of layers as ``(recompute, i, j)``, empty runs left out."""
        counts = (self.skipped, self.full, self.selective, self.j - self.i - self.skipped - self.full - self.selective)
        kinds, ends = ("none", "full", "selective", "none"), np.cumsum([int(count[at]) for count in counts])
        runs = [(k, x, y) for k, x, y in zip(kinds, [0, *ends[:-1]], ends, strict=True) if y > x]
        return [(kind, int(self.i[at] + x), int(self.i[at] + y)) for kind, x, y in joined(runs)]

    def quickest(self, rounds: int) -> Columns:
        """The column of every stage whose device is done first after so many micro-batches."""
        order = np.lexsort((rounds * (self.forward + self.backward) + self.tail, self.stage))
        _, first = np.unique(self.stage[order], return_index=True)
        return self.take(order[first])

    def leaving(self, picked: list[int] | NDArray) -> tuple[tuple[int, int], ...]:
        """Of the picked columns the layers that the last class of states leaves and those that activations leave.

        Nothing where these are all of them.
        """
        out, n, kept = self.out[picked], (self.j - self.i)[picked], self.kept[picked]
        return () if (out == n).all() and not kept.any() else tuple(zip(out.tolist(), (n - kept).tolist(), strict=True))

    @staticmethod
    def concat(parts: list[Columns]) -> Columns:
        """One table of several."""
        return Columns(*(np.concatenate([getattr(p, n) for p in parts]) for n in Columns.__dataclass_fields__))


def joined(runs: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Runs of layers with neighbours of one kind as one."""
    found: list[tuple[str, int, int]] = []
    for kind, i, j in runs:
        if found and found[-1][0] == kind:
            i = found.pop()[1]
        found.append((kind, i, j))
    return found


@dataclass(frozen=True)
class Segments:
    """Layers ``i`` to ``j - 1`` of stages; those from ``x`` on keep one class of states more, from ``y`` activations.

    ``begin`` is where recompute may begin.
    """

    stage: Ints
    i: Ints
    j: Ints
    x: Ints
    y: Ints
    begin: Ints

    @staticmethod
    def alike(stage: Ints, i: Ints, j: Ints, x: Ints | None = None) -> Segments:
        """Segments all of whose activations do as their row says."""
        return Segments(stage, i, j, j if x is None else x, j, i)

    def take(self, index: NDArray) -> Segments:
        """Some segments."""
        return Segments(*(getattr(self, name)[index] for name in Segments.__dataclass_fields__))


def stage_columns(
    chain: Chain, stage: Ints, i: Ints, j: Ints, limit_bytes: int, pinned: str | None = None, *, joules: bool = False
) -> Columns:
    """The columns for segments ``i``, ``j`` of stages ``stage``, those that fit no way left out.

    One a segment and number of layers that offload more, the quickest; with ``joules`` every one that no other equals
    in time and joules, at every clock.
    """
    look()
    if not joules:
        return _of_clock(chain, FULL, stage, i, j, limit_bytes, pinned, joules=joules)
    parts = [_of_clock(chain, clock, stage, i, j, limit_bytes, pinned, joules=True) for clock in chain.clocks]
    every = Columns.concat(parts)
    return every if len(parts) == 1 and chain.kept is None else _undominated(chain, every)


def _of_clock(
    chain: Chain, clock: float, stage: Ints, i: Ints, j: Ints, limit_bytes: int, pinned: str | None, *, joules: bool
) -> Columns:  # fmt: skip
    chain = chain.at(clock)
    it = Segments.alike(stage, i, j) if chain.nearer is None else _every_out(chain, stage, i, j, limit_bytes, pinned)
    if chain.kept is not None:
        it = _every_kept(chain, it, limit_bytes, pinned, cheapest=not joules and not chain.pools)
    if joules and pinned is None:
        allowed = _allowed(chain, it, limit_bytes)
        full, selective, ok = least_recompute(chain.kept or chain, it.begin, it.j, allowed, pinned)
        ok &= chain.tiers_hold(it.i, it.j, chain.flight(it.stage), it.x, it.y)
        at, full, selective = _trade_offs(chain.kept or chain, it.begin, it.j, allowed, full, selective, ok)
        return _priced(chain, clock, it.take(at), full, selective)
    found, ok = quickest_columns(chain, clock, it, limit_bytes, pinned)
    found = found.take(ok)
    if chain.kept is not None:
        return found if joules or chain.pools else _shorter_one_way(found)
    if chain.nearer is None or joules:
        return found
    if _costs_more(chain):
        return _worth_more(found)
    return found if chain.pools else _quickest_out(found)


def quickest_columns(
    chain: Chain, clock: float, it: Segments, limit_bytes: int, pinned: str | None
) -> tuple[Columns, NDArray[np.bool_]]:
    """The column of every segment with the least recompute that fits, and which of them do fit."""
    allowed = _allowed(chain, it, limit_bytes)
    keeping, begin = chain.kept or chain, it.begin if pinned is None or chain.kept is None else it.y
    full, selective, ok = least_recompute(keeping, begin, it.j, allowed, pinned)
    if pinned is not None:
        full, selective = (np.where(pinned == kind, it.j - it.i, 0) for kind in ("full", "selective"))
    ok &= chain.tiers_hold(it.i, it.j, chain.flight(it.stage), it.x, it.y)
    return _priced(chain, clock, it, full, selective), ok


def _allowed(chain: Chain, it: Segments, limit_bytes: int) -> Ints:
    """Bytes a micro-batch that layers may keep for backward."""
    flight = chain.flight(it.stage)
    held = chain.state_bytes(it.i, it.j, it.x) + chain.logit_bytes(it.i, it.j) + flight * chain.saved_ends(it.i, it.j)
    return (limit_bytes - chain.fixed_bytes - held) // flight


def _every_out(chain: Chain, stage: Ints, i: Ints, j: Ints, limit_bytes: int, pinned: str | None) -> Segments:
    """Segments with every layer ``x`` from which on they may keep one class more on the device, each in its order.

    Those that fit in no way are left out; where one more out never gains anything but room, so are more than it takes
    to recompute nothing, and to keep all activations.
    """
    at, first, within = _counted(j - i + 1)
    it = Segments.alike(stage[at], i[at], j[at], i[at] + within)
    allowed, keeping = _allowed(chain, it, limit_bytes), chain.kept or chain
    free = keeping.saved(pinned or "none", it.i, it.j) <= allowed
    keep = free | (chain.saved(pinned or "full", it.i, it.j) <= allowed)
    if _costs_more(chain):
        before = np.cumsum(free) - free
        keep &= before == before[first]
    return it.take(keep)


def _every_kept(chain: Chain, it: Segments, limit_bytes: int, pinned: str | None, *, cheapest: bool) -> Segments:
    """Segments with every layer ``y`` from which on they may keep activations, each in its order.

    Of those that need nothing recomputed only the first stays. Where the ``cheapest`` are asked for, so does, of those
    with passes that traffic makes no longer, only the last for which tiers have room.
    """
    allowed, kept = _allowed(chain, it, limit_bytes), chain.kept
    at, first, within = _counted(it.j - it.i + 1)
    it, allowed = it.take(at), allowed[at]
    begin = it.i if pinned is not None else it.i + within
    it = Segments(it.stage, it.i, it.j, it.x, it.i + within, begin)
    free = kept.saved(pinned or "none", it.y, it.j) <= allowed
    keep = free | (kept.saved(pinned or "full", it.y, it.j) <= allowed)
    before = np.cumsum(free) - free
    keep &= before == before[first]
    if cheapest:
        held = keep & chain.tiers_hold(it.i, it.j, chain.flight(it.stage), it.x, it.y)
        forward, backward = chain.forward(it.i, it.j, it.x, it.y), chain.backward(it.i, it.j, it.x, it.y)
        same = (at[1:] == at[:-1]) & (forward[1:] == forward[:-1]) & (backward[1:] == backward[:-1]) & held[1:]
        keep[:-1] &= ~same
    return it.take(keep)


def _counted(n: Ints) -> tuple[Ints, Ints, Ints]:
    """For ``n[k]`` entries of every ``k``: ``k``, the position of its first entry, and the entry's place in it."""
    at, first = np.repeat(np.arange(len(n)), n), np.repeat(np.cumsum(n) - n, n)
    return at, first, np.arange(len(at)) - first


def _shorter_one_way(columns: Columns) -> Columns:
    """Of columns that keep ever fewer activations, those that no other of the same states equals in both passes."""
    group = np.unique(np.stack([columns.stage, columns.i, columns.j, columns.out]), axis=1, return_inverse=True)[1]
    order = np.lexsort((columns.backward, columns.forward, group.ravel()))
    place = np.unique(columns.backward[order], return_inverse=True)[1].ravel()
    # Later groups begin below all of the ones before, so that the least so far is that of a column's own group.
    least = np.minimum.accumulate(below := place - group.ravel()[order] * (len(order) + 1))
    return columns.take(np.sort(order[np.append(True, below[1:] < least[:-1])[: len(order)]]))


def _costs_more(chain: Chain) -> bool:
    """Whether a layer that lets more of its states go is never quicker, spends no fewer joules and no tier's room."""
    one, other, row = chain.prices, chain.prices.nearer, chain.row
    tables = [(getattr(one, name), getattr(other, name)) for name in LAYERS_DIFFER_IN]
    tables += [(one.tier_states[name], other.tier_states[name]) for name in one.tier_states]
    return all((a[row] >= b[row]).all() for a, b in tables)


def _worth_more(columns: Columns) -> Columns:
    """Of each segment's columns, in the order of ``out``, those that are quicker back than the one before."""
    segment = np.stack([columns.stage, columns.i, columns.j])
    same = (segment[:, 1:] == segment[:, :-1]).all(axis=0)
    slower = same & (columns.backward[1:] >= columns.backward[:-1])
    return columns.take(np.flatnonzero(np.append(True, ~slower)[: len(columns)]))


def _quickest_out(columns: Columns) -> Columns:
    """Those of each segment that none with another ``out`` equals in forward, backward and tail; of equals the least.

    Each fits by itself, so where no ranks share a tier's room nothing else tells them apart.
    """
    _, segment = np.unique(np.stack([columns.stage, columns.i, columns.j]), axis=1, return_inverse=True)
    ties = (columns.tail, columns.full, columns.selective, columns.out)
    return columns.take(_unbeaten(segment.ravel(), [columns.forward, columns.backward, columns.tail], *ties))


def _unbeaten(segment: Ints, costs: list[NDArray], *ties: NDArray) -> Ints:
    """Positions that no other of their segment equals in all costs, the first two of which are ticks; ascending.

    Of those alike in the sum of these the first by ``ties`` may stand for others.
    """
    order = np.lexsort((*ties[::-1], costs[0] + costs[1], segment))
    begins = np.flatnonzero(np.diff(segment[order], prepend=-1))
    sizes = np.diff(np.append(begins, len(order)))
    keep = np.ones(len(order), dtype=bool)
    for back in range(1, int(sizes.max(initial=1))):
        here = np.flatnonzero(np.arange(len(order)) - np.repeat(begins, sizes) >= back)
        one, other = order[here], order[here - back]
        keep[here] &= ~np.logical_and.reduce([cost[other] <= cost[one] for cost in costs])
    return np.sort(order[keep])


def _priced(chain: Chain, clock: float, it: Segments, full: Ints, selective: Ints) -> Columns:
    stage, i, j, x, y = it.stage, it.i, it.j, it.x, it.y
    a, b = it.begin + full, it.begin + full + selective
    forward = chain.forward(i, j, x, y)
    again = chain.recompute("full", it.begin, a) + chain.recompute("selective", a, b)
    backward = chain.backward(i, j, x, y) + again
    weights = chain.weights(i, j)
    tail = chain.tail(chain.tail_parts(i, j, x), forward, backward if weights is None else weights)
    late = np.zeros_like(forward) if weights is None else weights
    every, kept = np.full(len(stage), clock), (j - y if chain.kept is not None else np.zeros_like(i))
    return Columns(stage, i, j, full, selective, forward, backward, tail, every, late, x - i, kept, it.begin - i)


def column_joules(chain: Chain, columns: Columns) -> NDArray[np.float64]:
    """Dynamic joules a step of each column on one device."""
    found = np.zeros(len(columns))
    for clock in np.unique(columns.clock).tolist():
        mine, at = np.flatnonzero(columns.clock == clock), chain.at(clock)
        at, i, j, x = at.of(mine), columns.i[mine], columns.j[mine], (columns.i + columns.out)[mine]
        prices, begin = at.prices, i + columns.skipped[mine]
        a, b = begin + columns.full[mine], begin + columns.full[mine] + columns.selective[mine]
        passes = at.joules_pass(i, j, x, j - columns.kept[mine])
        passes = passes + at.total(prices.joules_extra["full"], begin, a, ends=False)
        passes = passes + at.total(prices.joules_extra["selective"], a, b, ends=False)
        found[mine] = at.micro_batches * passes + at.joules_step(i, j, x)
    return found


def _undominated(chain: Chain, columns: Columns) -> Columns:
    """Those of each segment and ``out`` that no other equals in forward, backward and joules; of equals the first.

    Where ranks share pools, so of each number of layers that keep activations.

    A longer tail does not count: a pass that is shorter hides at most what it is shorter by.
    """
    spent = column_joules(chain, columns)
    kept = columns.kept if chain.pools else np.zeros_like(columns.kept)
    alike = np.stack([columns.stage, columns.i, columns.j, columns.out, kept])
    segment = np.unique(alike, axis=1, return_inverse=True)[1]
    return columns.take(_unbeaten(segment.ravel(), [columns.forward, columns.backward, spent], spent))


def least_recompute(
    chain: Chain, i: Ints, j: Ints, allowed: Ints, pinned: str | None = None
) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """The quickest (full, selective) counts whose saved bytes stay within ``allowed``; and whether there are any."""
    zero, n = np.zeros_like(i), j - i
    if pinned is not None:
        fits = chain.saved(pinned, i, j) <= allowed
        return np.where(pinned == "full", n, zero), np.where(pinned == "selective", n, zero), fits
    full, selective = zero.copy(), zero.copy()
    free = chain.saved("none", i, j) <= allowed
    ok = free | (chain.saved("full", i, j) <= allowed)
    for tight in _parts(np.flatnonzero(ok & ~free), n):
        full[tight], selective[tight] = _scan(chain.of(tight), i[tight], j[tight], allowed[tight])
    return full, selective, ok


def _parts(segments: Ints, n: Ints) -> list[Ints]:
    """Segments of about as many layers each, so many at once that tables of all their numbers of layers stay small."""
    segments = segments[np.argsort(n[segments], kind="stable")]
    size = n[segments] + 1
    part = np.cumsum(size) // CELLS_AT_ONCE + (np.frexp(size)[1] << 32)
    return np.split(segments, np.flatnonzero(np.diff(part)) + 1) if len(segments) else []


def _scan(chain: Chain, i: Ints, j: Ints, allowed: Ints) -> tuple[Ints, Ints]:
    """Of the pairs of :func:`_fewest` the quickest."""
    a, b, time = _fewest(chain, i, j, allowed)
    best = np.argmin(time, axis=1)
    at = np.arange(len(i))
    return a[at, best] - i, b[at, best] - a[at, best]


def _fewest(chain: Chain, i: Ints, j: Ints, allowed: Ints) -> tuple[Ints, Ints, Ints]:
    """For every count of full layers the fewest selective ones that fit: where both end, and their ticks."""
    chain, i, j, allowed = chain.of(np.s_[:, None]), i[:, None], j[:, None], allowed[:, None]
    k = np.arange(int((j - i).max()) + 1)[None, :]
    a = np.minimum(i + k, j)
    over = chain.saved("full", i, a) + chain.saved("none", a, j) - allowed
    b = np.maximum(chain.reach("none", "selective", a, np.maximum(over, 0)), a)
    time = chain.recompute("full", i, a) + chain.recompute("selective", a, np.minimum(b, j))
    legal = (b <= j) & (i + k <= j)
    return a, np.minimum(b, j), np.where(legal, time, NEVER)


def _trade_offs(
    chain: Chain, i: Ints, j: Ints, allowed: Ints, full: Ints, selective: Ints, ok: NDArray[np.bool_]
) -> tuple[Ints, Ints, Ints]:
    """Segments, by position, with every pair that no quicker one equals in joules; given the quickest pair."""
    tight = np.flatnonzero(ok & (full + selective > 0))
    rest = np.flatnonzero(ok & (full + selective == 0))
    if not tight.size:
        return rest, full[rest], selective[rest]
    a, b, time = _fewest(chain, i[tight], j[tight], allowed[tight])
    extra = chain.prices.joules_extra
    spent = chain.total(extra["full"], i[tight, None], a, ends=False)
    spent = np.where(time < NEVER, spent + chain.total(extra["selective"], a, b, ends=False), np.inf)
    order = np.lexsort((spent, time), axis=1)
    spent, a, b = (np.take_along_axis(values, order, axis=1) for values in (spent, a, b))
    quicker = np.minimum.accumulate(spent, axis=1)[:, :-1]
    row, at = np.nonzero(spent < np.concatenate([np.full((len(spent), 1), np.inf), quicker], axis=1))
    where = tight[row]
    return (
        np.concatenate([rest, where]),
        np.concatenate([full[rest], a[row, at] - i[where]]),
        np.concatenate([selective[rest], b[row, at] - a[row, at]]),
    )
