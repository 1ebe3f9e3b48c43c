"""What a lower clock costs and saves: the power curve of an accelerator.

At the fraction ``s`` of the full clock the arithmetic of a kernel takes ``1 / s`` times as long, and its power above
idle is that of switched capacitance

    P(s) = P(1) s V(s)^2        V(s)^2 = max(s, floor)^(exponent - 1)

since voltage falls with the clock down to a floor and stays there. Joules above idle therefore fall as ``V(s)^2``
and no further below the floor, where a lower clock only lasts longer. What moves data, in memory or between devices,
neither slows nor saves: that memory-bound kernels draw a little less is left out (it is on the safe side), and so is
that their launches and caches follow the clock.

The fraction is of the clock that the calibrated peak is reached at. A board that holds itself below its highest clock
under load, to stay within its power limit, slows down less than ``1 / s`` near the top.

Source of the form: Perseus, arXiv:2312.06902, section 3; constants and their fit: ``calibration/power.toml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FULL = 1.0
STEPS = (FULL, 0.95, 0.9, 0.85, 0.8)
"""Clocks that a stage may have; the next one would lie below the floor, where nothing is saved."""


@dataclass(frozen=True, slots=True)
class ClockCurve:
    """How power follows the clock, a fraction of the full one."""

    exponent: float
    floor: float

    def voltage_squared(self, clock: float) -> float:
        """``V^2`` over that at full clock; what joules of arithmetic are multiplied by."""
        return max(clock, self.floor) ** (self.exponent - 1)

    def power(self, clock: float) -> float:
        """Power above idle of arithmetic over that at full clock: ``s V(s)^2``."""
        return clock * self.voltage_squared(clock)

    @staticmethod
    def of(table: dict[str, Any]) -> ClockCurve:
        """The curve of ``calibration/power.toml``'s table ``clock``."""
        return ClockCurve(table["exponent"]["value"], table["floor"]["value"])
