"""Jobs: pipelines of one global micro-batch that are bounded and searched together, and the bands they are cut into."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.search.mixed.bands import held_bands
from planner.search.mixed.detours import Detour
from planner.search.mixed.labels import LabelSearch
from planner.search.mixed.packed import Packed, packed
from planner.search.mixed.pipelines import Pipeline
from planner.search.mixed.relaxation import Kind, Relaxation
from planner.search.mixed.stages import Stages
from planner.search.mixed.table import StageTable

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
DEAR_STAGES = 60_000
TIGHTER = 0.98
"""Part of what pipelines might wait together at which they are bounded again."""


@dataclass
class Job:
    """Pipelines of one table, in one ``band`` of their ``M`` once they are cut (:mod:`planner.search.mixed.bands`).

    ``counted`` are its devices, ``left`` is a search that left nothing out, ``lengths`` the least bound that it met by
    number of stages, ``seen`` the best pipelines that the last search closed, ``lessons`` how often their detours were
    looked at. ``others`` bound what has a limit beside what is minimised.
    """

    table: StageTable | None
    relaxations: list[Relaxation]
    bound: float
    band: tuple[float, float] = (0.0, np.inf)
    counted: Packed | None = None
    width: int = 0
    merged: bool = False
    whole: bool = False
    solves: int = 0
    probed: bool = False
    lessons: int = 0
    left: LabelSearch | None = None
    lengths: dict[int, float] = field(default_factory=dict)
    seen: list[Pipeline] = field(default_factory=list)
    others: list[Relaxation] = field(default_factory=list)

    @property
    def divisible(self) -> bool:
        """Whether it can be cut into bands."""
        return self.band[1] == np.inf and self.relaxations[0].kind == "returning"

    @property
    def dear(self) -> bool:
        """Whether it has so many stages that to cut it into bands is dear: then it is probed first."""
        return len(self.relaxations[0].stages) > DEAR_STAGES

    def wider(self, most: int) -> bool:
        """Whether a search with more labels, below ``most``, may say more."""
        return (self.merged or not self.whole) and self.width < most

    @property
    def literals(self) -> int:
        """Stages that a search left which left nothing out."""
        return self.left.literals if self.left is not None else 0

    def search(self, limit: float, detours: tuple[Detour, ...] = ()) -> LabelSearch:
        """A search for its pipelines below ``limit``, of what the one before left where that left nothing out.

        Devices of a band are counted once a narrow search was not enough.
        """
        if self.left is None:
            if self.width > 0 and self.band[1] < np.inf and self.counted is None:
                self.counted = packed(self.relaxations[0])
            beside = {"counted": self.counted, "detours": detours, "others": self.others}
            found = LabelSearch(self.relaxations, limit, *self.band, **beside)
        else:
            found = self.left
            found.know(limit, detours)
        found.least = 0.0 if found.weighing.minimised else self.bound
        return found

    def tighter(self, limit: float) -> bool:
        """Whether its pipelines may wait together for much less than when they were bounded: then that is done again.

        ``limit`` are ticks that their steps last less than.
        """
        stages = self.relaxations[0].stages if self.left is None else self.left.stages
        if not stages.slots.weighing.waits or limit >= TIGHTER * stages.upto:
            return False
        stages = dataclasses.replace(stages, upto=limit).within()
        self.relaxations, self.left, self.counted = [it.of(stages, limit) for it in self.relaxations], None, None
        best = max(max(it.best * (1 - 1e-12), it.least_wait) for it in self.relaxations)
        self.bound, self.whole, self.width = max(self.bound, min(best, limit)), False, 0
        return True

    def close(self, bound: float) -> None:
        """Nothing of it is below ``bound``: it is done, and its tables go."""
        self.bound, self.whole, self.table, self.left, self.counted = bound, True, None, None, None
        self.relaxations, self.lengths, self.seen, self.others = [], {}, [], []


def job_of(
    stages: Stages, devices: Ints, start: Floats, limit: float, floor: float, most: int,
    others: list[Relaxation] | None = None,
) -> Job:  # fmt: skip
    """All pipelines of ``stages``, none longer than ``most``; the second relaxation only where the first does not do.

    ``floor`` is a bound known before; bounds need not pass ``limit``. ``others`` are of these stages and more.
    """
    relaxations, bound, m = [], floor, stages.table.micro_batches
    kinds: tuple[Kind, ...] = ("returning", "staying") if most < m else ("staying",)
    for kind in kinds:
        one = Relaxation(stages, devices, kind)
        bound = max(bound, one.bound(start, limit) * (1 - 1e-12), one.least_wait)
        relaxations.append(one)
        if bound >= limit:
            break
    return Job(stages.table, relaxations, bound, others=others or [])


def divided(job: Job, devices: Ints, limit: float, deadline: float, bands: Callable = held_bands) -> list[Job]:
    """The bands that a job consists of, as far as they may hold a pipeline below ``limit``."""
    stages = job.relaxations[0].stages.take(LabelSearch(job.relaxations, limit).alive)
    found = bands(stages, devices, job.relaxations[0].mus[0], limit, deadline)
    return [
        Job(job.table, it.relaxations, max(job.bound, it.bound), (it.floor, it.cap), others=job.others) for it in found
    ]
