"""What joules count for in a search over pipelines on hosts that are given: as ticks, beside those of the step.

    step + spent        spent = sum over stages of floor(joules / (watts of the hosts, idle) / tick)

times the idle watts is the energy of a step (:mod:`cost_models.mixed_power`), rounded down by less than a tick a stage:
what no sum goes below no energy does. One of ``step`` and ``step + spent`` is minimised, the other may have a limit.

Under limits on mean watts a step waits (:mod:`planner.search.mixed.waiting`): it lasts what its schedule does, or what
the fullest stage, host, rack or all sites wait for, whichever is longer. Then ``step`` above is that maximum. Of all
sites it is ``site`` ticks a joule, so that no step goes below, whatever the ``part`` from 0 to 1,

    (1 - part) schedule + part site sum of joules
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
SAME = 1e-12
"""Part of a sum with joules that tells no two pipelines apart: as much as these are rounded by, all in all."""


@dataclass(frozen=True)
class Weighing:
    """``ticks_a_joule`` is 0 where joules count for nothing. With ``minimised`` they are part of what a search makes
    small, and the step alone stays below ``below``; else the step is made small, and its sum with them stays below.

    With ``waits`` steps may wait for their watts, of all sites ``site`` ticks for every joule of stages. Where energy is
    neither minimised nor limited then, joules are told in these ticks, and are not ``minimised``."""

    ticks_a_joule: float = 0.0
    minimised: bool = True
    below: float = np.inf
    site: float = 0.0
    waits: bool = False

    @property
    def counts(self) -> bool:
        """Whether joules count for anything."""
        return self.ticks_a_joule > 0 or self.waits

    @property
    def waits_a_spent(self) -> float:
        """Ticks that a step waits at all sites for each that joules count for."""
        return self.site / self.ticks_a_joule if self.ticks_a_joule > 0 else float(self.site > 0)

    @property
    def limits(self) -> bool:
        """Whether there is a limit beside what is minimised."""
        return self.below < np.inf

    def lasts(self, spent: Floats, wait: Floats) -> Floats:
        """Ticks that steps last at least for what joules of their stages count for, and for the longest ``wait`` of a
        stage by itself."""
        return np.maximum(spent * (self.waits_a_spent * (1 - SAME)), wait)

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
        """Whole ticks that some joules count for, rounded down; where these are waited for alone, not whole ones."""
        joules = np.asarray(joules, dtype=np.float64)
        return np.floor(joules * self.ticks_a_joule) if self.ticks_a_joule > 0 else joules * self.site

    def at_least(self, step: float, spent: float) -> float:
        """What is minimised at least, of a schedule no shorter than ``step`` and joules that count for ``spent``."""
        return max(step, self.waits_a_spent * (1 - SAME) * spent) + spent * self.minimised

    def value(self, step: Floats, spent: Floats) -> Floats:
        """What is minimised; infinite where the other is not below its limit."""
        value, other = (step + spent, step) if self.minimised else (step, step + spent)
        return np.where(other < self.below, value, np.inf)
