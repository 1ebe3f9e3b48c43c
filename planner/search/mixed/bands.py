"""Bands: pipelines by what the slowest stage adds to the first and last micro-batch's way through all stages.

With fewer stages than micro-batches a step lasts ``A_pp + M`` or more, ``M = max_d [A_d + (m - 1 - d) t_d]``
(:mod:`planner.search.mixed.relaxation`). Where ``floor <= M <= cap``, a stage must afford

    least A_(d - 1)  +  2 hop_d  +  (m - d) t_d  <=  cap

so that few stages are left, and the step is ``floor + A_pp`` or more. No mean stands for the slowest stage then: what
it leaves out, because layers are whole, a narrow band does not. Bands are halved, the one of the least bound first.
To be exact, ``M`` is what is left of the step without ``A_pp`` and the first stage's tail: no less than those maxima.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.search.mixed.relaxation import Relaxation
from planner.search.mixed.stages import Stages

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
NARROWEST = 1e-3
"""Width of the narrowest band, as a part of the step to beat."""
MOST_BANDS = 16
STEPS, FEW_STEPS = 20, 10


@dataclass
class Band:
    """Stages of pipelines whose ``M`` lies in ``floor`` to ``cap``, their relaxations and the bound of their steps.

    The first relaxation does not lean on a mean.
    """

    relaxations: list[Relaxation]
    floor: float
    cap: float
    bound: float


def bands_of(stages: Stages, devices: Ints, start: Floats, limit: float, deadline: float) -> list[Band]:
    """Bands that may hold a pipeline quicker than ``limit``: together they hold all that are."""
    whole = _band(stages, devices, start, 0.0, limit, limit)
    least = Relaxation(whole.relaxations[0].stages, devices, "waiting").bound(start, limit, STEPS) * (1 - 1e-12)
    cap = limit - max(0.0, whole.bound)
    if least >= cap:
        return []
    first = _band(stages, devices, start, max(0.0, least), cap, limit)
    return halved(first, lambda it: _halves(it, devices, start, limit), NARROWEST, limit, deadline)


def halved(
    first: Band, halves: Callable[[Band], list[Band]], narrowest: float, limit: float, deadline: float
) -> list[Band]:  # fmt: skip
    """Bands below ``limit`` that ``first`` is cut into, each time the one of the least bound that is wide enough.

    None is cut that is narrower than that part of ``limit``.
    """
    open_ones, count = [first], 1
    while count < MOST_BANDS and time.monotonic() < deadline:
        open_ones = sorted((it for it in open_ones if it.bound < limit), key=lambda it: it.bound)
        wide = [k for k, it in enumerate(open_ones) if it.cap - it.floor > narrowest * limit]
        if not wide:
            break
        open_ones += halves(open_ones.pop(wide[0]))
        count += 1
    return [it for it in open_ones if it.bound < limit]


def _halves(it: Band, devices: Ints, start: Floats, limit: float) -> list[Band]:
    """A band's lower and upper half. The upper one keeps its prices: only its floor is higher."""
    middle, relaxed = (it.floor + it.cap) / 2, it.relaxations[0]
    lower = _band(relaxed.stages, devices, start, it.floor, middle, limit)
    upper = Relaxation(relaxed.stages, devices, "band", middle)
    upper.mus, upper.ahead = relaxed.mus, relaxed.ahead
    return [lower, Band([upper], middle, it.cap, it.bound + middle - it.floor)]


def _band(stages: Stages, devices: Ints, start: Floats, floor: float, cap: float, limit: float) -> Band:
    """A band with its bound, stages left out that reach the cap."""
    plain = Relaxation(stages, devices, "band")
    behind = plain.behind(stages.time + stages.hop)
    rounds = stages.table.micro_batches - stages.depth
    waiting = behind[stages.depth - 1, stages.j] + stages.hop + rounds * stages.time
    kept = Relaxation(stages.take(waiting * (1 - 1e-12) <= cap), devices, "band", floor)
    bound = kept.bound(start, limit, STEPS) * (1 - 1e-12)
    if bound >= limit:
        return Band([kept], floor, cap, bound)
    kept = Relaxation(kept.stages.take(kept.through() * (1 - 1e-12) < limit), devices, "band", floor)
    bound = max(bound, kept.bound(start, limit, FEW_STEPS) * (1 - 1e-12))
    return Band([kept], floor, cap, bound)
