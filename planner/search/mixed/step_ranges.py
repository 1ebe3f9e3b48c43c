"""What a step spends at least by how long it lasts, whatever hosts it uses: bounds of energy by ranges of its length.

A step of length ``T`` spends, at idle watts ``w_s`` of the part of hosts that a stage reserves, which whole hosts draw
too, and with joules ``J_s`` of its stages,

    energy >= sum_s ( w_s T + J_s )          T >= sum_s r_s          sum_s size_s <= devices of each part

``r_s`` are the terms of a sum that bounds a step (:mod:`planner.search.mixed.relaxation`). With prices ``lam >= 0`` of
the second and ``mu >= 0`` of the third, which a shortest path over stages takes in,

    energy >= phi(T) = min over pipelines of sum_s ( w_s T + J_s + lam r_s + mu size_s ) - lam T - mu . devices

A minimum of linear functions of ``T`` is concave: over a range of lengths ``phi`` is least at one of its ends, for any
prices, and the best ones are found as all prices are. Hosts need not be told apart for this, whose numbers matter
little: on half of them a step takes twice as long. The range with the least bound is halved, after a few times on
stages as they are at their own depth. Of pipelines whose watts fall with the length as a step that is all work has
them, ``phi`` at prices for a length ``T`` loses at ``q T`` only ``(sqrt(q) - 1)^2`` of what is drawn idle.
"""

from __future__ import annotations

import dataclasses
import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.search.budget import Budget
from planner.search.deadline import look
from planner.search.mixed.ascent import climbed
from planner.search.mixed.relaxation import LEAST, Kind, Relaxation
from planner.search.mixed.space import MixedSpace
from planner.search.mixed.speeds import Speed
from planner.search.mixed.stages import Slots, Stages
from planner.search.mixed.table import NEVER
from planner.search.mixed.tables import Tables
from planner.search.mixed.weighing import Weighing

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SAFE = 1 - 1e-11
STEPS, STEPS_AT_DEPTH = 10, 5
"""Prices asked for one range, and for one whose stages have depths: the first are those of a longer one."""
WIDE, CLOSER, NARROWEST = 2.0, 1.5, 1.02
"""Ratios of the ends of a range at first, from where its stages have depths, and where it is not halved."""
STAGES_A_UNIT = 10_000_000
"""Stages bounded once in about a second of one core."""
DEVICE_PRICE = 0.01
"""What all devices of a part cost at first, as a part of what is drawn idle."""


class Spending(ABC):
    """``phi`` of some stages, the last price being that of the length, per ``unit`` of it; ``watts`` are a device's.

    ``terms`` are the ``r_s``; ``joules`` in ticks times watts.
    """

    steps = STEPS

    def __init__(
        self, slots: Slots, slot: Ints, terms: Floats, joules: Floats, devices: Ints, watts: Floats, unit: float
    ) -> None:  # fmt: skip
        self.part, self.size, self.unit = slots.part[slot], slots.size[slot], unit
        self.drawn, self.terms, self.joules, self.devices = watts[self.part] * self.size, terms / unit, joules, devices

    def highest(self, ends: tuple[float, float], start: Floats, target: float) -> float:
        """The best bound of a few prices over a range of lengths, which need not pass ``target``; keeps its prices."""
        self.best, self.mu = -np.inf, start

        def ask(mu: Floats) -> tuple[float, Floats]:
            value, slope = min((self._asked(ticks, mu) for ticks in ends), key=lambda it: it[0])
            if value > self.best:
                self.best, self.mu = value, mu
            return value, slope

        climbed(ask, start, target, self.steps)
        return self.best

    def least(self, ends: tuple[float, float]) -> Floats:
        """The least bound with each stage in the pipeline, over a range of lengths."""
        each = ((self._cost(ticks, self.mu), self._there(ticks)) for ticks in ends)
        return np.minimum(*(self.through(cost) - float(self.mu @ there) for cost, there in each))

    def _asked(self, ticks: float, mu: Floats) -> tuple[float, Floats]:
        look()
        least, path = self.shortest(self._cost(ticks, mu))
        used = np.bincount(self.part[path], weights=self.size[path], minlength=len(self.devices))
        slope = np.append(used, self.terms[path].sum()) - self._there(ticks)
        return least - float(mu @ self._there(ticks)), slope if np.isfinite(least) else np.zeros(len(mu))

    def _there(self, ticks: float) -> Floats:
        return np.append(self.devices, ticks / self.unit)

    def _cost(self, ticks: float, mu: Floats) -> Floats:
        cost = self.drawn * ticks + self.joules + mu[-1] * self.terms
        return (cost + mu[self.part] * self.size) * LEAST

    @abstractmethod
    def shortest(self, cost: Floats) -> tuple[float, Ints]:
        """The least cost of a pipeline, and its stages."""

    @abstractmethod
    def through(self, cost: Floats) -> Floats:
        """The least cost of a pipeline with each stage in it."""


class AtDepth(Spending):
    """Of stages that know their depth, by one kind of sum."""

    steps = STEPS_AT_DEPTH

    def __init__(self, stages: Stages, kind: Kind, devices: Ints, watts: Floats, unit: float) -> None:
        self.relaxed, slots = Relaxation(stages, devices, kind, other=True), stages.slots
        joules = stages.spent / (slots.weighing.ticks_a_joule * stages.table.space.machine.ticks.second)
        super().__init__(slots, stages.slot, self.relaxed.terms, joules, devices, watts, unit)

    def shortest(self, cost: Floats) -> tuple[float, Ints]:
        """The least cost of a pipeline, and its stages."""
        ahead = self.relaxed.to_go(cost)
        least = float(ahead[0, self.relaxed.layers])
        return least, self.relaxed.path(cost, ahead) if np.isfinite(least) else np.zeros(0, dtype=np.int64)

    def through(self, cost: Floats) -> Floats:
        """The least cost of a pipeline with each stage in it."""
        ahead, behind, stages = self.relaxed.to_go(cost), self.relaxed.behind(cost), self.relaxed.stages
        return cost + behind[stages.depth - 1, stages.j] + ahead[stages.depth, stages.i]


@dataclass(frozen=True)
class Flat:
    """Stages as quick and as thrifty as any may be, whatever their depth, sorted by ``j``: ``[stages]`` as
    :class:`planner.search.mixed.stages.Stages`."""

    slots: Slots
    i: Ints
    j: Ints
    slot: Ints
    time: Floats
    joules: Floats

    @staticmethod
    def of(slots: Slots, most_ticks: float) -> Flat:
        """Those that are busy for ``most_ticks`` a step or less."""
        table = slots.table
        j, i = np.nonzero(table.segments.index.T >= 0)
        segment = table.segments.index[i, j]
        at, slot = np.nonzero((slots.time[:, segment] <= min(NEVER - 1, most_ticks / table.micro_batches)).T)
        joules = slots.joules[slot, segment[at]] / table.space.machine.ticks.second
        return Flat(slots, i[at], j[at], slot, slots.time[slot, segment[at]].astype(np.float64), joules)

    def take(self, keep: NDArray[np.bool_]) -> Flat:
        """Some stages."""
        return Flat(self.slots, *(getattr(self, name)[keep] for name in ("i", "j", "slot", "time", "joules")))

    def __len__(self) -> int:
        return len(self.i)


class AtAny(Spending):
    """Of stages at no depth in particular, by the sum of paths that stay at one, which asks for none."""

    def __init__(self, stages: Flat, devices: Ints, watts: Floats, unit: float) -> None:
        self.stages, self.layers, m = stages, stages.slots.table.layers, stages.slots.table.micro_batches
        before, n = 1 - stages.j / self.layers, (stages.j - stages.i) / self.layers
        hop = np.where(stages.j < self.layers, 2.0 * stages.slots.hop[stages.slot], 0.0)
        terms = stages.time * (before + m * n) + hop * before
        super().__init__(stages.slots, stages.slot, terms, stages.joules, devices, watts, unit)
        self.by_end, order = np.searchsorted(stages.j, np.arange(self.layers + 2)), np.argsort(stages.i, kind="stable")
        self.from_front, self.by_begin = order, np.searchsorted(stages.i[order], np.arange(self.layers + 2))

    def ahead(self, cost: Floats) -> Floats:
        """The least cost of layers before each boundary."""
        least = np.full(self.layers + 1, np.inf)
        least[0] = 0.0
        for j in range(1, self.layers + 1):
            a, b = self.by_end[j : j + 2]
            least[j] = (cost[a:b] + least[self.stages.i[a:b]]).min(initial=np.inf)
        return least

    def shortest(self, cost: Floats) -> tuple[float, Ints]:
        """The least cost of a pipeline, and its stages."""
        least, path, j = self.ahead(cost), [], self.layers
        while j > 0 and np.isfinite(least[self.layers]):
            a, b = self.by_end[j : j + 2]
            path.append(a + int(np.argmin(cost[a:b] + least[self.stages.i[a:b]])))
            j = int(self.stages.i[path[-1]])
        return float(least[self.layers]), np.array(path, dtype=np.int64)

    def through(self, cost: Floats) -> Floats:
        """The least cost of a pipeline with each stage in it."""
        behind = np.full(self.layers + 1, np.inf)
        behind[self.layers] = 0.0
        for i in range(self.layers - 1, -1, -1):
            some = self.from_front[slice(*self.by_begin[i : i + 2])]
            behind[i] = (cost[some] + behind[self.stages.j[some]]).min(initial=np.inf)
        return self.ahead(cost)[self.stages.i] + cost + behind[self.stages.j]


@dataclass(frozen=True, order=True)
class Range:
    """Steps of one global micro-batch from ``first`` to ``last`` ticks long, and what they spend at least.

    ``spent`` are joules that any has at least, ticks times watts. ``stages`` are those of pipelines below the limit, at
    no depth in particular or, for one ``kind`` of sum, at theirs, and once ``exact`` as they are there.
    """

    bound: float
    batch: int
    first: float
    last: float
    spent: float = field(compare=False)
    stages: Stages | Flat = field(compare=False)
    start: Floats = field(compare=False)
    kind: Kind | None = field(compare=False, default=None)
    exact: bool = field(compare=False, default=False)

    @property
    def closed(self) -> bool:
        """Whether halving it would hardly raise its bound."""
        return self.exact and self.last <= NARROWEST * self.first

    def halves(self) -> list[Range]:
        """Its halves, each as much longer at its end than where it begins."""
        middle = float(np.sqrt(self.first * self.last))
        return [dataclasses.replace(self, last=middle), dataclasses.replace(self, first=middle)]


@dataclass
class StepRanges:
    """Ranges of lengths of steps that may spend less than ``limit``, ticks times watts, and last less than ``ticks``.

    ``watts`` are what a host of each part draws idle. ``open`` ascends.
    """

    space: MixedSpace
    tables: Tables
    watts: Floats
    limit: float
    ticks: float
    open: list[Range] = field(default_factory=list)

    @property
    def bound(self) -> float:
        """What no step spends less than, once :meth:`add` was told of every global micro-batch."""
        return min(self.limit, min((it.bound for it in self.open), default=np.inf))

    def least(self, batch: int, first: float, last: float) -> float:
        """What steps of one global micro-batch spend at least that are from ``first`` to ``last`` ticks long."""
        inside = (it.bound for it in self.open if it.batch == batch and it.first <= last and first <= it.last)
        return min(inside, default=self.limit)

    def add(self, batch: int, spent: float, budget: Budget) -> None:
        """All steps of one global micro-batch; ``spent`` are joules that any has at least, ticks times watts."""
        speed = Speed.of(self.space, self.tables.priced(batch, budget), self.space.devices)
        idle = float(self.watts.min())
        last = min(self.ticks, (self.limit - spent) / idle if idle > 0 else np.inf, float(NEVER))
        if speed is None or last <= (first := self.space.rounds(batch) * speed.fluid):
            return
        weighing = Weighing(1 / (float(self.watts @ self._hosts) * self.space.machine.ticks.second))
        stages, idle = Flat.of(self.tables.slots(batch, last).weighed(weighing), last), self.limit - spent
        start = np.append(DEVICE_PRICE * idle / np.maximum(self.space.devices, 1), idle)
        for ends in itertools.pairwise(_ends(first, last)):
            self._take(None, [Range(spent, batch, *ends, spent, stages, start)], budget)

    def narrow(self, budget: Budget) -> None:
        """Look closer at the range of the least bound until that is not worth it, or the budget is spent."""
        while self.open and not budget.over and not self.open[0].closed:
            it = self.open[0]
            self._take(it, self._parts(it), budget)

    def _take(self, it: Range | None, parts: list[Range], budget: Budget) -> None:
        """Put parts, bounded, in the place of a range."""
        budget.spend(2 * STEPS * sum(len(part.stages) for part in parts) / STAGES_A_UNIT)
        found = [one for part in parts for one in self._bounded(part)]
        self.open = sorted([*(one for one in self.open if one is not it), *found])

    def _parts(self, it: Range) -> list[Range]:
        """The next step of a range: its halves, or once it is short with stages that know their depth, then exact."""
        if it.last > CLOSER * it.first or it.exact:
            return it.halves()
        if it.kind is None:
            return self._deeper(it)
        most = np.full(len(it.stages), it.last / self.space.rounds(it.batch))
        return [dataclasses.replace(it, stages=it.stages.exact(most), exact=True)]

    def _deeper(self, it: Range) -> list[Range]:
        """A range with its stages at every depth, for either kind of pipelines."""
        slots, m, devices = it.stages.slots, self.space.rounds(it.batch), self._devices(it)
        speed = Speed.of(self.space, self.tables.priced(it.batch, Budget()), devices)
        if speed is None:
            return []
        alive = np.zeros((slots.table.layers + 1, slots.table.layers + 1, len(slots.part)), dtype=bool)
        alive[it.stages.i, it.stages.j, it.stages.slot] = True
        deepest, found = speed.deepest(it.last, m, min(slots.table.layers, int(devices.sum()))), []
        for least, most, kind in ((2, min(deepest, m - 1), "returning"), (max(2, m), deepest, "staying")):
            if least <= most:
                quick = Stages.quick(slots, least, most, it.last)
                stages = quick.take(alive[quick.i, quick.j, quick.slot])
                found.append(dataclasses.replace(it, stages=stages, kind=kind))
        return found

    def _bounded(self, it: Range) -> list[Range]:
        """A range with its bound and the stages that pipelines below the limit may have; nothing if none is there."""
        devices, stages, ends = self._devices(it), it.stages, (it.first, it.last)
        quick = stages.time * stages.slots.table.micro_batches <= it.last
        stages = stages.take(quick & (stages.slots.size <= devices[stages.slots.part])[stages.slot])
        if not len(stages):
            return []
        asked = devices, self._drawn, it.first
        spending = AtAny(stages, *asked) if it.kind is None else AtDepth(stages, it.kind, *asked)
        bound = max(it.bound, spending.highest(ends, it.start, self.limit) * SAFE)
        if bound >= self.limit:
            return []
        stages = stages.take(spending.least(ends) * SAFE < self.limit)
        return [dataclasses.replace(it, bound=bound, stages=stages, start=spending.mu)]

    def _devices(self, it: Range) -> Ints:
        """Devices of every part at most of steps in a range, for what they draw idle."""
        room = np.full(len(self.watts), np.inf)
        np.divide((self.limit - it.spent) / it.first, self._drawn, out=room, where=self._drawn > 0)
        return np.minimum(self.space.devices, np.floor(room)).astype(np.int64)

    @cached_property
    def _drawn(self) -> Floats:
        """Watts that a device of each part draws idle, with its part of its host."""
        return self.watts * self._hosts / np.maximum(self.space.devices, 1)

    @cached_property
    def _hosts(self) -> Ints:
        hosts = [part.devices_per_host for part in self.space.machine.cluster.parts]
        return self.space.devices // np.array(hosts, dtype=np.int64)


def _ends(first: float, last: float) -> Floats:
    """Lengths between two, each but the last as much longer than the one before as ``WIDE`` says."""
    return np.append(first * WIDE ** np.arange(np.ceil(np.log(last / first) / np.log(WIDE))), last)
