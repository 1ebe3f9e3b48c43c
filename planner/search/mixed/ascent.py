"""Where a concave bound is highest: cutting planes, looked at in a box around the best prices so far.

    value(mu) <= value(mu_k) + slope_k . (mu - mu_k)        every mu_k that was asked, slope_k a supergradient there

GLOP finds the ``mu >= 0`` of a box where the least of these is highest, and that is asked next. The box grows where the
answer is as good as was hoped, else it shrinks. Bounds of paths through stages have few prices, and a few cuts tell
where they are highest, which steps along one slope at a time do not: those go to and fro between two paths.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
REACH, GROWTH, SHRINKAGE = 0.5, 2.0, 0.5
WIDER, WIDEST = 16.0, 1e4
"""How much wider a box is looked at that promises nothing, up to so many times the prices."""
HOPED = 0.3
"""Part of what was hoped for that lets the box grow."""
LEAST_GAIN = 2e-6
"""What is hoped for that is not worth asking, as a part of the value."""


def climbed(ask: Callable[[Floats], tuple[float, Floats]], start: Floats, target: float, steps: int) -> None:
    """Asks ``ask`` for value and slope at ``steps`` prices at most, from ``start`` on; a value of ``target`` will do.

    The first box reaches half of each price up and down, of small ones as far as of a thousandth of the largest.
    """
    unit = np.maximum(start, 1e-3 * start.max()) if start.any() else np.ones(len(start))
    best, slope = ask(start)
    if not np.isfinite(best) or best >= target:
        return
    cuts, at, reach = _Cuts(unit, best, slope), start / unit, REACH
    cuts.add(best, slope, at)
    for _ in range(steps - 1):
        hoped, mu = cuts.highest(at, reach)
        while hoped <= best + LEAST_GAIN * abs(best) and reach < WIDEST:
            reach *= WIDER
            hoped, mu = cuts.highest(at, reach)
        if hoped <= best + LEAST_GAIN * abs(best):
            break
        value, slope = ask(mu * unit)
        cuts.add(value, slope, mu)
        reach *= GROWTH if value >= best + HOPED * (hoped - best) else SHRINKAGE
        if value > best:
            best, at = value, mu
        if best >= target:
            break


class _Cuts:
    """The cuts as a linear program over ``mu / unit``; values count from ``origin``, in steps of the first slope."""

    def __init__(self, unit: Floats, origin: float, slope: Floats) -> None:
        from ortools.linear_solver import pywraplp

        self.unit, self.origin = unit, origin
        self.grain = max(float(np.abs(slope * unit).max(initial=0.0)), 1e-6 * abs(origin), 1e-9)
        self.solver = pywraplp.Solver.CreateSolver("GLOP")
        infinity = self.solver.infinity()
        self.mu = [self.solver.NumVar(0.0, infinity, "") for _ in unit]
        self.top = self.solver.NumVar(-infinity, infinity, "")
        self.solver.Maximize(self.top)

    def add(self, value: float, slope: Floats, at: Floats) -> None:
        """One more."""
        rise = slope * self.unit / self.grain
        cut = self.solver.Constraint(-self.solver.infinity(), (value - self.origin) / self.grain - float(rise @ at))
        cut.SetCoefficient(self.top, 1.0)
        for mu, up in zip(self.mu, rise.tolist(), strict=True):
            cut.SetCoefficient(mu, -up)

    def highest(self, at: Floats, reach: float) -> tuple[float, Floats]:
        """The value that the cuts allow within ``reach`` of some prices, and where."""
        for mu, middle in zip(self.mu, at.tolist(), strict=True):
            mu.SetBounds(max(0.0, middle - reach * max(1.0, middle)), middle + reach * max(1.0, middle))
        if self.solver.Solve() != self.solver.OPTIMAL:
            return -np.inf, at
        found = np.array([mu.solution_value() for mu in self.mu])
        return self.origin + self.grain * self.top.solution_value(), np.maximum(found, 0.0)
