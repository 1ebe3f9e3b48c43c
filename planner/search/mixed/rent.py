"""Which hosts to use where they cost something: the rent of those that stages reserve, or the watts that they draw.

    money(h)  = rate . h * step                              h hosts of every part, whole ones, those in use
    energy(h) = watts . h * step + joules of its stages      (:mod:`cost_models.mixed_power`)

Numbers of hosts are split into boxes, ``low <= h <= high``, the one of the least bound first. A pipeline of ``h`` hosts
is one of ``high``; of all that those may run a step takes, by the fluid bound and by the relaxations of
:mod:`planner.search.mixed.outline`, at any price ``mu`` of a device,

    step >= work / (speed . devices of h)        step >= v(mu) - mu . devices of h

Times ``rate . h`` the first is a quotient of linear functions and the second a product of a rising and a falling one,
concave along every axis: over a box both are least at a corner (:mod:`planner.search.mixed.host_bounds`, energy's too).
What is left of a box of one number a part is searched for a pipeline that is good enough
(:mod:`planner.search.mixed.engine`), and that is the proof of it: of energy with the joules of stages as ticks
(:mod:`planner.search.mixed.weighing`), to within the tick a stage that these are rounded by.

Under a limit ``P`` on the watts of all sites a step also waits for ``joules of its stages / (P - watts . h)`` seconds:
of a box no pipeline waits less than on its fewest hosts.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.search.budget import Budget
from planner.search.deadline import in_time
from planner.search.mixed.engine import COUNTS, MixedResult, MixedSearch, Report
from planner.search.mixed.host_bounds import SAFE, Corners, DevicePrices, Draws, fluid_of
from planner.search.mixed.outline import Outline
from planner.search.mixed.pipelines import Pipeline, durations, joules, lasting
from planner.search.mixed.space import MixedSpace
from planner.search.mixed.speeds import Speed, joules_by_part, least_joules, most_joules
from planner.search.mixed.step_ranges import StepRanges
from planner.search.mixed.table import NEVER, StageTable
from planner.search.mixed.tables import Tables
from planner.search.mixed.waiting import lines_of
from planner.search.mixed.weighing import Weighing
from planner.stopping import INTERRUPT

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
WIDEST = 1.3
"""Rent, or watts, of a box's most hosts over those of its fewest above which stages are not asked: they say little."""
STAGES_A_UNIT = 1_000_000
QUICK_SHARE, RANGES_SHARE = 0.25, 0.75
"""Parts of the limits on time and work for a first pipeline within a limit on the step, and for ranges of lengths."""


@dataclass(frozen=True)
class Wanted:
    """What a plan must be below: ``ticks`` of a step, ``rent``, ticks times dollars a second, and ``energy``, ticks
    times watts; one is minimised.

    ``rates`` are dollars a second of a host, by part, and ``watts`` what one draws idle, where energy or ``site_w``
    counts, the most that all sites may draw; ``waits`` says that there is a limit on watts of any level.
    """

    minimised: Literal["time", "money", "energy"]
    rates: Floats
    ticks: float = np.inf
    rent: float = np.inf
    energy: float = np.inf
    watts: Floats | None = None
    site_w: float = np.inf
    waits: bool = False

    @property
    def weighs_energy(self) -> bool:
        """Whether energy counts."""
        return self.minimised == "energy" or self.energy < np.inf

    @property
    def at(self) -> int:
        """The position of what is minimised among the three."""
        return ("time", "money", "energy").index(self.minimised)


@dataclass(frozen=True)
class Box:
    """Numbers of hosts of every part, and what no pipeline with any of them goes below.

    ``open`` are the global micro-batches that are not ruled out, with what outlines of larger boxes say of each: a
    pipeline is in one of them.
    """

    low: Ints
    high: Ints
    bound: float
    open: dict[int, list[DevicePrices]]

    @property
    def single(self) -> bool:
        """Whether there is one number for every part."""
        return bool((self.low == self.high).all())

    def corners(self) -> Ints:
        """Its corners, ``[corners, parts]``."""
        return np.unique(np.array(list(itertools.product(*zip(self.low, self.high, strict=True)))), axis=0)

    def halves(self) -> Iterator[Box]:
        """Two halves, cut where the box is widest for its size."""
        k = int(np.argmax((self.high - self.low) / (self.low + 1.0)))
        middle = int(self.low[k] + self.high[k]) // 2
        for low, high in ((self.low[k], middle), (middle + 1, self.high[k])):
            ends = self.low.copy(), self.high.copy()
            ends[0][k], ends[1][k] = low, high
            yield Box(*ends, self.bound, self.open)


@dataclass
class RentSearch:
    """One search over hosts and pipelines. Values are ticks, or these times dollars a second or watts."""

    space: MixedSpace
    budget: Budget
    wanted: Wanted
    report: Report = lambda *_: None
    best: tuple[Pipeline | None, StageTable | None] = (None, None)
    value: float = np.inf
    root: float = 0.0
    left_out: float = np.inf
    boxes: list[Box] = field(default_factory=list)
    ranges: StepRanges | None = None
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("boxes", "boxes_by_bound", "host_counts", *COUNTS), 0)
    )

    def __post_init__(self) -> None:
        parts = self.space.machine.cluster.parts
        self.tables = Tables(self.space, keeps=True)
        self.host = np.array([part.devices_per_host for part in parts], dtype=np.int64)
        self.tick = self.space.machine.ticks.second
        self.spent: dict[int, float] = {}
        self.most: dict[int, float] = {}
        every = {batch: [] for batch in self.space.batches()}
        self.boxes = [Box(np.zeros(len(parts), dtype=np.int64), self.space.devices // self.host, 0.0, every)]

    def run(self) -> MixedResult:
        """Search until no box is open below the best pipeline, the budget is spent, or Ctrl-C."""
        began, interrupted = time.monotonic(), False
        try:
            in_time(self.budget.deadline, self._search)
        except KeyboardInterrupt:
            interrupted = True
        return self._result(time.monotonic() - began, INTERRUPT if interrupted else self.budget.ended_by)

    @property
    def limit(self) -> Floats:
        """What ticks, rent and energy of a better pipeline are below."""
        found = np.array([self.wanted.ticks, self.wanted.rent, self.wanted.energy])
        found[self.wanted.at] = min(found[self.wanted.at], self.value)
        return found

    @property
    def bound(self) -> float:
        """What no pipeline goes below, as far as is known."""
        least = min([self.left_out, *(box.bound for box in self.boxes)])
        least = least if self.ranges is None else max(least, self.ranges.bound)
        return min(float(self.limit[self.wanted.at]), least)

    def _search(self) -> None:
        self.boxes = [box for box in map(self.bounded, self.boxes) if box is not None]
        self.root = self.bound
        if self.boxes and self.wanted.minimised != "time" and self.wanted.ticks < np.inf:
            self._take_quick()
        while self.boxes and not self.budget.over:
            if self.ranges is None and self.wanted.minimised == "energy" and np.isfinite(self.limit[2]):
                self._take_ranges()
            box = min(self.boxes, key=lambda it: it.bound, default=None)
            if self.bound >= self.limit[self.wanted.at] or box is None:
                break
            self._open(box)
            self.report("bounding", self.value, self.bound)

    def _take_ranges(self) -> None:
        """Bound what steps spend by their lengths, then the boxes again."""
        mine = self._budget(RANGES_SHARE)
        ranges = StepRanges(self.space, self.tables, self.wanted.watts, float(self.limit[2]), float(self.limit[0]))
        for batch in self.space.batches():
            ranges.add(batch, self._spent(batch), mine)
        self.ranges = ranges
        ranges.narrow(mine)
        self.budget.spend(mine.spent)
        self.boxes = [box for box in map(self.bounded, self.boxes) if box is not None]

    def _take_quick(self) -> None:
        """Take the quickest pipeline on all hosts, where it is within the limits: whether there is one at all is hard
        to say of few hosts."""
        mine, beat = self._budget(QUICK_SHARE), float(np.ceil(self.wanted.ticks))
        search = MixedSearch(self.space, mine, beat, tables=self.tables)
        try:
            found = search.run()
        finally:
            self.budget.spend(mine.spent)
            if search.best is not None:
                self._take(search.best, search.incumbent[1])
        if found.stopped == INTERRUPT:
            raise KeyboardInterrupt
        if found.best is None and found.proved:
            self.boxes = []

    def _budget(self, share: float) -> Budget:
        """A share of what is left."""
        now = time.monotonic()
        return Budget(now + share * (self.budget.deadline - now), share * self.budget.left_units)

    def _open(self, box: Box) -> None:
        """Search one number of hosts, or put what its bounds leave of its halves in the place of a box."""
        self.counts["boxes"] += 1
        found = [self._searched(box)] if box.single else [self.bounded(half) for half in box.halves()]
        self.counts["boxes_by_bound"] += found.count(None) * (not box.single)
        self.boxes = [it for it in self.boxes if it is not box] + [it for it in found if it is not None]

    def most_ticks(self, hosts: Ints, spent: float = 0.0) -> float:
        """What a step on so many hosts must be below, of which stages spend so much, ticks times watts, at least."""
        (ticks, rent, energy), rate, watts = self.limit.tolist(), float(self.wanted.rates @ hosts), self.watts(hosts)
        ticks = min(ticks, rent / rate) if rate > 0 else ticks
        return min(ticks, max(0.0, energy - spent) / watts) if watts > 0 else ticks

    def watts(self, hosts: Ints) -> float:
        """What so many hosts draw idle; 0 where neither energy nor the watts of all sites count."""
        return 0.0 if self.wanted.watts is None else float(self.wanted.watts @ hosts)

    def bounded(self, box: Box) -> Box | None:
        """The box with its bound; ``None`` where nothing of it is below the limits."""
        least, open_ones = np.inf, {}
        if self.watts(box.low) >= self.wanted.site_w:
            return None
        for batch, known in box.open.items():
            found, prices = self._of_batch(box, batch, known)
            if (found < self.limit).all():
                least, open_ones[batch] = min(least, float(found[self.wanted.at])), prices
        return Box(box.low, box.high, max(least, box.bound), open_ones) if open_ones else None

    def _of_batch(self, box: Box, batch: int, known: list[DevicePrices]) -> tuple[Floats, list[DevicePrices]]:
        """Ticks, rent and energy that pipelines of one global micro-batch take at least; the prices that say so."""
        limit, corners = self.most_ticks(box.low, self._spent(batch)), self._corners(box, batch)
        found = self._fluid(box, batch, corners)
        if self.ranges is not None:
            found[2] = max(found[2], self.ranges.least(batch, float(found[0]), limit))
        if known:
            found = np.maximum(found, np.min([prices.least(corners) for prices in known], axis=0))
        narrow = not box.single and limit < NEVER and corners.spread <= WIDEST
        if narrow and (found < self.limit).all():
            known = self._outlined(box, batch, limit)
            best = np.min([prices.least(corners) for prices in known], axis=0) if known else np.inf
            found = np.maximum(found, best)
        return found, known

    def _corners(self, box: Box, batch: int) -> Corners:
        hosts = box.corners()
        watts = np.zeros(len(hosts)) if self.wanted.watts is None else hosts @ self.wanted.watts
        return Corners(hosts * self.host, hosts @ self.wanted.rates, watts, self._spent(batch))

    def _spent(self, batch: int) -> float:
        """What joules of stages come to at least in any pipeline, ticks times watts; 0 where joules do not count."""
        if batch not in self.spent:
            priced = self.tables.priced(batch, self.budget)
            weighs = self.wanted.watts is not None
            self.spent[batch] = least_joules(self.space, priced, batch) / self.tick if weighs else 0.0
        return self.spent[batch]

    def _fluid(self, box: Box, batch: int, corners: Corners) -> Floats:
        """What a pipeline of a box takes at least, were layers spread over all devices."""
        priced = self.tables.priced(batch, self.budget)
        speed = Speed.of(self.space, priced, box.high * self.host)
        if speed is None:
            return np.full(3, np.inf)
        joules = None if self.wanted.watts is None else joules_by_part(self.space, priced, batch) / self.tick
        found = fluid_of(corners, speed, self.space, batch, joules)
        if self.wanted.site_w == np.inf:
            return found
        draws = Draws(self.host, self.wanted.watts, self.wanted.site_w)
        ticks = draws.least_ticks(box.low, box.high, speed, self.space, batch, joules)
        rent, energy = float(self.wanted.rates @ box.low), self.watts(box.low)
        return np.maximum(found, [ticks, ticks * rent, ticks * energy + self._spent(batch)])

    def _outlined(self, box: Box, batch: int, limit: float) -> list[DevicePrices]:
        """Prices by the outlines of a box's most hosts that are not above a limit in ticks; none where all are."""
        devices, m, model = box.high * self.host, self.space.rounds(batch), self.space.machine.model
        speed = Speed.of(self.space, self.tables.priced(batch, self.budget), devices)
        deepest = speed.deepest(limit, m, min(model.layers, int(devices.sum())))
        lengths = [(2, min(deepest, m - 1)), (max(2, m), deepest)]
        start = limit * speed.per_device / speed.total
        slots, found = self.tables.slots(batch, limit), []
        for one in (one for one in lengths if one[0] <= one[1]):
            each = [
                Outline.of(slots.weighed(it), devices, one, start, most, most) for it, most in self._sums(box, limit)
            ]
            self.budget.spend(sum(len(it.relaxed.stages) for it in each) / STAGES_A_UNIT)
            if all(it.bound < it.target for it in each):
                found.append(DevicePrices.of(each, self.watts(box.high)))
        return found

    def _sums(self, box: Box, limit: float) -> list[tuple[Weighing, float]]:
        """What outlines of a box bound, each with what that is below: steps and, where energy counts, theirs with
        joules at the watts ``w`` of its most hosts, below ``energy / w`` and, of fewer hosts, what these do not."""
        most = self.watts(box.high)
        if not most:
            return [(Weighing(), limit)]
        weighing = Weighing(1 / (most * self.tick), below=limit)
        energy = self.limit[2] / most + (1 - self.watts(box.low) / most) * limit
        return [(Weighing(), limit), *([(weighing, energy * (1 + 1e-12))] if energy < NEVER else [])]

    def _searched(self, box: Box) -> Box | None:
        """The pipelines of one number of hosts; the box stays, with what is known of it, where the budget ends them."""
        self.counts["host_counts"] += 1
        weighing, beat, rate = self._weighed(box.high)
        search = MixedSearch(
            self.space, self.budget, beat, lambda stage, *_: self.report(stage, self.value, self.bound),
            devices=box.high * self.host, tables=self.tables, batches=tuple(box.open), weighing=weighing,
        )  # fmt: skip
        try:
            found = search.run()
        finally:
            if search.best is not None:
                self._take(search.best, search.incumbent[1])
        if found.stopped == INTERRUPT:
            raise KeyboardInterrupt
        for name, count in found.counts.items():
            self.counts[name] += count
        if found.proved and all(self._countable(batch, weighing) for batch in box.open):
            return None
        bound = max(box.bound, min(found.bound, NEVER) * rate * SAFE)
        if self.budget.over:
            return Box(box.low, box.high, bound, box.open)
        self.left_out = min(self.left_out, bound)
        return None

    def _countable(self, batch: int, weighing: Weighing) -> bool:
        """Whether all that joules of any pipeline count for is less than what is never looked at."""
        if weighing.counts and batch not in self.most:
            self.most[batch] = most_joules(self.space, self.tables.priced(batch, self.budget), batch)
        return not weighing.counts or self.most[batch] * weighing.ticks_a_joule < NEVER / 2

    def _weighed(self, hosts: Ints) -> tuple[Weighing, float, float]:
        """What joules count for in a search on so many hosts, what that must be below, and what one of it comes to.

        Pipelines of fewer hosts draw less than that says: they are those of another box.
        """
        ticks, rent, energy = self.limit.tolist()
        rate, watts = float(self.wanted.rates @ hosts), self.watts(hosts)
        step = float(np.ceil(min(ticks, rent / rate if rate > 0 else np.inf)))
        one = (1.0, rate, watts)[self.wanted.at]
        power = {}
        if self.wanted.waits:
            site = self.site(hosts)
            power = {"waits": True, "site": site, "lines": lines_of(self.space, hosts, site)}
        if not self.wanted.weighs_energy:
            return Weighing(minimised=not power, **power), step, one
        joules, most = 1 / (watts * self.tick), float(np.ceil(energy / watts * (1 + 1e-15)))
        if self.wanted.minimised == "energy":
            return Weighing(joules, below=step, **power), most, one
        return Weighing(joules, minimised=False, below=most, **power), step, one

    def site(self, hosts: Ints) -> float:
        """Ticks that a step on so many hosts waits for a joule of its stages; infinite where idling is too much."""
        if self.wanted.site_w == np.inf:
            return 0.0
        spare = self.wanted.site_w - self.watts(hosts)
        return 1 / (spare * self.tick) if spare > 0 else np.inf

    def hosts(self, pipeline: Pipeline, table: StageTable) -> Ints:
        """Hosts of every part that the stages of a pipeline reserve devices on."""
        used = np.bincount(table.part[pipeline.way], weights=table.size[pipeline.way], minlength=len(self.host))
        return -(-used.astype(np.int64) // self.host)

    def _take(self, pipeline: Pipeline, table: StageTable) -> None:
        """Take a pipeline within the limits for the best where it is better; of energy within what is rounded off."""
        ticks, hosts = durations(table, pipeline).step, self.hosts(pipeline, table)
        if self.wanted.waits:
            ticks = max(ticks, lasting(table, pipeline, self.site(hosts)))
        found = np.array([ticks, ticks * float(self.wanted.rates @ hosts), ticks * self.watts(hosts)])
        found[2] += joules(table, pipeline) / self.tick if self.wanted.watts is not None else 0.0
        rounded = found * np.array([1.0, 1.0, 1.0 if self.wanted.minimised == "energy" else SAFE])
        if (rounded < self.limit).all():
            self.best, self.value = (pipeline, table), float(found[self.wanted.at])

    def _result(self, seconds: float, ended_by: str) -> MixedResult:
        bound = self.bound
        proved = bound >= self.limit[self.wanted.at]
        root, stopped = min(self.root, self.value), "" if proved else ended_by
        return MixedResult(*self.best, self.value, bound, proved, self.counts, np.inf, root, seconds, stopped)
