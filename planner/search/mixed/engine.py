"""The search over mixed pipelines: bound every global micro-batch, widen beams best bound first, prove the rest.

1. Ways to run a stage are priced once for every part and global micro-batch ``B``; useless ones are dropped.
2. Each ``B`` (a :class:`Job`; pipelines with fewer stages than micro-batches apart from the others) is bounded by the
   relaxation. Jobs above the incumbent are done.
3. A narrow search over labels gives every promising job a plan: the incumbent. Then the job with the least bound
   is searched again, wider, until nothing was left out.
4. What then still lies below the incumbent is the schedule's longest path against the paths that labels know:
   CP-SAT closes it on the stages that the reduced costs left (:mod:`planner.search.mixed.certificate`).

Before there is an incumbent a ceiling stands for one; it is raised until a plan is found below it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.search.bounds import kind_counts
from planner.search.mixed.jobs import Job, divided
from planner.search.mixed.outline import Outline
from planner.search.mixed.pipelines import Pipeline, durations, quickest
from planner.search.mixed.space import MixedSpace
from planner.search.mixed.stages import Slots
from planner.search.mixed.table import NEVER, Priced, StageTable, stage_table

Floats = NDArray[np.float64]
Report = Callable[[str, float, float], None]
FIRST_WIDTH, WIDER, MOST_WIDTH = 600, 8, 60_000
USUAL_MICRO_BATCHES = 64
FIRST_CEILING, NEXT_CEILING = 1.7, 4.0
EAGER = (1.08, 1.3, np.inf)
"""How far above its bound a first plan is looked for, before everything below the ceiling is."""
MOST_LITERALS, FEW_LITERALS = 20_000, 2_000
FIRST_SOLVE_S = 2.0


@dataclass
class Speed:
    """How quick the parts are at one global micro-batch, ``work`` being what a layer of each kind costs relatively."""

    per_device: Floats
    total: float
    work: float
    least: float

    @property
    def fluid(self) -> float:
        """Ticks that a micro-batch takes in the slowest stage at least: all layers spread over all devices."""
        return self.work / self.total

    def deepest(self, ceiling: float, m: int, layers: int) -> int:
        """The most stages of a pipeline below ``ceiling`` ticks.

        ``pp`` stages of a layer or more last ``pp ** 2 least / total`` a micro-batch (Cauchy's inequality), and for
        ``pp < m`` the return paths add ``m - pp`` times the fluid bound.
        """
        pp = np.arange(2, layers + 1)
        ticks = pp**2 * self.least / self.total + np.maximum(0, m - pp) * self.fluid
        return int(pp[ticks < ceiling].max(initial=0))


@dataclass
class MixedResult:
    """The best pipeline with its table, the bound of all of them, whether they meet; ticks."""

    best: Pipeline | None
    table: StageTable | None
    value: float
    bound: float
    proved: bool
    counts: dict[str, int]
    before_solver: float
    bound_root: float
    seconds: float = 0.0


@dataclass
class MixedSearch:
    """One search. ``beat`` is a step in ticks that a plan must be quicker than to be worth finding."""

    space: MixedSpace
    deadline: float
    beat: float = np.inf
    report: Report = lambda *_: None
    best: Pipeline | None = None
    table: StageTable | None = None
    value: float = np.inf
    before: float = np.inf
    jobs: list[Job] = field(default_factory=list)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("batches", "batches_by_bound", "ways", "ways_useless", "jobs", "jobs_by_bound", "bands", "labels",
             "pipelines", "jobs_to_solver", "literals", "solver_rounds", "solver_cuts"), 0)
    )  # fmt: skip

    def run(self) -> MixedResult:
        """Search until the bounds meet or the time limit passes."""
        began = time.monotonic()
        self.devices = np.array([part.devices for part in self.space.machine.cluster.parts], dtype=np.int64)
        self.priced = {batch: self._priced(batch) for batch in self.space.batches()}
        self.speeds = {batch: self._speed(priced) for batch, priced in self.priced.items()}
        m = {batch: self.space.machine.workload.global_batch // batch for batch in self.priced}
        self.fluid = {
            batch: m[batch] * s.fluid
            for batch, s in self.speeds.items()
            if s is not None and self._states_fit(self.priced[batch])
        }
        self.counts["batches"] = len(self.priced)
        floor = min(self.fluid.values(), default=np.inf)
        ceiling, unseen = min(self.beat, FIRST_CEILING * floor), floor
        root = floor
        while np.isfinite(floor):
            root = self._under(ceiling)
            unseen = min(ceiling, self.value)
            if self.value < ceiling or ceiling >= min(self.beat, NEVER) or time.monotonic() > self.deadline:
                break
            ceiling = min(self.beat, NEVER, NEXT_CEILING * ceiling) if ceiling < 1000 * floor else min(self.beat, NEVER)
        return self._result(root, unseen, time.monotonic() - began)

    def _result(self, root: float, unseen: float, seconds: float) -> MixedResult:
        limit = min(self.value, self.beat)
        bound = min([limit, *(job.bound for job in self.jobs)])
        over = unseen >= limit or unseen >= NEVER
        bound = bound if over else min(bound, unseen)
        proved = over and bound >= min(limit, NEVER)
        return MixedResult(
            self.best, self.table, self.value, bound, proved, self.counts, self.before, min(root, self.value), seconds
        )

    def _priced(self, batch: int) -> list[Priced]:
        found = [Priced.of(self.space, k, batch) for k in range(len(self.space.limits))]
        self.counts["ways"] += sum(p.ways for p in found)
        self.counts["ways_useless"] += sum(p.ways - len(p.setups) for p in found)
        return found

    def _speed(self, priced: list[Priced]) -> Speed | None:
        """Speeds by part; ``None`` where no part has a way to run a stage."""
        if not any(len(p.setups) for p in priced):
            return None
        counts = kind_counts(self.space.machine.model)[:-2]
        present = np.flatnonzero(counts)
        each = [(p.prices.forward + p.prices.backward)[:, present].astype(np.float64) for p in priced]
        weight = next(times[0] for times in each if len(times))
        speeds = np.array([
            float((weight / times / p.setups.size[:, None]).max()) if len(times) else 0.0
            for times, p in zip(each, priced, strict=True)
        ])  # fmt: skip
        return Speed(speeds, float(speeds @ self.devices), float(weight @ counts[present]), float(weight.min()))

    def _states_fit(self, priced: list[Priced]) -> bool:
        """Whether all devices together hold every layer's states, where each takes least room."""
        counts = kind_counts(self.space.machine.model)
        each = [(p.prices.state_bytes * p.setups.size[:, None]).min(axis=0) for p in priced if len(p.setups)]
        room = sum(limit * int(there) for limit, there in zip(self.space.limits, self.devices, strict=True))
        return int(np.min(each, axis=0) @ counts) <= room

    def _under(self, ceiling: float) -> float:
        """Everything that may last less than ``ceiling`` ticks; returns the least root bound."""
        self.jobs, self.ceiling, late = [], ceiling, []
        for batch in sorted(self.fluid, key=self._promise):
            if self.fluid[batch] >= self.limit:
                self.counts["batches_by_bound"] += 1
            elif time.monotonic() > self.deadline:
                self.jobs.append(Job(None, [], self.fluid[batch], whole=True))
            else:
                late += self._open(batch)
        for slots, least, most in late:
            self._add_job(slots, least, most)
        root = min((job.bound for job in self.jobs), default=ceiling)
        while time.monotonic() < self.deadline and (waiting := [job for job in self.jobs if self._waits(job)]):
            job = min(waiting, key=lambda job: job.bound)
            if job.divisible and job.width > 0 and not (job.whole and job.literals <= FEW_LITERALS):
                self._divide(job)
            elif job.width > 0 and not job.whole and job.band[1] < np.inf and job.counted is None:
                job.count()
            elif not job.whole:
                self._widen(job)
            else:
                job.solves += 1
                self._certify(job, FIRST_SOLVE_S if job.solves == 1 else np.inf)
        return root

    def _waits(self, job: Job) -> bool:
        """Whether there is more to search of a job; one above the limit is closed."""
        if job.bound >= self.limit and job.table is not None:
            job.close(job.bound)
        return job.table is not None and (job.width < MOST_WIDTH if not job.whole else job.solves < 2)

    @property
    def limit(self) -> float:
        """What a plan must be quicker than, in ticks."""
        return min(self.value, self.ceiling)

    def _promise(self, batch: int) -> float:
        """Where a good plan is likely: enough micro-batches for a handful of stages, and not many more."""
        m = self.space.machine.workload.global_batch // batch
        return abs(float(np.log(m / USUAL_MICRO_BATCHES)))

    def _open(self, batch: int) -> list[tuple[Slots, int, int]]:
        """Bounds and searches the pipelines with fewer stages than micro-batches; returns the others, if there are."""
        m, model = self.space.machine.workload.global_batch // batch, self.space.machine.model
        deepest = self.speeds[batch].deepest(self.limit, m, min(model.layers, int(self.devices.sum())))
        if deepest < 2:
            return []
        slots = Slots.of(stage_table(self.space, batch, self.priced[batch], self.limit))
        if m > 2 and (job := self._add_job(slots, 2, min(deepest, m - 1))).table is not None:
            self._widen(job)
        return [(slots, max(2, m), deepest)] if deepest >= m else []

    def _add_job(self, slots: Slots, least: int, most: int) -> Job:
        """A job with its root bound; closed where that suffices. Before there is an incumbent, one is looked for."""
        batch = slots.table.batch
        speed, floor, ceiling = self.speeds[batch], self.fluid[batch], self.ceiling
        start = min(self.limit, 1e3 * floor) * speed.per_device / speed.total
        outline = Outline.of(slots, self.devices, (least, most), start, min(self.limit, 1e3 * floor))
        for eager in EAGER if self.value == np.inf else EAGER[-1:]:
            self.ceiling = min(ceiling, eager * outline.bound)
            job = outline.job(self.limit, floor)
            if self.ceiling < ceiling and job.bound < self.limit:
                self._widen(job)
            if self.value < self.ceiling or self.ceiling == ceiling:
                break
        self.ceiling = ceiling
        self.jobs.append(job)
        self.counts["jobs"] += 1
        if job.bound >= self.limit:
            self.counts["jobs_by_bound"] += 1
            job.close(job.bound)
        return job

    def _divide(self, job: Job) -> None:
        """Puts bands in the place of a job."""
        found = divided(job, self.devices, self.limit, self.deadline)
        self.counts["bands"] += len(found)
        self.jobs = [it for it in self.jobs if it is not job] + found

    def _widen(self, job: Job) -> None:
        """Search a job with more labels than last time; its bound rises, the incumbent may fall."""
        job.width = FIRST_WIDTH if job.width == 0 else job.width * WIDER
        search = job.search(self.limit)
        found = search.run(job.width, self.deadline)
        self.counts["labels"] += found.labels
        job.bound, job.whole = max(job.bound, min(found.bound, self.limit)), not found.dropped
        for bound, stages in sorted(found.closed, key=lambda it: it[0])[:64]:
            if bound < self.limit:
                self._try(job.table, quickest(job.table, search.slots, stages))
        if job.whole:
            search.restrict()
            job.left, job.lengths = search, {}
            for bound, stages in found.closed:
                job.lengths[len(stages)] = min(bound, job.lengths.get(len(stages), np.inf))
        self.report("bounding", self.value, min([job.bound, *(it.bound for it in self.jobs)]))

    def _try(self, table: StageTable, pipeline: Pipeline) -> None:
        self.counts["pipelines"] += 1
        step = durations(table, pipeline).step
        if step < self.limit:
            self.best, self.table, self.value = pipeline, table, float(step)

    def _certify(self, job: Job, limit_s: float = np.inf) -> None:
        """CP-SAT on a job that was searched whole and whose bound is still below the incumbent."""
        end = min(self.deadline, time.monotonic() + limit_s)
        if job.left is None or job.bound >= self.limit:
            return
        self.before = min(self.before, self.value)
        for length in sorted(job.lengths, key=job.lengths.get):
            job.lengths[length] = self._certified(job, length, job.lengths[length], end)
        job.bound = min([self.limit, *job.lengths.values()])
        self.report("proving", self.value, min(it.bound for it in self.jobs))

    def _certified(self, job: Job, length: int, known: float, end: float) -> float:
        """The bound of a job's pipelines of one length; the incumbent where CP-SAT proved it."""
        from planner.search.mixed.certificate import certify, open_columns

        if known >= self.limit or time.monotonic() > end:
            return min(known, self.limit)
        columns = open_columns(job.left, length)
        if columns is None:
            return self.limit
        if len(columns) > MOST_LITERALS:
            return known
        answer = certify(job.table, self.devices, length, columns, known, self.limit, end)
        self.counts["jobs_to_solver"] += 1
        self.counts["literals"] += answer.literals
        self.counts["solver_rounds"] += answer.rounds
        self.counts["solver_cuts"] += answer.cuts
        if answer.best is not None:
            self._try(job.table, answer.best)
        return self.limit if answer.proved else answer.bound
