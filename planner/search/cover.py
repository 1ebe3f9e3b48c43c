"""Points of a front, and which bound vectors they cover.

A plan has a vector ``(T, E, N)``: seconds and facility joules of a step, devices of the hosts in use. Point ``p``
covers a vector ``b`` to within ``eps`` where

    T_p <= (1 + eps) T_b      E_p <= (1 + eps) E_b      N_p <= N_b

Of many plans at once more may be known than the least of each: for some watts ``w`` a device, that of every plan
``E + w N T >= L``. What the points of at most ``N`` devices do not cover lies below and left of the corners between
them, ``(T, E)`` with the next point's ``T`` and the last one's ``E``, shrunk by ``1 + eps``. So all is covered where

    max over corners of min(T / T_b, E / E_b, (E + w N T) / L for every w) <= 1 + eps
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
    watts: tuple[float, ...] = ()
    """Watts a device of the sums whose least values bound vectors have after the first three."""

    def add(self, new: Point) -> None:
        """Note a plan, unless a point is as good in everything; points that it is as good as are dropped."""
        if not any(old.as_good(new) for old in self.points):
            self.points = [*(old for old in self.points if not new.as_good(old)), new]

    def covered(self, bounds: Floats) -> NDArray[np.bool_]:
        """Which bound vectors, ``[rows, 3]``, some point covers; or with more columns, as the module says, points."""
        return self.distances(bounds) <= 1 + self.eps

    def distances(self, bounds: Floats) -> Floats:
        """For each bound vector ``1 + eps`` with the least ``eps`` to within which points cover it."""
        least = np.full(len(bounds), np.inf)
        for devices in np.unique(bounds[:, 2]):
            mine = np.flatnonzero(bounds[:, 2] == devices)
            step_s, joules = self._corners(devices)
            with np.errstate(invalid="ignore"):
                ratio = np.minimum(step_s / bounds[mine, 0, None], joules / bounds[mine, 1, None])
                for watts, sums in zip(self.watts, bounds[mine, 3:].T, strict=False):
                    ratio = np.minimum(ratio, (joules + watts * devices * step_s) / sums[:, None])
            least[mine] = np.where(np.isnan(ratio), 0.0, ratio).max(axis=1)
        return least

    def _corners(self, devices: float) -> tuple[Floats, Floats]:
        """Seconds and joules of the corners between the points of at most so many devices; infinite at both ends."""
        seconds, joules = [], [np.inf]
        for point in sorted((p for p in self.points if p.devices <= devices), key=lambda p: p.vector):
            if point.joules < joules[-1]:
                seconds.append(point.step_s)
                joules.append(point.joules)
        return np.array([*seconds, np.inf]), np.array(joules)

    def known_s(self, bound: Floats, eps: float | None = None) -> float:
        """Seconds from which on plans above one bound vector are covered, to within ``eps``, whatever joules they need.

        Where ``eps`` is not given, it is the cover's.
        """
        eps = self.eps if eps is None else eps
        near = [p.step_s for p in self.points if p.joules <= (1 + eps) * bound[1] and p.devices <= bound[2]]
        return min(near, default=np.inf) / (1 + eps)
