"""The outline of pipelines: their bound, and which stages may be in one that is quick enough, before memory is asked.

Every stage is taken to be as quick as with nothing recomputed, whatever its depth: one small table serves all depths.
What its bounds leave, a few stages in a hundred, is then priced as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.search.mixed.jobs import Job, job_of
from planner.search.mixed.relaxation import Kind, Relaxation
from planner.search.mixed.stages import Slots, Stages

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
STEPS, PRICES = 16, 3
"""Prices asked for a bound, and of these the best that say which stages may be in a quick pipeline."""


def within_other(stages: Stages, devices: Ints, kind: Kind, start: Floats) -> tuple[Stages, Floats, list[Relaxation]]:
    """The stages that a pipeline within the limit on what is not minimised may have, what the time of each could be
    longer, and what says so, priced. Without such a limit all of them, any time, and nothing.
    """
    below = stages.slots.weighing.below
    if below == np.inf:
        return stages, np.full(len(stages), np.inf), []
    other = Relaxation(stages, devices, kind, other=True)
    other.bound(start, below, STEPS)
    spare = (below - other.through(PRICES) * (1 - 1e-12)) / np.maximum(other.weight, 1e-9)
    return stages.take(spare > 0), spare[spare > 0], [other]


def _kind(most: int, slots: Slots) -> Kind:
    """The sum that bounds pipelines of ``most`` stages or fewer."""
    return "returning" if most < slots.table.micro_batches else "staying"


@dataclass
class Outline:
    """Pipelines of one table of ``most`` stages or fewer and their bound, which need not pass ``target``.

    ``room`` is what the time of each stage could be longer for what is not minimised to stay below its limit.
    """

    slots: Slots
    devices: Ints
    most: int
    start: Floats
    relaxed: Relaxation
    bound: float
    target: float
    room: Floats

    @cached_property
    def through(self) -> Floats:
        """The least bound with each stage in it."""
        if self.bound >= self.target:
            return np.full(len(self.relaxed.stages), self.bound)
        return self.relaxed.through(PRICES) * (1 - 1e-12)

    @staticmethod
    def of(
        slots: Slots, devices: Ints, lengths: tuple[int, int], start: Floats, limit: float, target: float
    ) -> Outline:
        """The outline of pipelines below ``limit`` of ``lengths[0]`` to ``lengths[1]`` stages.

        Bounds need not pass ``target``.
        """
        quick = Stages.quick(slots, *lengths, slots.weighing.most_ticks(limit))
        kind = _kind(lengths[1], slots)
        quick, room, _ = within_other(quick.take((slots.size <= devices[slots.part])[quick.slot]), devices, kind, start)
        relaxed = Relaxation(quick, devices, kind)
        bound = max(relaxed.bound(start, target, STEPS) * (1 - 1e-12), relaxed.least_wait)
        return Outline(slots, devices, lengths[1], start, relaxed, bound, target, room)

    def job(self, limit: float, floor: float) -> Job:
        """The job of its pipelines below ``limit``; ``floor`` is a bound known before."""
        quick, spare = self.relaxed.stages, (limit - self.through) / np.maximum(self.relaxed.weight, 1e-9)
        spare = np.minimum(spare, self.room)
        alive = np.flatnonzero(spare > 0)
        stages = quick.take(alive).exact(quick.time[alive] + spare[alive]).within()
        start = np.maximum(self.relaxed.mus[0], 1e-3 * self.relaxed.starting(self.start))
        stages, _, others = within_other(stages, self.devices, _kind(self.most, self.slots), start)
        return job_of(stages, self.devices, start, limit, max(floor, self.bound), self.most, others)
