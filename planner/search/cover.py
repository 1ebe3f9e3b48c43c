"""Points of a front, and which bound vectors they cover.

A plan has a vector ``(T, E, N)``: seconds and facility joules of a step, devices of the hosts in use. Point ``p``
covers a vector ``b`` to within ``eps`` where

    T_p <= (1 + eps) T_b      E_p <= (1 + eps) E_b      N_p <= N_b
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.search.engine import Kept

Floats = NDArray[np.float64]
ROUNDING = 1e-12


@dataclass(frozen=True)
class Point:
    """A plan: its seconds, joules and devices, and where it was found."""

    step_s: float
    joules: float
    devices: int
    kept: Kept

    @property
    def vector(self) -> tuple[float, float, float]:
        """``(T, E, N)``."""
        return self.step_s, self.joules, float(self.devices)

    def as_good(self, other: Point) -> bool:
        """Whether this one is as good as the other in everything."""
        return all(a <= b * (1 + ROUNDING) for a, b in zip(self.vector, other.vector, strict=True))


@dataclass
class Cover:
    """The points found so far, none as good as another in everything; ``eps`` is how near they must be."""

    eps: float
    points: list[Point] = field(default_factory=list)

    def add(self, new: Point) -> None:
        """Note a plan, unless a point is as good in everything; points that it is as good as are dropped."""
        if not any(old.as_good(new) for old in self.points):
            self.points = [*(old for old in self.points if not new.as_good(old)), new]

    def covered(self, bounds: Floats) -> NDArray[np.bool_]:
        """Which bound vectors, ``[rows, 3]``, some point covers."""
        return self.distances(bounds) <= 1 + self.eps

    def distances(self, bounds: Floats) -> Floats:
        """For each bound vector ``1 + eps`` with the least ``eps`` to within which a point covers it."""
        least = np.full(len(bounds), np.inf)
        for step_s, energy_j, devices in (p.vector for p in self.points):
            ratio = np.maximum(step_s / bounds[:, 0], energy_j / bounds[:, 1])
            least = np.minimum(least, np.where(devices <= bounds[:, 2], ratio, np.inf))
        return least

    def known_s(self, bound: Floats, eps: float | None = None) -> float:
        """Seconds from which on plans above one bound vector are covered, to within ``eps``, whatever joules they need.

        Where ``eps`` is not given, it is the cover's.
        """
        eps = self.eps if eps is None else eps
        near = [p.step_s for p in self.points if p.joules <= (1 + eps) * bound[1] and p.devices <= bound[2]]
        return min(near, default=np.inf) / (1 + eps)
