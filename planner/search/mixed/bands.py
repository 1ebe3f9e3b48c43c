"""Bands: pipelines by what the slowest stage adds to the first and last micro-batch's way through all stages.

With fewer stages than micro-batches a step lasts ``A_pp + M`` or more, ``M = max_d [A_d + (m - 1 - d) t_d]``
(:mod:`planner.search.mixed.relaxation`). Where ``floor <= M <= cap``, a stage must afford

    A_(d - 1)  +  2 hop_d  +  (m - d) t_d  <=  cap

so that few stages are left, and the step is ``floor + A_pp`` or more. No mean stands for the slowest stage then: what
it leaves out, because layers are whole, a narrow band does not. Bands are halved, the one of the least bound first.
To be exact, ``M`` is what is left of the step without ``A_pp`` and the first stage's tail: no less than those maxima.

The least ``A_(d - 1)`` of any stages behind may take devices that the stages in front then lack. So a stage is left
out too where, for some ``hold >= 0``, no pipeline with it has a bound below the limit that ``hold`` times what it
affords too much is added to,

    hold ( A_(d - 1)  +  2 hop_d  +  (m - d) t_d  -  cap )

which is 0 at most in the band: the stages behind count ``1 + hold`` times in the shortest path, those in front once.

Bounds may lean on the mean of the stages as well. That is dear, and worth it where the limit is far above what is
known: ``leaning_bands`` is for probes, ``held_bands`` for what labels search to the end.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.search.mixed.relaxation import Relaxation
from planner.search.mixed.stages import Stages

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
MOST_BANDS = 16
STEPS = 20
TURNS, WORTH = 6, 0.97
"""How often stages are left out at most, and the part that stays which is not worth another turn."""


@dataclass
class Band:
    """Stages of pipelines whose ``M`` lies in ``floor`` to ``cap``, their relaxations and the bound of their steps.

    The first relaxation does not lean on a mean.
    """

    relaxations: list[Relaxation]
    floor: float
    cap: float
    bound: float


@dataclass(frozen=True)
class Cutting:
    """How bands are cut: how often relaxations ``lean`` on the mean, not at all first, and the ``holds``.

    None is cut that is narrower than ``narrowest``, a part of the limit, or has ``few`` stages: labels are quicker.
    """

    leans: tuple[float, ...]
    holds: tuple[float, ...]
    narrowest: float
    few: int


LEANING = Cutting((0.0, 1.0), (0.5, 1.0, 2.0, 4.0, 8.0, 16.0), 1.5e-3, 0)
HELD = Cutting((0.0,), (2.0,), 1e-3, 2_000)


def leaning_bands(stages: Stages, devices: Ints, start: Floats, limit: float, deadline: float) -> list[Band]:
    """As :func:`held_bands`, with bounds that lean on the mean of their stages and more of these left out."""
    return _Cut(devices, limit, LEANING).bands(stages, start, deadline)


def held_bands(stages: Stages, devices: Ints, start: Floats, limit: float, deadline: float) -> list[Band]:
    """Bands that may hold a pipeline quicker than ``limit``: together they hold all that are."""
    return _Cut(devices, limit, HELD).bands(stages, start, deadline)


@dataclass(frozen=True)
class _Cut:
    """Cuts stages into bands below a limit."""

    devices: Ints
    limit: float
    how: Cutting

    def bands(self, stages: Stages, start: Floats, deadline: float) -> list[Band]:
        """The bands; prices are looked for from ``start`` on."""
        starts = dict.fromkeys(self.how.leans, start)
        whole = self._band(stages, starts, 0.0, self.limit)
        left = whole.relaxations[0].stages
        least = Relaxation(left, self.devices, "waiting").bound(start, self.limit, STEPS) * (1 - 1e-12)
        cap = self.limit - max(0.0, whole.relaxations[0].best * (1 - 1e-12))
        if whole.bound >= self.limit or least >= cap:
            return []
        return self._halved(self._band(left, starts, max(0.0, least), cap), starts, deadline)

    def _halved(self, first: Band, starts: dict[float, Floats], deadline: float) -> list[Band]:
        """Bands below the limit that ``first`` is cut into, each time the one of the least bound that is worth it.

        Halves look for prices from the first ones on: a band's own may be far from theirs.
        """
        open_ones, count = [first], 1
        while count < MOST_BANDS and time.monotonic() < deadline:
            open_ones = sorted((it for it in open_ones if it.bound < self.limit), key=lambda it: it.bound)
            wide = [k for k, it in enumerate(open_ones) if self._wide(it)]
            if not wide:
                break
            it = open_ones.pop(wide[0])
            middle, stages = (it.floor + it.cap) / 2, it.relaxations[0].stages
            open_ones += [self._band(stages, starts, *ends) for ends in ((it.floor, middle), (middle, it.cap))]
            count += 1
        return [it for it in open_ones if it.bound < self.limit]

    def _wide(self, it: Band) -> bool:
        """Whether a band is worth halving."""
        return it.cap - it.floor > self.how.narrowest * self.limit and len(it.relaxations[0].stages) > self.how.few

    def _band(self, stages: Stages, starts: dict[float, Floats], floor: float, cap: float) -> Band:
        """A band with its bound, stages left out that no pipeline in it below the limit has."""
        behind = Relaxation(stages, self.devices, "band").behind(stages.time + stages.hop)
        waiting = behind[stages.depth - 1, stages.j] + _waiting(stages)
        stages, bound, starts = stages.take(waiting * (1 - 1e-12) <= cap), 0.0, dict(starts)
        for _ in range(TURNS):
            relaxations = [
                Relaxation(stages, self.devices, "band", (1 - lean) * floor, lean=lean) for lean in self.how.leans
            ]
            for it in relaxations:
                bound = max(bound, it.bound(starts[it.lean], self.limit, STEPS) * (1 - 1e-12))
                starts[it.lean] = it.mus[0]
                if bound >= self.limit:
                    return Band([it], floor, cap, bound)
            keep = self._kept(relaxations, cap)
            if keep.mean() > WORTH:
                break
            stages = stages.take(keep)
        return Band(relaxations, floor, cap, bound)

    def _kept(self, relaxations: list[Relaxation], cap: float) -> NDArray[np.bool_]:
        """Stages that a pipeline in a band below the limit may have."""
        keep = np.ones(len(relaxations[0].stages), dtype=bool)
        for it in relaxations:
            keep &= it.through() * (1 - 1e-12) < self.limit
        best = max(relaxations, key=lambda it: it.best)
        for hold in self.how.holds:
            keep &= _holding(best, hold, cap) < self.limit
        return keep


def _waiting(stages: Stages) -> Floats:
    """What a stage's own time adds to the work behind it on the path that has most micro-batches there."""
    return stages.hop + (stages.table.micro_batches - stages.depth) * stages.time


def _holding(it: Relaxation, hold: float, cap: float) -> Floats:
    """The least bound with each stage in it and with ``hold`` times what it affords too much."""
    stages, mu, cost = it.stages, it.mus[0], it.cost(it.mus[0])
    behind = it.behind(cost + hold * (stages.time + stages.hop))[stages.depth - 1, stages.j]
    total = cost + behind + it.ahead[0][stages.depth, stages.i] - float(mu @ it.there) + it.floor
    return total * (1 - 1e-12) + hold * (_waiting(stages) * (1 - 1e-12) - cap)
