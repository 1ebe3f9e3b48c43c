"""Bands whose bounds lean on the mean of their stages: for limits that plain ones stay far below.

As :mod:`planner.search.mixed.bands`, but what a stage must afford counts the work behind it as part of the pipeline,
for the least ``A_(d - 1)`` may take devices that the stages in front then lack. A stage is left out where, for some
``hold >= 0``, no pipeline with it has a bound below the limit that ``hold`` times what it affords too much is added to,

    hold ( A_(d - 1)  +  2 hop_d  +  (m - d) t_d  -  cap )

which is 0 at most in the band: the stages behind count ``1 + hold`` times in the shortest path, those in front once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.search.mixed.bands import Band, halved
from planner.search.mixed.relaxation import Relaxation
from planner.search.mixed.stages import Stages

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
NARROWEST = 1.5e-3
"""Width of the narrowest band, as a part of the step to beat."""
STEPS = 20
LEANS, LEAST_LEAN = (0.0, 1.0, 2.0), 0.15
HOLDS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
TURNS, WORTH = 6, 0.97
"""How often stages are left out at most, and the part that stays which is not worth another turn."""


def leaning_bands(stages: Stages, devices: Ints, start: Floats, limit: float, deadline: float) -> list[Band]:
    """Bands that may hold a pipeline quicker than ``limit``: together they hold all that are."""
    starts = {lean: start * max(LEAST_LEAN, lean) for lean in LEANS}
    whole = _band(stages, devices, starts, 0.0, limit, limit)
    left = whole.relaxations[0].stages
    least = Relaxation(left, devices, "waiting").bound(start, limit, STEPS) * (1 - 1e-12)
    cap = limit - max(0.0, whole.relaxations[0].best * (1 - 1e-12))
    if whole.bound >= limit or least >= cap:
        return []
    first = _band(left, devices, starts, max(0.0, least), cap, limit)
    return halved(first, lambda it: _halves(it, devices, starts, limit), NARROWEST, limit, deadline)


def _halves(it: Band, devices: Ints, starts: dict[float, Floats], limit: float) -> list[Band]:
    """A band's lower and upper half, from the first prices on: its own may be far from theirs."""
    middle, stages = (it.floor + it.cap) / 2, it.relaxations[0].stages
    ends = (it.floor, middle), (middle, it.cap)
    return [_band(stages, devices, starts, *each, limit) for each in ends]


def _band(
    stages: Stages, devices: Ints, starts: dict[float, Floats], floor: float, cap: float, limit: float
) -> Band:  # fmt: skip
    """A band with its bound, stages left out that no pipeline in it below the limit has; prices by lean to start at."""
    plain = Relaxation(stages, devices, "band")
    behind = plain.behind(stages.time + stages.hop)
    waiting = behind[stages.depth - 1, stages.j] + _waiting(stages)
    stages, bound, starts = stages.take(waiting * (1 - 1e-12) <= cap), 0.0, dict(starts)
    for _ in range(TURNS):
        relaxations = [_leaning(stages, devices, lean, floor, cap) for lean in LEANS]
        for it in relaxations:
            bound = max(bound, it.bound(starts[it.lean], limit, STEPS) * (1 - 1e-12))
            starts[it.lean] = it.mus[0]
            if bound >= limit:
                return Band([it], floor, cap, bound)
        keep = _kept(relaxations, cap, limit)
        if keep.mean() > WORTH:
            break
        stages = stages.take(keep)
    return Band(relaxations, floor, cap, bound)


def _leaning(stages: Stages, devices: Ints, lean: float, floor: float, cap: float) -> Relaxation:
    """A band's relaxation that leans on the mean so often."""
    return Relaxation(stages, devices, "band", (1 - lean) * (floor if lean <= 1 else cap), lean=lean)


def _waiting(stages: Stages) -> Floats:
    """What a stage's own time adds to the work behind it on the path that has most micro-batches there."""
    return stages.hop + (stages.table.micro_batches - stages.depth) * stages.time


def _kept(relaxations: list[Relaxation], cap: float, limit: float) -> NDArray[np.bool_]:
    """Stages that a pipeline in a band below the limit may have."""
    keep = np.ones(len(relaxations[0].stages), dtype=bool)
    for it in relaxations:
        keep &= it.through() * (1 - 1e-12) < limit
    best = max(relaxations, key=lambda it: it.best)
    for hold in HOLDS:
        keep &= _holding(best, hold, cap) < limit
    return keep


def _holding(it: Relaxation, hold: float, cap: float) -> Floats:
    """The least bound with each stage in it and with ``hold`` times what it affords too much."""
    stages, mu, cost = it.stages, it.mus[0], it.cost(it.mus[0])
    behind = it.behind(cost + hold * (stages.time + stages.hop))[stages.depth - 1, stages.j]
    total = cost + behind + it.ahead[0][stages.depth, stages.i] - float(mu @ it.there) + it.floor
    return total * (1 - 1e-12) + hold * (_waiting(stages) * (1 - 1e-12) - cap)
