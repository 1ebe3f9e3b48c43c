"""What joules count for in a search over pipelines on hosts that are given: as ticks, beside those of the step.

    step + spent        spent = sum over stages of floor(joules / (watts of the hosts, idle) / tick)

times the idle watts is the energy of a step (:mod:`cost_models.mixed_power`), rounded down by less than a tick a stage:
what no sum goes below no energy does. One of ``step`` and ``step + spent`` is minimised, the other may have a limit.

Under limits on mean watts a step waits (:mod:`planner.search.mixed.waiting`): it lasts what its schedule does, or what
a stage by itself, its hosts and racks or all sites wait for, whichever is longer. Then ``step`` above is that maximum.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.search.mixed.table import NEVER

Floats = NDArray[np.float64]
SAME = 1e-12
"""Part of a sum with joules that tells no two pipelines apart: as much as these are rounded by, all in all."""


@dataclass(frozen=True)
class Weighing:
    """``ticks_a_joule`` is 0 where joules count for nothing. With ``minimised`` they are part of what a search makes
    small, and the step alone stays below ``below``; else the step is made small, and its sum with them stays below.

    With ``waits`` steps may wait for their watts: those of all sites for ``site`` ticks a joule of stages, and no less
    than any of ``lines`` adds up to, ``[lines, parts]`` ticks a joule of a stage by its part.
    """

    ticks_a_joule: float = 0.0
    minimised: bool = True
    below: float = np.inf
    waits: bool = False
    site: float = 0.0
    lines: Floats | None = field(default=None, compare=False)

    @property
    def counts(self) -> bool:
        """Whether joules count for anything."""
        return self.ticks_a_joule > 0 or self.waits

    @property
    def limits(self) -> bool:
        """Whether there is a limit beside what is minimised."""
        return self.below < np.inf

    def most_rate(self, part: int, alone: float) -> float:
        """The most ticks a joule of a stage that anything waits for, ``alone`` by itself."""
        return max(float(alone), float(self.lines[:, part].max(initial=0.0)) if self.waits else 0.0)

    @property
    def highest(self) -> float:
        """The most ticks a joule that stages wait for together."""
        return float(self.lines.max(initial=0.0)) if self.waits else 0.0

    def less(self, value: float) -> float:
        """What is less than ``value``: any whole tick, or where joules are minimised too, more than rounding."""
        return self.rounded(value) if self.counts and self.minimised else value - 0.5

    def rounded(self, value: float) -> float:
        """What a bound must reach to meet ``value``: all of it but for rounding where joules are minimised too."""
        return value * (1 - SAME) if self.counts and self.minimised else value

    def most_ticks(self, limit: float) -> float:
        """What the step alone is below, of what is minimised below ``limit``."""
        return min(limit, self.below)

    def spent(self, joules: Floats | float) -> Floats:
        """Whole ticks that some joules count for, rounded down, and ``NEVER`` at most, which nothing reaches."""
        return np.minimum(np.floor(np.asarray(joules, dtype=np.float64) * self.ticks_a_joule), NEVER)

    def at_least(self, step: float, joules: float) -> float:
        """What is minimised at least, of a schedule no shorter than ``step`` and stages of no fewer ``joules``."""
        spent = float(self.spent(joules)) if self.minimised else 0.0
        return max(step, self.site * joules * (1 - SAME)) + spent

    def value(self, step: Floats, spent: Floats) -> Floats:
        """What is minimised; infinite where the other is not below its limit."""
        value, other = (step + spent, step) if self.minimised else (step, step + spent)
        return np.where(other < self.below, value, np.inf)
