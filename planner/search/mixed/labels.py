"""Partial pipelines from the last stage on, as labels: what they hold, what they use, what they cost so far.

A label is ``i`` (layers ``i..L`` are placed), devices used of every part, the slot and the layers of its front stage,
which tell that one's tail, and its costs:

    A   work and twice the hops of its stages
    M   the most that a path adds, of :mod:`planner.search.mixed.paths` and m t_d - A_d, all micro-batches at one stage
    R   work and twice the inner hops of the front ``l`` stages, the ring of such a path
    D   of every detour (:mod:`planner.search.mixed.detours`) what it adds so far, which is a part of M
    J   ticks that joules of its stages count for, where they do (:mod:`planner.search.mixed.weighing`)
    W   the most that a stage waits for its watts by itself, or the ``least`` that all pipelines are known to last, and
        what several wait for together, line by line

Closed at the first layer, ``A + M + tail_1`` bounds the step, and so does W. Of labels alike but for A, M, R (of equal
``l``), D, J and W that go on only those stay that no other matches in all: the paths that they know are no longer in a
completion of the one than in that of the other. ``A + J`` will not do for J, for a path that waits at a later stage has
nothing of A. Where more than ``width`` would stay, D does not tell labels apart, and if that is not enough R, J and W
do not: one stands for all, with the least D, R, J and W of any. A label is bounded by the relaxation of what is ahead,
weighted with what it has behind, and dropped when that reaches the incumbent. When there are more labels than
``width`` the worst wait outside and the least of their bounds is reported: a beam with a bound.
"""

from __future__ import annotations

import dataclasses
import itertools
import time

import numpy as np
from numpy.typing import NDArray

from planner.search.deadline import look
from planner.search.mixed.detours import Detour
from planner.search.mixed.label_table import Found, Labels
from planner.search.mixed.packed import Packed
from planner.search.mixed.paths import ROUNDING, joined, once_more, round_and_round
from planner.search.mixed.pipelines import Chosen
from planner.search.mixed.relaxation import Relaxation
from planner.search.mixed.stages import Way
from planner.search.mixed.table import NEVER

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
PAIRS_AT_ONCE = 400_000
LOOK_BACK = 24
KEY_LIMIT = 2**62
DETOUR_STEPS = 8


class LabelSearch:
    """All pipelines of some stages whose bound stays below an incumbent; ``relaxations`` are of the same stages.

    With a band only those are asked for whose ``M`` lies in ``floor`` to ``cap``. ``others`` are relaxations, of these
    stages and maybe more, of what has a limit beside what is minimised.
    """

    def __init__(
        self, relaxations: list[Relaxation], incumbent: float, floor: float = 0.0, cap: float = np.inf,
        counted: Packed | None = None, detours: tuple[Detour, ...] = (), others: list[Relaxation] | None = None,
    ) -> None:  # fmt: skip
        self.relaxations, self.incumbent, self.floor, self.cap = relaxations, incumbent, floor, cap
        self.others, self.counted, self.least = _with_prices(others or []), counted, 0.0
        self.weighing = relaxations[0].stages.slots.weighing
        self.devices, self.layers, self.m = relaxations[0].devices, relaxations[0].layers, relaxations[0].m
        self.table, self.slots = relaxations[0].stages.table, relaxations[0].stages.slots
        self.sides = tuple(
            np.array([side[m].min() for m in self.slots.members]) for side in (self.table.same, self.table.across)
        )
        self.alive = self._alive()
        self._leave(self.alive)
        self.know(incumbent, detours)
        left = np.unique(self.stages.slot)
        self.longest = 2.0 * max(float(side[left].max(initial=0.0)) for side in self.sides)

    def _alive(self) -> NDArray[np.bool_]:
        """Stages that the reduced costs leave; ``spare`` is what the time of each could be longer, ``[stages]``."""
        self.stages = self.relaxations[0].stages
        rooms = [self.incumbent - it.through() * (1 - 1e-12) for it in self.relaxations]
        spare = [room / np.maximum(it.weight, 1e-9) for room, it in zip(rooms, self.relaxations, strict=True)]
        if self.cap < np.inf:
            spare.append(self._spare_below(np.minimum(self.cap, self.floor + rooms[0])))
        self.spare = np.min(spare, axis=0)
        return self.spare > 0

    def know(self, incumbent: float, detours: tuple[Detour, ...]) -> None:
        """Goes on with a lower incumbent and other detours. Those that no pipeline is less deep than bound stages and
        labels too."""
        self.incumbent, self.detours, depths = incumbent, detours, np.arange(1, len(self.starts) + 1)
        self.again = np.array([it.again_at(depths) for it in detours]).reshape(-1, len(depths))
        self.crossed = np.array([it.hops_at(depths) for it in detours]).reshape(-1, len(depths))
        self.deepest = np.array([it.deepest for it in detours], dtype=np.int64)
        shortest = int(self.stages.depth[self.stages.i == 0].min(initial=len(depths)))
        bounds = [self._detoured(it) for it in detours if it.deepest <= shortest and len(self.stages)]
        for relaxed in bounds:
            room = incumbent - relaxed.through() * (1 - 1e-12)
            self.spare = np.minimum(self.spare, room / np.maximum(relaxed.weight, 1e-9))
        each = [*self.relaxations, *bounds]
        self.priced = _with_prices(each)
        self._leave(self.spare > 0)

    def _detoured(self, detour: Detour) -> Relaxation:
        """The bound that a detour is, priced."""
        relaxed = Relaxation(self.stages, self.devices, "detour", detour=detour)
        relaxed.bound(self.relaxations[0].mus[0], self.incumbent, DETOUR_STEPS)
        return relaxed

    def _spare_below(self, most: Floats) -> Floats:
        """What the time of each stage could be longer for ``M`` not to pass ``most``, with fewer stages than ``m``."""
        stages = self.stages
        before = self.relaxations[0].behind(stages.time + stages.hop)[stages.depth - 1, stages.j] + stages.hop
        return (most - before * (1 - 1e-12)) / (self.m - stages.depth) - stages.time

    def _leave(self, keep: NDArray[np.bool_]) -> None:
        """Leaves some of the stages; ``starts`` says by depth where those of each boundary begin."""
        self.stages, self.spare = self.stages.take(keep), self.spare[keep]
        boundary, first = np.arange(self.layers + 2), self.stages.first
        self.starts = [a + np.searchsorted(self.stages.j[a:b], boundary) for a, b in itertools.pairwise(first)]

    @property
    def literals(self) -> int:
        """Stages left by the reduced costs."""
        return len(self.stages)

    def run(self, width: int, deadline: float = np.inf) -> Found:
        """Search with at most ``width`` labels a depth, until a ``time.monotonic()`` moment."""
        found, front, self.width, self.merged = Found(), self._root(), width, False
        self.met = np.zeros(len(self.stages), dtype=bool)
        history: list[NDArray[np.int32]] = []
        for depth in range(1, len(self.starts) + 1):
            if time.monotonic() > deadline:
                found.bound, found.dropped = min(found.bound, float(front.bound.min(initial=np.inf))), True
                break
            grown = self._extended(front, depth)
            history.append(grown.trace)
            done = np.flatnonzero(grown.i == 0)
            for k in done[np.argsort(grown.bound[done], kind="stable")][:32].tolist():
                found.closed.append((float(grown.bound[k]), *self._stages(history, k)))
            if len(done):
                found.bound = min(found.bound, float(grown.bound[done].min()))
            front = grown = self._narrowed(grown, width, found)
            history[-1] = front.trace
            found.labels += len(front)
            if not (front.i > 0).any():
                break
        found.merged = self.merged
        return found

    def restrict(self) -> None:
        """Leaves only stages that the last run met in a label below the incumbent; exact when nothing was left out."""
        self._leave(self.met)

    def _narrowed(self, grown: Labels, width: int, found: Found) -> Labels:
        """The open labels, the best ``width`` of them."""
        front = grown.take(grown.i > 0)
        if len(front) > width:
            order = np.argsort(front.bound, kind="stable")
            found.bound = min(found.bound, float(front.bound[order[width]]))
            found.dropped = True
            front = front.take(order[:width])
        return front

    def _root(self) -> Labels:
        zero, none, along = np.zeros(1), np.full(1, -1, dtype=np.int64), np.zeros((1, len(self.detours)))
        used = np.zeros((1, len(self.devices)), dtype=np.int64)
        first = np.array([self.layers])
        lasts = zero, zero + self.least, np.zeros((1, self.relaxations[0].load.shape[1]))
        return Labels(first, used, none, zero, zero, zero, zero, none + 1, zero, none, none, along, *lasts, none)

    def _stages(self, history: list[NDArray[np.int32]], k: int) -> tuple[Chosen, tuple[Way, ...]]:
        """``(slot, i, j)`` of a closed label's stages, first stage first; how each is run, where joules count."""
        found, run = [], []
        for trace in reversed(history):
            row, k = trace[:, k].tolist()
            found.append(tuple(int(it[row]) for it in (self.stages.slot, self.stages.i, self.stages.j)))
            if self.weighing.counts:
                run.append((int(self.stages.way[row]), int(self.stages.recompute[row])))
        return found, tuple(run)

    def _extended(self, front: Labels, depth: int) -> Labels:
        """Every label with one more stage, those that cannot win dropped."""
        start, self.depth = self.starts[depth - 1], depth
        count = start[front.i + 1] - start[front.i]
        ends = np.cumsum(count)
        parts, at = [], 0
        while at < len(front):
            look()
            before = ends[at - 1] if at else 0
            upto = max(at + 1, int(np.searchsorted(ends, before + PAIRS_AT_ONCE, side="right")))
            parts.append(self._pairs(front, np.arange(at, upto), count, depth))
            at = upto
        if not parts:
            return front.take(np.zeros(0, dtype=np.int64))
        grown = Labels.concat(parts)
        closed = grown.i == 0  # differ in their tails too
        return Labels.concat([grown.take(closed), self._undominated(grown.take(~closed))])

    def _pairs(self, front: Labels, rows: Ints, count: Ints, depth: int) -> Labels:
        parent = np.repeat(rows, count[rows])
        first = np.repeat(np.cumsum(count[rows]) - count[rows], count[rows])
        pick = self.starts[depth - 1][front.i[parent]] + np.arange(len(parent)) - first
        slot = self.stages.slot[pick]
        part, size = self.slots.part[slot], self.slots.size[slot]
        fits = front.used[parent, part] + size <= self.devices[part]
        parent, pick, part, size = parent[fits], pick[fits], part[fits], size[fits]
        used = front.used[parent]
        used[np.arange(len(parent)), part] += size
        return self._priced(front, parent, pick, used, depth)

    def _priced(self, front: Labels, parent: Ints, pick: Ints, used: Ints, depth: int) -> Labels:
        slot, i, time = self.stages.slot[pick], self.stages.i[pick], self.stages.time[pick]
        hop = 0.0 if depth == 1 else 2.0 * self._hop(front.slot[parent], slot)
        work = front.work[parent] + time + hop
        most = np.maximum(front.most[parent], self._least_added(work, time))
        most = np.maximum(most, once_more(self.m, depth, work, time, self.longest))
        period = (most - work) / max(1, self.m - 1 - depth)
        ring, length = joined(front.ring[parent], front.length[parent], time, hop, period)
        most = np.maximum(most, round_and_round(self.m, depth, work, time, hop, ring, length, self.longest))
        along = front.along[parent] + np.outer(time, self.again[:, depth - 1])
        along += np.outer(hop * np.ones(len(time)), self.crossed[:, depth - 1])
        most = np.maximum(most, along.max(axis=1, initial=0.0))
        spent = front.spent[parent] + (self.stages.spent[pick] if self.weighing.counts else 0.0)
        wait, load, idle = front.wait[parent], front.load[parent], self.devices - used
        if self.weighing.waits:
            wait, load = np.maximum(wait, self.stages.wait[pick]), load + self.stages.load[pick]
            idle = np.hstack([idle, self.weighing.most_ticks(self.incumbent) - load])
        lasts = np.maximum(wait, (load + self.relaxations[0].waits_to_go[:, depth, i].T).max(axis=1, initial=0.0))
        bound = self._bound(i, idle, work, most, along, spent, depth) + self.stages.tail[pick]
        bound = np.maximum(bound, lasts + self._minimised(spent))
        if self.weighing.limits:
            bound[self._above(i, idle, work, most, along, spent, depth, pick, lasts)] = np.inf
        closed = np.flatnonzero((i == 0) & (bound < self.incumbent)) if depth > 1 else ()
        if len(closed):
            added = self._added_at_last(front, parent[closed], pick[closed], hop[closed], depth)
            added = (work[closed] + added) * (1 - ROUNDING) + self._minimised(spent[closed])
            bound[closed] = np.maximum(bound[closed], added)
        good = (bound < self.incumbent) & (most <= self.cap)
        self.met[pick[good]] = True
        n = self.stages.n[pick]
        fields = (i, used, slot, work, most, time, ring, length, bound, parent, n, along, spent, wait, load, pick)
        return Labels(*(values[good] for values in fields))

    def _added_at_last(self, front: Labels, parent: Ints, pick: Ints, hop: Floats, depth: int) -> Floats:
        """What a path adds to all work and ends with the first stage's tail, or with the second's but without the
        first one's last backward. The second stage runs a way with a short tail or a quick one."""
        index, n, stages = self.table.segments.index, front.n[parent], self.stages
        slot, i = front.slot[parent], front.i[parent]
        longer, tail = self._ends(slot, index[i, i + n], depth - 1)
        keys, at = np.unique(np.stack([stages.slot[pick], index[0, i]]), axis=1, return_inverse=True)
        forward = np.array([self.slots.forward(*key) for key in keys.T.tolist()], dtype=np.float64)[at.ravel()]
        last = np.maximum(stages.tail[pick], tail + forward - stages.time[pick] - hop / 2)
        once = once_more(self.m, depth - 1, front.work[parent] + longer, front.time[parent] + longer, self.longest)
        return (longer + np.maximum(front.most[parent], once) + last).min(axis=0)

    def _ends(self, slot: Ints, segment: Ints, depth: int) -> tuple[Floats, Floats]:
        """By way to run a stage how much longer than the quickest it takes, and its tail, ``[ways, stages]``.

        Where joules count labels do not all have the quickest way, and one may stand for another: no longer at all.
        """
        keys, at = np.unique(np.stack([slot, segment]), axis=1, return_inverse=True)
        flight = int(self.table.flight(depth))
        self.slots.learn(keys[0], np.full(keys.shape[1], flight), keys[1])
        ways = [(s, g, self.slots.ends(s, flight, g)) for s, g in keys.T.tolist()]
        found = np.full((2, max(len(some) for _, _, some in ways), len(ways)), float(NEVER))
        for k, (_, g, some) in enumerate(ways):
            costs = np.array([self.table.one(way, flight, g, recompute)[:3] for way, recompute in some])
            longer = costs[:, 0] + costs[:, 1] - costs[0, 0] - costs[0, 1]
            found[0, : len(some), k] = 0.0 if self.weighing.counts else longer
            found[1, : len(some), k] = costs[:, 2]
        longer, tail = found[:, :, at.ravel()]
        return longer, tail

    def _least_added(self, work: Floats, time: Floats) -> Floats:
        """What a path adds that has all micro-batches at the front stage, or the band's floor.

        Less work makes such a path longer, which what is kept of labels with more of it would not be in a band.
        """
        return np.full(len(work), self.floor) if self.cap < np.inf else np.maximum(0.0, self.m * time - work)

    def _hop(self, one: Ints, other: Ints) -> Floats:
        """Ticks of a hop at least, between slots."""
        same, across = self.sides
        alike = self.slots.part[one] == self.slots.part[other]
        return np.where(alike, np.maximum(same[one], same[other]), np.maximum(across[one], across[other]))

    def _minimised(self, spent: Floats) -> Floats | float:
        """What joules add to what is minimised."""
        return spent if self.weighing.minimised else 0.0

    def _above(
        self, i: Ints, idle: Floats, work: Floats, most: Floats, along: Floats, spent: Floats, depth: int, pick: Ints,
        lasts: Floats,
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Labels no completion of which is below the limit on what is not minimised."""
        joules = 0.0 if self.weighing.minimised else spent
        extra, share = self.stages.tail[pick] + joules, i / self.layers
        least = np.maximum((work + most) * (1 - ROUNDING) + extra, lasts + joules)
        for relaxed, mu, ahead in self.others:
            behind = self._behind(relaxed, share, work, most, along)
            least = np.maximum(least, (behind + ahead[depth][i] - idle @ mu + extra) * (1 - 1e-12))
        return least >= self.weighing.below

    def _bound(
        self, i: Ints, idle: Floats, work: Floats, most: Floats, along: Floats, spent: Floats, depth: int
    ) -> Floats:  # fmt: skip
        """The least value of any completion, ``[labels]``; once it reaches the incumbent no better one is asked for."""
        share, bound = i / self.layers, (work + most) * (1 - ROUNDING)
        bound += self._minimised(spent)
        if self.counted is not None:
            bound += self.counted.at(depth, i, idle)
        open_ones = np.flatnonzero(bound < self.incumbent)
        for relaxed, mu, ahead in self.priced:
            at = open_ones
            behind = self._behind(relaxed, share[at], work[at], most[at], along[at])
            least = behind + ahead[depth][i[at]] - idle[at] @ mu + self._minimised(spent[at])
            bound[at] = np.maximum(bound[at], least * (1 - 1e-12))
            open_ones = at[bound[at] < self.incumbent]
        return bound

    def _behind(self, relaxed: Relaxation, share: Floats, work: Floats, most: Floats, along: Floats) -> Floats:
        """What the stages that are placed have of a relaxation's sum, ``[labels]``."""
        if relaxed.detour is not None:
            return work + along[:, self.detours.index(relaxed.detour)]
        if relaxed.kind == "staying":
            return (1 - share) * (work + most)
        leaning = share * (1.0 if relaxed.kind == "returning" else relaxed.lean)
        return (1 + leaning) * work + (1 - leaning) * most

    def _unequalled(self, labels: Labels, key: Ints) -> Ints:
        """Labels that none of a few before them, alike and with a ring as long, matches in work, most, ring and the
        detours that go on."""
        order = np.lexsort((labels.most, labels.work, labels.length, key))
        group = np.cumsum((np.diff(key[order], prepend=-1) != 0) | (np.diff(labels.length[order], prepend=-1) != 0))
        costs = [labels.most[order], labels.ring[order], *labels.along[order][:, self.deepest > self.depth].T]
        costs += [labels.spent[order]] if self.weighing.counts else []
        costs += [labels.wait[order], *labels.load[order].T] if self.weighing.waits else []
        keep = np.ones(len(order), dtype=bool)
        for back in range(1, min(LOOK_BACK, len(order))):
            worse = group[:-back] == group[back:]
            for cost in costs:
                worse &= cost[:-back] <= cost[back:]
            keep[back:] &= ~worse
        return np.sort(order[keep])

    def _undominated(self, labels: Labels) -> Labels:
        """Labels that no other of the same layers, devices and front stage matches in work, most, ring and detours.

        Where they are too many, detours and then rings are no reason to keep two: the one that stays has the least.
        """
        if not len(labels):
            return labels
        key = (labels.i * len(self.slots.part) + labels.slot) * (self.layers + 1) + labels.n
        for part in range(len(self.devices)):
            if int(key.max()) > KEY_LIMIT // (int(self.devices[part]) + 1):
                key = np.unique(key, return_inverse=True)[1].ravel()
            key = key * (int(self.devices[part]) + 1) + labels.used[:, part]
        alone = self._unequalled(labels, key)
        if len(alone) <= self.width:
            return labels.take(alone)
        self.merged = True
        labels = _with_least_along(labels, key)
        alone = self._unequalled(labels, key)
        if len(alone) <= self.width:
            return labels.take(alone)
        order = np.lexsort((labels.most, labels.work, key))
        key, most = key[order], labels.most[order]
        group = np.concatenate([[0], np.cumsum(key[1:] != key[:-1])])
        rank = np.unique(most, return_inverse=True)[1].ravel() - group * (len(most) + 1)
        least = np.minimum.accumulate(rank)
        kept = np.concatenate([[True], (rank[1:] < least[:-1])])
        return self._merged(labels.take(order), np.flatnonzero(kept))

    def _merged(self, labels: Labels, heads: Ints) -> Labels:
        """The labels at ``heads``, each with a ring that those after it, up to the next, have too, and with the least
        spent and the least bound of these."""
        ring = np.minimum.reduceat(labels.ring, heads)
        alone = np.minimum.reduceat(labels.time, heads)
        alike = np.minimum.reduceat(labels.length, heads) == np.maximum.reduceat(labels.length, heads)
        found = labels.take(heads)
        each = labels.spent, labels.wait, labels.load, labels.bound
        spent, wait, load, bound = (np.minimum.reduceat(it, heads, axis=0) for it in each)
        return dataclasses.replace(
            found, time=alone, ring=np.where(alike, ring, alone), length=np.where(alike, found.length, 1), spent=spent,
            wait=wait, load=load, bound=bound if self.weighing.counts else found.bound,
        )  # fmt: skip


def _with_prices(relaxations: list[Relaxation]) -> list[tuple[Relaxation, Floats, Floats]]:
    """Each with every one of its prices and what these leave ahead."""
    return [(it, it.prices(mu), ahead) for it in relaxations for mu, ahead in zip(it.mus, it.ahead, strict=True)]


def _with_least_along(labels: Labels, key: Ints) -> Labels:
    """The labels, each with the least of every detour that any of the same ``key`` has."""
    group = np.unique(key, return_inverse=True)[1].ravel()
    least = np.full((int(group.max()) + 1, labels.along.shape[1]), np.inf)
    np.minimum.at(least, group, labels.along)
    return dataclasses.replace(labels, along=least[group])
