"""The search over mixed pipelines: bound every global micro-batch, widen beams best bound first, prove the rest.

1. Ways to run a stage are priced once for every part and global micro-batch ``B``; useless ones are dropped.
2. Each ``B`` (a :class:`Job`; pipelines with fewer stages than micro-batches apart from the others) is outlined with
   nothing recomputed, then bounded by the relaxation of the stages that are left. Jobs above the incumbent are done.
3. A narrow search over labels gives every promising job a plan: the incumbent, moved on from to its neighbours. Then
   the job with the least bound is cut into bands and searched again, wider, until nothing was left out.
4. What then still lies below the incumbent is the schedule's longest path against the paths that labels know: those of
   the best pipelines are made known (:mod:`planner.search.mixed.detours`) and labels asked again, until none is new.
5. CP-SAT closes what is left, on the stages that reduced costs left (:mod:`planner.search.mixed.certificate`).

Before there is an incumbent a ceiling stands for one; it is raised until a plan is found below it. Every step but the
clock counts what it does in units of work, so that searches that end by those end alike on every machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.search.budget import Budget
from planner.search.deadline import in_time
from planner.search.mixed.answer import COUNTS, MixedResult
from planner.search.mixed.bands import held_bands, leaning_bands
from planner.search.mixed.detours import Detour, detour_of
from planner.search.mixed.jobs import Job, divided
from planner.search.mixed.moves import FEW, improved
from planner.search.mixed.outline import Outline
from planner.search.mixed.pipelines import Chosen, Pipeline, durations, quickest, values, with_other_ends
from planner.search.mixed.space import MixedSpace
from planner.search.mixed.speeds import Speed, fluid_ticks
from planner.search.mixed.stages import Slots, Way
from planner.search.mixed.table import NEVER, Priced, StageTable
from planner.search.mixed.tables import Tables
from planner.search.mixed.weighing import Weighing
from planner.stopping import INTERRUPT

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Report = Callable[[str, float, float], None]
FIRST_WIDTH, WIDER, MOST_WIDTH = 600, 8, 60_000
USUAL_MICRO_BATCHES = 64
FIRST_CEILING, NEXT_CEILING = 1.7, 4.0
EAGER = (1.09, 1.4, np.inf)
"""How far above its bound a first plan is looked for, before everything below the ceiling is; with a limit beside what
is minimised, which leaves few, everything at once."""
MOST_TRIED, MOST_ENDS, MOST_DETOURS = 32, 3, 12
PROBED, AIM, MOST_PROBED = 0.015, 0.6, 4_000
"""Gaps of jobs, as parts of the limit, of which so much is closed before all is searched; labels that may take."""
MOST_LITERALS, FEW_LITERALS = 20_000, 2_000
FIRST_SOLVE_UNITS = 1.0
STAGES_A_UNIT, CUT_A_UNIT, LABELS_A_UNIT, PIPELINES_A_UNIT = 1_000_000, 400_000, 60_000, 200
"""Stages bounded or cut into a band, labels kept and pipelines run in about a second of one core."""


@dataclass
class MixedSearch:
    """One search. ``beat`` is a step in ticks that a plan must be quicker than to be worth finding; ``devices`` are
    those of every part that it may use and ``batches`` the global micro-batches to look at, all where none are said;
    ``tables`` are those that several searches share. Joules count for what ``weighing`` says."""

    space: MixedSpace
    budget: Budget
    beat: float = np.inf
    report: Report = lambda *_: None
    devices: Ints | None = None
    tables: Tables | None = None
    batches: tuple[int, ...] | None = None
    weighing: Weighing = field(default_factory=Weighing)
    incumbent: tuple[Pipeline | None, StageTable | None, float] = (None, None, np.inf)
    before: float = np.inf
    root: float = 0.0
    unseen: float = 0.0
    ceiling: float = np.inf
    jobs: list[Job] = field(default_factory=list)
    unopened: dict[int, float] = field(default_factory=dict)
    detours: dict[int, tuple[Detour, ...]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))

    @property
    def best(self) -> Pipeline | None:
        """The quickest pipeline so far."""
        return self.incumbent[0]

    @property
    def value(self) -> float:
        """Ticks of its step; infinite where there is none."""
        return self.incumbent[2]

    def run(self) -> MixedResult:
        """Search until the bounds meet, the budget is spent or, once there is a pipeline, Ctrl-C."""
        began, interrupted = time.monotonic(), False
        self.tables = self.tables or Tables(self.space)
        if self.devices is None:
            self.devices = self.space.devices
        try:
            in_time(self.budget.deadline, self._search)
        except KeyboardInterrupt:
            if self.best is None:
                raise
            interrupted = True
        return self._result(time.monotonic() - began, INTERRUPT if interrupted else self.budget.ended_by)

    def _search(self) -> None:
        priced = {batch: self._priced(batch) for batch in self.batches or self.space.batches()}
        self.speeds = Speed.by_batch(self.space, priced, self.devices)
        self.fluid = fluid_ticks(self.space, priced, self.speeds, self.weighing)
        self.counts["batches"] = len(priced)
        floor = self.unseen = self.root = min(self.fluid.values(), default=np.inf)
        last = min(self.beat, NEVER)
        ceiling = last if self.weighing.limits else min(last, FIRST_CEILING * floor)
        while np.isfinite(floor):
            self._under(ceiling)
            if self.value < ceiling or ceiling >= last or self.budget.over:
                break
            ceiling = min(last, NEXT_CEILING * ceiling) if ceiling < 1000 * floor else last

    @property
    def _open_bound(self) -> float:
        """The least bound of what was opened and of what was not, below the ceiling, in whole ticks, as steps are."""
        least = min([np.inf, *(job.bound for job in self.jobs), *self.unopened.values()])
        return min(self.value, self.beat, float(np.ceil(least)))

    def _result(self, seconds: float, ended_by: str) -> MixedResult:
        limit, bound = min(self.value, self.beat), self._open_bound
        over = self.unseen >= min(limit, NEVER)
        bound = bound if over else min(bound, self.unseen)
        proved = over and bound >= self.weighing.rounded(min(limit, NEVER))
        root, stopped = min(self.root, self.value), "" if proved else ended_by
        return MixedResult(*self.incumbent, bound, proved, self.counts, self.before, root, seconds, stopped)

    def _tell(self, stage: str) -> None:
        self.report(stage, self.value, min(self._open_bound, self.unseen))

    def _priced(self, batch: int) -> list[Priced]:
        found = self.tables.priced(batch, self.budget)
        ways = sum(p.ways for p in found)
        self.counts["ways"] += ways
        self.counts["ways_useless"] += ways - sum(len(p.setups) for p in found)
        return found

    def _under(self, ceiling: float) -> None:
        """Everything that may last less than ``ceiling`` ticks."""
        self.unopened = dict(self.fluid)
        self.jobs, late = [], []
        self.ceiling = self.unseen = ceiling
        for batch in sorted(self.fluid, key=self._promise):
            if self.fluid[batch] >= self.limit:
                self.counts["batches_by_bound"] += 1
                del self.unopened[batch]
            elif not self.budget.over:
                late += self._open(batch)
            if self.value < np.inf:
                late = self._open_late(late)
        self._open_late(late)
        self.root = min([ceiling, *(job.bound for job in self.jobs), *self.unopened.values()])
        while not self.budget.over and (waiting := [job for job in self.jobs if self._waits(job)]):
            self._go_on(min(waiting, key=lambda job: (job.width > 0 or not self._far(job), job.bound)))

    def _go_on(self, job: Job) -> None:
        """The next step of a job."""
        if job.tighter(self.weighing.most_ticks(self.limit)):
            self.budget.spend(len(job.relaxations[0].stages) / STAGES_A_UNIT)
        elif job.divisible and job.width > 0 and not (job.whole and job.literals <= FEW_LITERALS):
            if self._far(job) and job.dear and not job.probed:
                self._probe(job)
            else:
                self._divide(job)
        elif job.wider(MOST_WIDTH):
            self._widen(job, job.width * WIDER or FIRST_WIDTH)
        elif job.left is not None and (self.limit < job.left.incumbent or self._learned(job)):
            self._widen(job, job.width)
        else:
            job.solves += 1
            self._certify(job, FIRST_SOLVE_UNITS if job.solves == 1 else np.inf)

    def _waits(self, job: Job) -> bool:
        """Whether there is more to search of a job; one above the limit is closed."""
        if job.bound >= self.limit and job.table is not None:
            job.close(job.bound)
        return job.table is not None and (job.wider(MOST_WIDTH) or (job.whole and job.solves < 2))

    @property
    def limit(self) -> float:
        """What a plan must be less than, in ticks; none lies between two whole ones."""
        return min(self.weighing.less(self.value), self.ceiling)

    def _promise(self, batch: int) -> float:
        """Where a good plan is likely: enough micro-batches for a handful of stages, and not many more."""
        return abs(float(np.log(self.space.rounds(batch) / USUAL_MICRO_BATCHES)))

    def _open(self, batch: int) -> list[tuple[Slots, int, int]]:
        """Bounds the pipelines with fewer stages than micro-batches, searched once where there is no incumbent.

        Returns the others, if there are.
        """
        m, model = self.space.rounds(batch), self.space.machine.model
        most = self.weighing.most_ticks(self.limit)
        deepest = self.speeds[batch].deepest(most, m, min(model.layers, int(self.devices.sum())))
        if deepest >= 2:
            slots = self.tables.slots(batch, most).weighed(self.weighing)
            if m > 2 and (job := self._add_job(slots, 2, min(deepest, m - 1))).table and self.value == np.inf:
                self._widen(job)
            if deepest >= m:
                return [(slots, max(2, m), deepest)]
        del self.unopened[batch]
        return []

    def _open_late(self, late: list[tuple[Slots, int, int]]) -> list[tuple[Slots, int, int]]:
        """Bounds pipelines with no fewer stages than micro-batches, dear without an incumbent; returns those left."""
        for k, (slots, least, most) in enumerate(late):
            if self.budget.over:
                return late[k:]
            self._add_job(slots, least, most)
            del self.unopened[slots.table.batch]
        return []

    def _add_job(self, slots: Slots, least: int, most: int) -> Job:
        """A job with its root bound; closed where that suffices. Before there is an incumbent, one is looked for."""
        floor, ceiling, outline = self.fluid[slots.table.batch], self.ceiling, self._outline(slots, least, most)
        first = self.value == np.inf
        for eager in EAGER if first and not self.weighing.limits else EAGER[-1:]:
            above = eager * max(floor, outline.bound)
            job = self._eager(outline, min(ceiling, above), floor)
            if self.value < np.inf or above >= ceiling:
                break
        if first and self.value < np.inf:
            job = self._outline(slots, least, most).job(self.limit, floor)
        self.jobs.append(job)
        self.counts["jobs"] += 1
        if job.bound >= self.limit:
            self.counts["jobs_by_bound"] += 1
            job.close(job.bound)
        return job

    def _outline(self, slots: Slots, least: int, most: int) -> Outline:
        speed, floor = self.speeds[slots.table.batch], self.fluid[slots.table.batch]
        target = min(self.limit, 1e3 * floor)
        start = target * speed.per_device / speed.total
        outline = Outline.of(slots, self.devices, (least, most), start, self.limit, target)
        self.budget.spend(len(outline.relaxed.stages) / STAGES_A_UNIT)
        return outline

    def _eager(self, outline: Outline, ceiling: float, floor: float) -> Job:
        """The job of an outline below a ceiling; where that is a lower one than all jobs have, a plan is looked for."""
        self.ceiling, before = ceiling, self.ceiling
        try:
            job = outline.job(self.limit, floor)
            self.budget.spend(len(outline.relaxed.stages) / STAGES_A_UNIT)
            if ceiling < before and job.bound < self.limit:
                self._widen(job)
        finally:
            self.ceiling = before
        return job

    def _far(self, job: Job) -> bool:
        """Whether a job's bound is far below the limit: then a better plan is looked for first."""
        return self.limit - job.bound > PROBED * self.limit

    def _probe(self, job: Job) -> None:
        """Raises a job's bound nearer to the limit, if nothing of it is below that: few stages are left there."""
        aim, before = job.bound + AIM * (self.limit - job.bound), self.ceiling
        self.ceiling = aim
        try:
            parts = self._divided(job, leaning_bands)
            while not self.budget.over and (open_ones := [it for it in parts if self._is_probed(it)]):
                part = min(open_ones, key=lambda it: it.bound)
                self._widen(part, part.width * WIDER or FIRST_WIDTH)
        finally:
            self.ceiling = before
        job.bound = max(job.bound, min([aim, *(it.bound for it in parts)]))
        job.probed = job.bound < aim
        self._tell("bounding")

    def _is_probed(self, part: Job) -> bool:
        """Whether a band is worth more labels in a probe."""
        return part.bound < self.limit and part.wider(MOST_PROBED)

    def _divided(self, job: Job, bands: Callable) -> list[Job]:
        """The bands of a job."""
        found = divided(job, self.devices, self.limit, self.budget.deadline, bands)
        self.counts["bands"] += len(found)
        self.budget.spend((1 + len(found)) * len(job.relaxations[0].stages) / CUT_A_UNIT)
        return found

    def _divide(self, job: Job) -> None:
        """Puts bands in the place of a job."""
        self.jobs = [it for it in self.jobs if it is not job] + self._divided(job, held_bands)

    def _widen(self, job: Job, width: int = FIRST_WIDTH) -> None:
        """Search a job with as many labels; its bound rises, the incumbent may fall."""
        search = job.search(self.limit, self._known(job))
        found = search.run(width, self.budget.deadline)
        job.width, job.merged = width, found.merged
        self.counts["labels"] += found.labels
        self.budget.spend(found.labels / LABELS_A_UNIT + len(job.relaxations[0].stages) / STAGES_A_UNIT)
        job.bound, job.whole = max(job.bound, min(found.bound, self.limit)), job.whole or not found.dropped
        closed = sorted((it for it in found.closed if it[0] < self.limit), key=lambda it: it[0])
        if closed:
            _, several, run = zip(*closed[:MOST_TRIED], strict=True)
            job.seen = self._try(job.table, search.slots, list(several), list(run))
        if not found.dropped:
            search.restrict()
            job.left, job.lengths = search, {}
            for bound, stages, _ in found.closed:
                job.lengths[len(stages)] = min(bound, job.lengths.get(len(stages), np.inf))
        self._tell("bounding")

    def _learned(self, job: Job) -> bool:
        """Whether there are detours that a job's last search did not know; of what that saw, some may be new.

        So often at most: of more than are kept, those that go may be found again and again.
        """
        if job.lessons >= MOST_DETOURS:
            return False
        job.lessons += 1
        batch, m = job.table.batch, job.table.micro_batches
        for pipeline in job.seen:
            detour = detour_of(durations(job.table, pipeline), m)
            if detour is not None and detour not in self._known(job):
                self.detours[batch] = (*self._known(job), detour)[-MOST_DETOURS:]
        self._count_pipelines(len(job.seen))
        job.seen = []
        return job.left.detours != self._known(job)

    def _known(self, job: Job) -> tuple[Detour, ...]:
        """Detours of pipelines with a job's micro-batches."""
        return self.detours.get(job.table.batch, ())

    def _try(
        self, table: StageTable, slots: Slots, several: list[Chosen], run: list[tuple[Way, ...]]
    ) -> list[Pipeline]:
        """Take the best of several for the incumbent where it is better; then, or where it is short, try its
        neighbours. Returns the first ones, each as good as its ends make it. ``run`` are ways to run them."""
        run = run if self.weighing.counts else []
        each = quickest(table, slots, several[:MOST_ENDS], run[:MOST_ENDS])
        least = min(value for value, _ in each)
        each += quickest(table, slots, several[MOST_ENDS:], run[MOST_ENDS:], least)
        best = min(range(len(each)), key=lambda k: each[k][0])
        self._count_pipelines(len(each))
        if self._take(table, *each[best]) or len(several[best]) <= FEW:
            better, tried = improved(table, slots, self.devices, several[best], each[best])
            self._count_pipelines(tried)
            self._take(table, *better)
        seen = []
        for stages, (value, pipeline) in zip(several[:MOST_ENDS], each, strict=False):
            ends, tried = with_other_ends(table, slots, stages, pipeline, value)
            self._count_pipelines(tried)
            self._take(table, *ends)
            seen.append(ends[1])
        return seen

    def _count_pipelines(self, tried: int) -> None:
        self.counts["pipelines"] += tried
        self.budget.spend(tried / PIPELINES_A_UNIT)

    def _take(self, table: StageTable, value: float, pipeline: Pipeline) -> bool:
        """Take a pipeline for the incumbent where it is better."""
        if value < min(self.weighing.less(self.value), self.beat):
            self.incumbent = pipeline, table, float(value)
            return True
        return False

    def _certify(self, job: Job, most_units: float) -> None:
        """CP-SAT on a job that was searched whole and whose bound is still below the incumbent."""
        if job.left is None or job.bound >= self.limit:
            return
        self.before = min(self.before, self.value)
        budget = Budget(self.budget.deadline, min(self.budget.left_units, most_units))
        for length in sorted(job.lengths, key=job.lengths.get):
            job.lengths[length] = self._certified(job, length, job.lengths[length], budget)
        self.budget.spend(budget.spent)
        job.bound = max(job.bound, min([self.limit, *job.lengths.values()]))
        self._tell("proving")

    def _certified(self, job: Job, length: int, known: float, budget: Budget) -> float:
        """The bound of a job's pipelines of one length; the incumbent where CP-SAT proved it."""
        from planner.search.mixed.certificate import certify, open_columns

        if known >= self.limit or budget.over:
            return min(known, self.limit)
        columns = open_columns(job.left, length)
        if columns is None:
            return self.limit
        if len(columns) > MOST_LITERALS:
            return known
        answer = certify(job.table, self.devices, length, columns, known, self.limit, budget, self.weighing)
        self.counts["jobs_to_solver"] += 1
        self.counts["literals"] += answer.literals
        self.counts["solver_rounds"] += answer.rounds
        self.counts["solver_cuts"] += answer.cuts
        if answer.best is not None:
            self._take(job.table, float(values(job.table, self.weighing, [answer.best])[0]), answer.best)
        return self.limit if answer.proved else answer.bound
