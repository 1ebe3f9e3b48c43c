"""Stages that a pipeline may have, by depth from the end, layers and slot: first as quick as one may be, then as it is.

A slot stands for all ways of one part and size, with the best number of any. A stage takes no less than with nothing
recomputed, whatever its depth, so one small table bounds pipelines of every length
(:mod:`planner.search.mixed.outline`); what memory does to it at its own depth is asked only of those that this leaves.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.search.deadline import look
from planner.search.mixed.table import NEVER, QUICKEST, StageTable
from planner.search.mixed.weighing import Weighing

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Way = tuple[int, int]
"""A way to run a stage, and its recompute by :meth:`StageTable.name`, or ``QUICKEST``."""


@dataclass(frozen=True)
class Slots:
    """Ways of one part and size, ``[slots]``, where stages may wait for their watts also of one number of devices, so
    that all wait ``wait_rate`` ticks a joule; ``hop`` are ticks of a hop at least.

    ``time`` is the least that every segment may take, ``[slots, segments]``, and so is ``joules`` where they count; for
    what, ``weighing`` says.
    """

    table: StageTable
    part: Ints
    size: Ints
    members: list[Ints]
    hop: Ints
    time: Ints
    wait_rate: Floats
    joules: Floats | None = None
    weighing: Weighing = field(default_factory=Weighing)
    picked: dict[tuple[int, int, int, int], Way] = field(default_factory=dict)
    known: dict[tuple[int, int, int], list[Way]] = field(default_factory=dict)
    priced: set[tuple[int, int, int]] = field(default_factory=set)

    @staticmethod
    def of(table: StageTable) -> Slots:
        """The slots of a table."""
        alike = np.stack([table.part, table.size, table.told_apart])
        keys, inverse = np.unique(alike, axis=1, return_inverse=True)
        members = [np.flatnonzero(inverse.ravel() == k) for k in range(keys.shape[1])]
        hop, time = np.minimum(table.same, table.across), np.stack([table.base[m].min(axis=0) for m in members])
        joules = None if table.joules is None else np.stack([table.joules[m].min(axis=0) for m in members])
        hop, wait_rate = (np.array([it[m].min() for m in members]) for it in (hop, table.wait_rate))
        return Slots(table, keys[0], keys[1], members, hop, time, wait_rate, joules)

    def weighed(self, weighing: Weighing) -> Slots:
        """The slots of a search in which joules count for that."""
        return dataclasses.replace(self, weighing=weighing, picked={})

    @cached_property
    def ranked(self) -> Ints:
        """The members of every slot, the quickest first as a rule, ``[slots, most members]``; -1 behind the last."""
        found = np.full((len(self.members), max(map(len, self.members))), -1)
        for row, members in zip(found, self.members, strict=True):
            row[: len(members)] = members[np.argsort(np.median(self.table.base[members], axis=1), kind="stable")]
        return found

    def quickest(self, slot: int, flight: int, segment: int, rounds: int = 0) -> Way:
        """The way that takes a stage least time; least ``rounds`` times that and its tail where it is a first one."""
        key = slot, flight, segment, rounds
        if key not in self.picked:
            members = self._needed(slot, flight, segment)
            best = (np.inf, NEVER, int(members[0]))
            order = np.argsort(self.table.base[members, segment], kind="stable")
            for way in members[order].tolist():
                if max(1, rounds) * int(self.table.base[way, segment]) > best[0]:
                    break
                forward, backward, tail = self.table.one(way, flight, segment)[:3]
                time = max(1, rounds) * (forward + backward) + (tail if rounds else 0)
                best = min(best, (time if forward < NEVER else np.inf, tail, way))
            self.picked[key] = best[2], QUICKEST
        return self.picked[key]

    def thriftiest(self, slot: int, flight: int, segment: int, rounds: int, *, first: bool) -> Way:
        """The way of a stage that makes least of ``rounds`` times its time, its joules and a first one's tail."""
        key = slot, flight, segment, 2 * rounds + first
        if key not in self.picked:
            costs = {way: self.table.each(way[0], flight, segment)[way[1]] for way in self.ends(slot, flight, segment)}
            spent, rate = self.weighing.spent, self.weighing.most_rate(int(self.part[slot]), self.wait_rate[slot])
            self.picked[key] = min(
                (
                    (max(rounds * (it[0] + it[1]) + it[2] * first, rate * it[5]) + float(spent(it[5])), way)
                    for way, it in costs.items()
                ),
                default=(np.inf, (int(self.members[slot][0]), QUICKEST)),
            )[1]
        return self.picked[key]

    def _needed(self, slot: int, flight: int, segment: int) -> Ints:
        """The ways of a slot that no other stands for that offloads less."""
        return self.members[slot][self.table.needed(self.members[slot], flight, segment)]

    def forward(self, slot: int, segment: int) -> int:
        """The least forward of a segment by any way."""
        i, j, chains = self.table.segments.i[segment], self.table.segments.j[segment], self.table.chains
        return min(int(chains[way].forward(i, j)) for way in self.members[slot].tolist())

    def learn(self, slot: Ints, flight: Ints, segment: Ints) -> None:
        """Price several stages together, by every way that :meth:`quickest` and :meth:`ends` may ask for."""
        keys = np.unique(np.stack([slot, flight, segment]), axis=1)
        slot, flight, segment = keys[:, [tuple(key) not in self.priced for key in keys.T.tolist()]]
        at, turn = np.nonzero(self.ranked[slot] >= 0)
        way = self.ranked[slot[at], turn]
        needed = self.table.needed(way, flight[at], segment[at])
        self.table.learn(way[needed], flight[at[needed]], segment[at[needed]])
        self.priced.update(zip(slot.tolist(), flight.tolist(), segment.tolist(), strict=True))

    def ends(self, slot: int, flight: int, segment: int) -> list[Way]:
        """The ways of a stage that no other equals in time, tail and, where they count, joules, the quickest first."""
        key = slot, flight, segment
        if key not in self.known:
            members = self._needed(slot, flight, segment).tolist()
            costs = [
                (c[0] + c[1], c[2], c[5], (way, recompute))
                for way in members for recompute, c in self.table.each(way, flight, segment).items() if c[0] < NEVER
            ]  # fmt: skip
            kept: list[tuple[int, int, float, Way]] = []
            for it in sorted(costs):
                if all(it[1] < one[1] or it[2] < one[2] for one in kept):
                    kept.append(it)
            self.known[key] = [way for *_, way in kept]
        return self.known[key]


def _least(slots: Slots, slot: Ints, flight: Ints, segment: Ints, most: Floats) -> tuple[Ints, Ints, Ints]:
    """The least time of stages by any way of their slot that takes ``most`` or less: which fit, their time and tail.

    Of first stages, whose tails count, every one is kept that no other equals in time and tail. Slots, flights, then
    segments ascend. A way is priced only where it takes less than those of its slot before, with nothing recomputed:
    in each turn one way of every slot of a part.
    """
    table, ranked = slots.table, slots.ranked
    first, time, parts = table.segments.i[segment] == 0, np.full(len(segment), NEVER), []
    part, sizes = slots.part[slot], np.array([len(it) for it in slots.members])
    for k, turn in itertools.product(np.unique(part).tolist(), range(ranked.shape[1])):
        at = np.flatnonzero((part == k) & (turn < sizes[slot]))
        way = ranked[slot[at], turn]
        base = table.base[way, segment[at]]
        worth = (base <= most[at]) & ((base < time[at]) | first[at]) & table.needed(way, flight[at], segment[at])
        if worth.any():
            fits, found = table.quickest(k, way[worth], flight[at[worth]], segment[at[worth]])
            at, busy = at[worth][fits], (found.forward + found.backward)[fits]
            time[at] = np.minimum(time[at], busy)
            parts.append(np.stack([at, busy, found.tail[fits]])[:, first[at]])
    inner = np.flatnonzero(~first & (time < NEVER))
    ends = _undominated(np.concatenate(parts, axis=1)) if parts else np.zeros((3, 0), dtype=np.int64)
    found = np.concatenate([np.stack([inner, time[inner], np.zeros_like(inner)]), ends], axis=1)
    at, time, tail = found[:, np.argsort(found[0], kind="stable")]
    return at, time, tail


def _undominated(pairs: Ints) -> Ints:
    """Of ``(position, time, tail)`` those that no other of the position equals in both."""
    at, time, tail = pairs = pairs[:, np.lexsort((pairs[2], pairs[1], pairs[0]))]
    rank = np.unique(tail, return_inverse=True)[1].ravel() - at * (len(tail) + 1)
    least = np.minimum.accumulate(rank) if len(rank) else rank
    return pairs[:, np.concatenate([[True], rank[1:] < least[:-1]])] if len(time) else pairs


def _thrifty(slots: Slots, slot: Ints, flight: Ints, segment: Ints, most: Floats) -> NDArray[np.float64]:
    """:func:`_thrifty_ways` of every slot, one after the other."""
    found, bounds = [], np.searchsorted(slot, np.arange(len(slots.part) + 1)).tolist()
    for members, (a, b) in zip(slots.members, itertools.pairwise(bounds), strict=True):
        mine = _thrifty_ways(slots.table, members, flight[a:b], segment[a:b], most[a:b])
        mine[0] += a
        found.append(mine)
    return np.concatenate(found, axis=1)


def _thrifty_ways(table: StageTable, members: Ints, flight: Ints, segment: Ints, most: Floats) -> NDArray[np.float64]:
    """As :func:`_least` for one slot, every one that no other equals in time, tail where it is a first one, and joules:
    ``[6, stages]``, its joules, way and recompute below the position, time and tail.

    A way is priced only where it may be quicker or spend less than one before it.
    """
    look()
    first, parts = table.segments.i[segment] == 0, [np.zeros((6, 0))]
    time, joules = np.full(len(segment), np.inf), np.full(len(segment), np.inf)
    for way in members[np.argsort(np.median(table.base[members], axis=1), kind="stable")].tolist():
        base, least = table.base[way, segment], table.joules[way, segment]
        worth = first | (base < time) | (least < joules)
        asked = np.flatnonzero((base <= most) & worth & table.needed(way, flight, segment))
        if len(asked):
            at, found = table.columns(way, flight[asked], segment[asked])
            at, busy, spent = asked[at], found.forward + found.backward, table.spent(way, found)
            recompute = table.name(found.full, found.selective)
            parts.append(np.stack([at, busy, found.tail * first[at], spent, np.full(len(at), way), recompute]))
            better = (busy <= time[at]) & (spent <= joules[at])
            time[at[better]], joules[at[better]] = busy[better], spent[better]
    return _of_three(np.concatenate(parts, axis=1))


def _of_three(ways: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of ``(position, time, tail, joules, ...)`` those that no other of the position equals in all three."""
    ways = ways[:, np.lexsort(ways[3::-1])]
    place = np.arange(ways.shape[1]) - np.searchsorted(ways[0], ways[0])
    keep = np.ones(ways.shape[1], dtype=bool)
    for back in range(1, int(place.max(initial=0)) + 1):
        here = np.flatnonzero(place >= back)
        keep[here] &= ~(ways[2:4, here - back] <= ways[2:4, here]).all(axis=0)
    return ways[:, keep]


@dataclass(frozen=True)
class Stages:
    """Stages that a pipeline may have, ``[stages]``, sorted by depth and by the boundary ``j`` where they end.

    ``hop`` are twice the ticks of one; ``tail`` is 0 but for first stages. Those of depth ``d`` lie between
    ``first[d - 1]`` and ``first[d]``. Where joules count, ``spent`` are the ticks that they count for, ``wait`` those
    that a stage by itself waits at least and ``load``, ``[stages, lines]``, its part of what several wait for together;
    ``way`` and ``recompute`` say how each is run once it is exact. No pipeline is asked for that lasts ``upto`` ticks.
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
    spent: Floats | None = None
    wait: Floats | None = None
    load: Floats | None = None
    way: Ints | None = None
    recompute: Ints | None = None
    upto: float = np.inf

    @staticmethod
    def quick(slots: Slots, least: int, deepest: int, most_ticks: float = np.inf) -> Stages:
        """Every stage of a pipeline of ``least`` to ``deepest`` stages, as quick as with nothing recomputed.

        Those that are busy for more than ``most_ticks`` a step go. Tails, which recompute may shorten, are left out.
        """
        n, j = (a.ravel() for a in np.meshgrid(*_lengths(slots.table), indexing="ij"))
        inside = j >= n
        n, j = n[inside], j[inside]
        order = np.argsort(j, kind="stable")
        n, j = n[order], j[order]
        parts = [_of_depth(slots, depth, n, j, (least, most_ticks)) for depth in range(1, deepest + 1)]
        found = Stages(slots.table, slots, *(np.concatenate(fields) for fields in zip(*parts, strict=True)))
        if not slots.weighing.counts:
            return found
        found = found._weighed(slots.joules[found.slot, slots.table.segments.index[found.i, found.j]])
        return dataclasses.replace(found, upto=most_ticks).within() if slots.weighing.waits else found

    def __len__(self) -> int:
        return len(self.depth)

    def _weighed(self, joules: Floats) -> Stages:
        """The stages with what joules of each count for."""
        weighing, slot = self.slots.weighing, self.slot
        found = dataclasses.replace(self, spent=weighing.spent(joules))
        if not weighing.waits:
            return found
        joules = joules * (1 - 1e-12)
        load = joules[:, None] * weighing.lines.T[self.slots.part[slot]]
        return dataclasses.replace(found, wait=joules * self.slots.wait_rate[slot], load=load)

    def within(self) -> Stages:
        """Those that do not wait for ``upto`` by themselves."""
        return self if self.wait is None else self.take(self.wait < self.upto)

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

    @cached_property
    def from_front(self) -> Ints:
        """Their positions by depth and by the boundary where they begin."""
        key = self.depth * (self.table.layers + 1) + self.i
        return np.argsort(key.astype(np.min_scalar_type(key.max(initial=0))), kind="stable")  # 16 bits: by radix

    @cached_property
    def begins(self) -> list[tuple[Ints, Ints]]:
        """By depth the boundaries at which stages begin and where, in :attr:`from_front`, those of each begin."""
        i = self.i[self.from_front]
        return [np.unique(i[a:b], return_index=True) for a, b in itertools.pairwise(self.first)]

    def take(self, keep: NDArray) -> Stages:
        """Some stages."""
        names = ("depth", "j", "n", "slot", "time", "hop", "tail", "spent", "wait", "load", "way", "recompute")
        fields = (getattr(self, name) for name in names)
        return Stages(self.table, self.slots, *(None if it is None else it[keep] for it in fields), self.upto)

    def of_length(self, length: int) -> Stages:
        """Those of pipelines of exactly ``length`` stages."""
        return self.take((self.depth <= length) & ((self.i == 0) == (self.depth == length)))

    def exact(self, most: Floats) -> Stages:
        """With what each takes at its own depth, tails too; those that do not fit, or take more than ``most``, go.

        First stages are there once for every pair of time and tail that no other way of their slot equals in both: the
        quickest way with the least tail of another would be no way to run it. Where joules count so are all, theirs
        among what no other equals.
        """
        table, segments = self.table, len(self.table.segments.i)
        flight, segment = table.flight(self.depth), table.segments.index[self.i, self.j]
        keys, inverse = np.unique((self.slot * (table.flights + 1) + flight) * segments + segment, return_inverse=True)
        limit = np.zeros(len(keys))
        np.maximum.at(limit, inverse, most)
        slot, flight = np.divmod(keys // segments, table.flights + 1)
        least = _least if self.spent is None else _thrifty
        at, *costs = least(self.slots, slot, flight, keys % segments, limit)
        return self._with(inverse, at.astype(np.int64), *costs[:2], most, *costs[2:])

    def _with(
        self, key: Ints, at: Ints, time: Floats, tail: Floats, most: Floats, joules: Floats | None = None,
        way: Floats | None = None, recompute: Floats | None = None,
    ) -> Stages:  # fmt: skip
        """Every stage as often as ``at`` names its key, with the times and tails there, up to ``most``."""
        begins, ends = np.searchsorted(at, key), np.searchsorted(at, key, side="right")
        row = np.repeat(np.arange(len(key)), ends - begins)
        pick = begins[row] + np.arange(len(row)) - np.repeat(np.cumsum(ends - begins) - (ends - begins), ends - begins)
        row, pick = row[time[pick] <= most[row]], pick[time[pick] <= most[row]]
        fields = [getattr(self, name)[row] for name in ("depth", "j", "n", "slot")]
        times, tails = time[pick].astype(np.float64), tail[pick].astype(np.float64)
        found = Stages(self.table, self.slots, *fields, times, self.hop[row], tails)
        if joules is None:
            return found
        how = {"way": way[pick].astype(np.int64), "recompute": recompute[pick].astype(np.int64)}
        return dataclasses.replace(found, upto=self.upto, **how)._weighed(joules[pick])


def _lengths(table: StageTable) -> tuple[Ints, Ints]:
    longest = int((table.segments.j - table.segments.i).max())
    return np.arange(1, longest + 1), np.arange(1, table.layers + 1)


def _of_depth(slots: Slots, depth: int, n: Ints, j: Ints, limits: tuple[int, float]) -> tuple[NDArray, ...]:
    """The fields of one depth's stages."""
    look()
    table, (least, most_ticks) = slots.table, limits
    limit = min(NEVER, most_ticks / table.micro_batches)
    segment, i = table.segments.index[j - n, j], j - n
    legal = (segment >= 0) & ((j == table.layers) == (depth == 1)) & ((i > 0) | (depth >= least))
    legal &= j <= table.layers - depth + 1
    n, j, segment = n[legal], j[legal], segment[legal]
    at, slot = np.nonzero((slots.time[:, segment] < limit).T)
    time = slots.time[slot, segment[at]].astype(np.float64)
    hop = 2.0 * slots.hop[slot] if depth > 1 else np.zeros(len(slot))
    return np.full(len(at), depth), j[at], n[at], slot, time, hop, np.zeros(len(at))
