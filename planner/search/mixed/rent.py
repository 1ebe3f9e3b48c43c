"""Which hosts to use where they cost something: a step times the rent of the hosts that its stages reserve.

    money(h) = rate . h * step ,     h hosts of every part, whole ones, those in use

Numbers of hosts are split into boxes, ``low <= h <= high``, the one of the least bound first. A pipeline of ``h`` hosts
is one of ``high``; of all that those may run a step takes, by the fluid bound and by the relaxations of
:mod:`planner.search.mixed.outline`, at any price ``mu`` of a device,

    step >= work / (speed . devices of h)        step >= v(mu) - mu . devices of h

Times ``rate . h`` the first is a quotient of linear functions and the second a product of a rising and a falling one,
concave along every axis: over a box both are least at a corner. What is left of a box of one number a part is searched
for a pipeline that is quick enough (:mod:`planner.search.mixed.engine`), and that is the proof of it.
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
from planner.search.mixed.outline import Outline
from planner.search.mixed.pipelines import Pipeline, durations
from planner.search.mixed.space import MixedSpace
from planner.search.mixed.speeds import Speed
from planner.search.mixed.table import NEVER, StageTable
from planner.search.mixed.tables import Tables
from planner.stopping import INTERRUPT

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SAFE = 1 - 1e-11
WIDEST = 1.3
"""Rent of a box's most hosts over that of its fewest above which stages are not asked: they would say little there."""
STAGES_A_UNIT = 1_000_000


@dataclass(frozen=True)
class Wanted:
    """What a plan must be below: ``ticks`` of a step, and ``rent``, ticks times dollars a second; one is minimised.

    ``rates`` are dollars a second of a host, by part.
    """

    minimised: Literal["time", "money"]
    rates: Floats
    ticks: float = np.inf
    rent: float = np.inf

    def value(self, ticks: float, rent: float) -> float:
        """What is minimised of the two."""
        return ticks if self.minimised == "time" else rent


@dataclass(frozen=True)
class DevicePrices:
    """Bounds at prices of a device: ``whole - mu . devices`` ticks, ``whole`` is ``[prices]``."""

    whole: Floats
    mu: Floats

    @staticmethod
    def of(outline: Outline) -> DevicePrices:
        """Those that an outline kept."""
        relaxed = outline.relaxed
        whole = np.array([ahead[0, relaxed.layers] for ahead in relaxed.ahead])
        return DevicePrices(whole * SAFE, np.array(relaxed.mus))

    def least(self, devices: Ints, rates: Floats) -> Floats:
        """Ticks, and ticks times ``rates``, by the best of the prices at its worst corner ``[corners, parts]``."""
        ticks = self.whole[:, None] - self.mu @ devices.T
        return np.array([ticks.min(axis=1).max(), (ticks * rates).min(axis=1).max()]) * SAFE


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
    """One search over hosts and pipelines. Values are ticks, or ticks times dollars a second."""

    space: MixedSpace
    budget: Budget
    wanted: Wanted
    report: Report = lambda *_: None
    best: tuple[Pipeline | None, StageTable | None] = (None, None)
    value: float = np.inf
    root: float = 0.0
    left_out: float = np.inf
    boxes: list[Box] = field(default_factory=list)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("boxes", "boxes_by_bound", "host_counts", *COUNTS), 0)
    )

    def __post_init__(self) -> None:
        parts = self.space.machine.cluster.parts
        self.tables = Tables(self.space, keeps=True)
        self.host = np.array([part.devices_per_host for part in parts], dtype=np.int64)
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
    def limit(self) -> tuple[float, float]:
        """What the ticks and the rent of a better pipeline are below."""
        ticks, rent = self.wanted.ticks, self.wanted.rent
        return (min(ticks, self.value), rent) if self.wanted.minimised == "time" else (ticks, min(rent, self.value))

    @property
    def bound(self) -> float:
        """What no pipeline goes below, as far as is known."""
        return min([self.wanted.value(*self.limit), self.left_out, *(box.bound for box in self.boxes)])

    def _search(self) -> None:
        self.boxes = [box for box in map(self.bounded, self.boxes) if box is not None]
        self.root = self.bound
        while self.boxes and not self.budget.over:
            box = min(self.boxes, key=lambda it: it.bound)
            if box.bound >= self.wanted.value(*self.limit):
                break
            self._open(box)
            self.report("bounding", self.value, self.bound)

    def _open(self, box: Box) -> None:
        """Search one number of hosts, or put what its bounds leave of its halves in the place of a box."""
        self.counts["boxes"] += 1
        found = [self._searched(box)] if box.single else [self.bounded(half) for half in box.halves()]
        self.counts["boxes_by_bound"] += found.count(None) * (not box.single)
        self.boxes = [it for it in self.boxes if it is not box] + [it for it in found if it is not None]

    def most_ticks(self, hosts: Ints) -> float:
        """What a step on so many hosts must be below."""
        ticks, rent = self.limit
        rate = float(self.wanted.rates @ hosts)
        return min(ticks, rent / rate) if rate > 0 else ticks

    def bounded(self, box: Box) -> Box | None:
        """The box with its bound; ``None`` where nothing of it is below the limits."""
        least, open_ones = np.inf, {}
        for batch, known in box.open.items():
            found, prices = self._of_batch(box, batch, known)
            if (found < self.limit).all():
                least, open_ones[batch] = min(least, self.wanted.value(*found)), prices
        return Box(box.low, box.high, max(least, box.bound), open_ones) if open_ones else None

    def _of_batch(self, box: Box, batch: int, known: list[DevicePrices]) -> tuple[Floats, list[DevicePrices]]:
        """Ticks and rent that pipelines of one global micro-batch take at least, and the prices that say so."""
        rates, limit = self.wanted.rates, self.most_ticks(box.low)
        found = self._fluid(box, batch)
        if known:
            found = np.maximum(found, self._by_prices(box, known))
        narrow = not box.single and limit < NEVER and rates @ box.high <= WIDEST * (rates @ box.low)
        if narrow and (found < self.limit).all():
            known = self._outlined(box, batch, limit)
            found = np.maximum(found, self._by_prices(box, known)) if known else np.full(2, np.inf)
        return found, known

    def _fluid(self, box: Box, batch: int) -> Floats:
        """Ticks and rent that a pipeline of a box takes at least, were layers spread over all devices."""
        speed = Speed.of(self.space, self.tables.priced(batch, self.budget), box.high * self.host)
        if speed is None:
            return np.full(2, np.inf)
        corners = box.corners()
        total = (corners * self.host) @ speed.per_device
        corners, total = corners[total > 0], total[total > 0]
        ticks = self.space.rounds(batch) * speed.work / total
        return np.array([ticks.min(), (ticks * (corners @ self.wanted.rates)).min()]) * SAFE

    def _by_prices(self, box: Box, known: list[DevicePrices]) -> Floats:
        """Ticks and rent that a pipeline of a box takes at least, which one of several outlines holds."""
        corners = box.corners()
        rates = corners @ self.wanted.rates
        return np.min([prices.least(corners * self.host, rates) for prices in known], axis=0)

    def _outlined(self, box: Box, batch: int, limit: float) -> list[DevicePrices]:
        """Prices by the outlines of a box's most hosts that are not above a limit in ticks; none where all are."""
        devices, m, model = box.high * self.host, self.space.rounds(batch), self.space.machine.model
        speed = Speed.of(self.space, self.tables.priced(batch, self.budget), devices)
        deepest = speed.deepest(limit, m, min(model.layers, int(devices.sum())))
        lengths = [(2, min(deepest, m - 1)), (max(2, m), deepest)]
        start = limit * speed.per_device / speed.total
        outlines = [
            Outline.of(self.tables.slots(batch, limit), devices, one, start, limit, limit)
            for one in lengths if one[0] <= one[1]
        ]  # fmt: skip
        self.budget.spend(sum(len(it.relaxed.stages) for it in outlines) / STAGES_A_UNIT)
        return [DevicePrices.of(it) for it in outlines if it.bound < limit]

    def _searched(self, box: Box) -> Box | None:
        """The pipelines of one number of hosts; the box stays, with what is known of it, where the budget ends them."""
        self.counts["host_counts"] += 1
        beat = np.ceil(self.most_ticks(box.high))
        search = MixedSearch(
            self.space, self.budget, float(beat), lambda stage, *_: self.report(stage, self.value, self.bound),
            devices=box.high * self.host, tables=self.tables, batches=tuple(box.open),
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
        if found.proved:
            return None
        rate = float(self.wanted.rates @ box.high)
        bound = max(box.bound, self.wanted.value(found.bound, found.bound * rate) * SAFE)
        if self.budget.over:
            return Box(box.low, box.high, bound, box.open)
        self.left_out = min(self.left_out, bound)
        return None

    def hosts(self, pipeline: Pipeline, table: StageTable) -> Ints:
        """Hosts of every part that the stages of a pipeline reserve devices on."""
        used = np.bincount(table.part[pipeline.way], weights=table.size[pipeline.way], minlength=len(self.host))
        return -(-used.astype(np.int64) // self.host)

    def _take(self, pipeline: Pipeline, table: StageTable) -> None:
        """Take a pipeline within the limits for the best where it is better."""
        ticks = durations(table, pipeline).step
        rent = ticks * float(self.wanted.rates @ self.hosts(pipeline, table))
        if ticks < self.limit[0] and rent < self.limit[1]:
            self.best, self.value = (pipeline, table), self.wanted.value(ticks, rent)

    def _result(self, seconds: float, ended_by: str) -> MixedResult:
        bound = self.bound
        proved = bound >= self.wanted.value(*self.limit)
        root, stopped = min(self.root, self.value), "" if proved else ended_by
        return MixedResult(*self.best, self.value, bound, proved, self.counts, np.inf, root, seconds, stopped)
