"""Stages that a pipeline may have, by depth from the end, layers and slot: first as quick as one may be, then as it is.

A slot stands for all ways of one part and size, with the best number of any. A stage takes no less than with nothing
recomputed, whatever its depth, so one small table bounds pipelines of every length
(:mod:`planner.search.mixed.outline`); what memory does to it at its own depth is asked only of those that this leaves.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.search.deadline import look
from planner.search.mixed.table import NEVER, StageTable

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Slots:
    """Ways of one part and size, ``[slots]``; ``hop`` are ticks of a hop at least, ``time`` is the least that every segment
    may take, ``[slots, segments]``."""

    table: StageTable
    part: Ints
    size: Ints
    members: list[Ints]
    hop: Ints
    time: Ints
    picked: dict[tuple[int, int, int, bool], int] = field(default_factory=dict)

    @staticmethod
    def of(table: StageTable) -> Slots:
        """The slots of a table."""
        keys, inverse = np.unique(np.stack([table.part, table.size]), axis=1, return_inverse=True)
        members = [np.flatnonzero(inverse.ravel() == k) for k in range(keys.shape[1])]
        hop, time = np.minimum(table.same, table.across), np.stack([table.base[m].min(axis=0) for m in members])
        return Slots(table, keys[0], keys[1], members, np.array([hop[m].min() for m in members]), time)

    def quickest(self, slot: int, flight: int, segment: int, *, first: bool) -> int:
        """The way that takes a stage least time, with its tail where it is the first one."""
        key = slot, flight, segment, first
        if key not in self.picked:
            members = self.members[slot]
            forward, backward, tail = np.array([self.table.one(int(w), flight, segment)[:3] for w in members]).T
            time = forward + backward + (tail if first else 0)
            self.picked[key] = int(members[np.lexsort((tail, time))[0]])
        return self.picked[key]


def _least(table: StageTable, members: Ints, flight: Ints, segment: Ints, most: Floats | Ints) -> tuple[Ints, Ints]:
    """The least time and, of first stages, the least tail of any of some ways that take ``most`` or less.

    Flights, then segments ascend. A way is priced only where it takes less than those before, with nothing recomputed.
    """
    look()
    time, tail = np.full(len(segment), NEVER), np.full(len(segment), NEVER)
    first = table.segments.i[segment] == 0
    for way in members[np.argsort(np.median(table.base[members], axis=1), kind="stable")].tolist():
        base = table.base[way, segment]
        asked = np.flatnonzero((base <= most) & ((base < time) | first))
        if len(asked):
            at, found = table.columns(way, flight[asked], segment[asked])
            at = asked[at]
            time[at] = np.minimum(time[at], found.forward + found.backward)
            tail[at] = np.minimum(tail[at], found.tail)
    return time, np.where(first, tail, 0)


@dataclass(frozen=True)
class Stages:
    """Stages that a pipeline may have, ``[stages]``, sorted by depth and by the boundary ``j`` where they end.

    ``hop`` are twice the ticks of one; ``tail`` is 0 but for first stages. Those of depth ``d`` lie between
    ``first[d - 1]`` and ``first[d]``.
    """

    table: StageTable
    slots: Slots
    depth: Ints
    j: Ints
    n: Ints
    slot: Ints
    time: Floats
    hop: Floats
    tail: Floats

    @staticmethod
    def quick(slots: Slots, least: int, deepest: int) -> Stages:
        """Every stage of a pipeline of ``least`` to ``deepest`` stages, as quick as with nothing recomputed.

        Tails, which recompute may shorten, are left out.
        """
        n, j = (a.ravel() for a in np.meshgrid(*_lengths(slots.table), indexing="ij"))
        inside = j >= n
        n, j = n[inside], j[inside]
        order = np.argsort(j, kind="stable")
        n, j = n[order], j[order]
        parts = [_of_depth(slots, depth, n, j, least) for depth in range(1, deepest + 1)]
        return Stages(slots.table, slots, *(np.concatenate(fields) for fields in zip(*parts, strict=True)))

    def __len__(self) -> int:
        return len(self.depth)

    @cached_property
    def i(self) -> Ints:
        """Boundaries where they begin."""
        return self.j - self.n

    @cached_property
    def deepest(self) -> int:
        """The largest depth."""
        return int(self.depth.max(initial=1))

    @cached_property
    def first(self) -> list[int]:
        """Where each depth begins."""
        return np.searchsorted(self.depth, np.arange(1, self.deepest + 2)).tolist()

    @cached_property
    def ends(self) -> list[tuple[Ints, Ints]]:
        """By depth the boundaries at which stages end and where, from the depth's first on, those of each begin."""
        return [np.unique(self.j[a:b], return_index=True) for a, b in itertools.pairwise(self.first)]

    def take(self, keep: NDArray) -> Stages:
        """Some stages."""
        names = ("depth", "j", "n", "slot", "time", "hop", "tail")
        return Stages(self.table, self.slots, *(getattr(self, name)[keep] for name in names))

    def of_length(self, length: int) -> Stages:
        """Those of pipelines of exactly ``length`` stages."""
        return self.take((self.depth <= length) & ((self.i == 0) == (self.depth == length)))

    def exact(self, most: Floats) -> Stages:
        """With what each takes at its own depth, tails too; those that do not fit, or take more than ``most``, go."""
        table, segments = self.table, len(self.table.segments.i)
        flight, segment = table.flight(self.depth), table.segments.index[self.i, self.j]
        keys, inverse = np.unique((self.slot * (table.flights + 1) + flight) * segments + segment, return_inverse=True)
        limit = np.zeros(len(keys))
        np.maximum.at(limit, inverse, most)
        slot, flight, segment = keys // segments // (table.flights + 1), keys // segments, keys % segments
        bounds = np.searchsorted(slot, np.arange(len(self.slots.part) + 1))
        parts = [
            _least(table, members, flight[a:b] % (table.flights + 1), segment[a:b], limit[a:b])
            for members, (a, b) in zip(self.slots.members, itertools.pairwise(bounds), strict=True)
        ]
        time, tail = (np.concatenate(values)[inverse].astype(np.float64) for values in zip(*parts, strict=True))
        found = Stages(self.table, self.slots, self.depth, self.j, self.n, self.slot, time, self.hop, tail)
        return found.take((time <= most) & (time < NEVER))


def _lengths(table: StageTable) -> tuple[Ints, Ints]:
    longest = int((table.segments.j - table.segments.i).max())
    return np.arange(1, longest + 1), np.arange(1, table.layers + 1)


def _of_depth(slots: Slots, depth: int, n: Ints, j: Ints, least: int) -> tuple[NDArray, ...]:
    """The fields of one depth's stages."""
    table = slots.table
    segment, i = table.segments.index[j - n, j], j - n
    legal = (segment >= 0) & ((j == table.layers) == (depth == 1)) & ((i > 0) | (depth >= least))
    legal &= j <= table.layers - depth + 1
    n, j, segment = n[legal], j[legal], segment[legal]
    at, slot = np.nonzero(slots.time[:, segment].T < NEVER)
    time = slots.time[slot, segment[at]].astype(np.float64)
    hop = 2.0 * slots.hop[slot] if depth > 1 else np.zeros(len(slot))
    return np.full(len(at), depth), j[at], n[at], slot, time, hop, np.zeros(len(at))
