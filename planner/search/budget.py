"""What a search may spend: seconds on the clock, and units of work that are the same on every machine.

    units = rows priced / ROWS_A_UNIT + rows evaluated / EVALUATIONS_A_UNIT + CP-SAT's deterministic time

A unit is about a second of one core. The clock ends a search at another place every time; units end it at the same
place, so that an unproved plan is the same wherever it is made, as long as the clock does not end it first.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

ROWS_A_UNIT = 40_000
"""Rows that are priced and bounded in about a second on one 2 GHz core: measured, 15,000 to 60,000 by model."""
EVALUATIONS_A_UNIT = 300
"""Rows whose balanced cuts are run through the schedule in about a second: measured, 150 to 800 by pp."""


@dataclass
class Budget:
    """The moment (``time.monotonic()``) and the units at which a search ends, and the units spent so far."""

    deadline: float = math.inf
    units: float = math.inf
    spent: float = 0.0
    proves: bool = True
    """Whether CP-SAT is asked once the bounds have met; without it the best balanced cut is what is found."""

    @property
    def over(self) -> bool:
        """Whether either is used up."""
        return self.spent >= self.units or time.monotonic() > self.deadline

    @property
    def left_units(self) -> float:
        """Units still to spend; never below 0."""
        return max(0.0, self.units - self.spent)

    @property
    def ended_by(self) -> str:
        """Which of the two is used up, in words; empty when neither is. Units count first: they are the same always."""
        if self.spent >= self.units:
            return "deterministic limit"
        return "time limit" if time.monotonic() > self.deadline else ""

    def priced(self, rows: int) -> None:
        """Count rows that were priced."""
        self.spent += rows / ROWS_A_UNIT

    def evaluated(self, rows: int = 1) -> None:
        """Count rows that were evaluated."""
        self.spent += rows / EVALUATIONS_A_UNIT

    def spend(self, units: float) -> None:
        """Count other work, in units."""
        self.spent += units

    def solved(self, deterministic_s: float) -> None:
        """Count the deterministic time of a solve."""
        self.spent += deterministic_s
