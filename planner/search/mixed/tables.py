"""What searches of one space share, whichever devices each may use: ways priced once, stages bounded once."""

from __future__ import annotations

from dataclasses import dataclass, field

from planner.search.budget import Budget
from planner.search.mixed.space import MixedSpace
from planner.search.mixed.stages import Slots
from planner.search.mixed.table import Priced, stage_table

WAYS_A_UNIT = 6_000
"""Ways priced in about a second of one core."""


@dataclass
class Tables:
    """The tables of a space by global micro-batch, made when first asked for; slots stay only where ``keeps`` says so,
    for they are large."""

    space: MixedSpace
    keeps: bool = False
    _priced: dict[int, list[Priced]] = field(default_factory=dict)
    _slots: dict[int, tuple[float, Slots]] = field(default_factory=dict)

    def priced(self, batch: int, budget: Budget) -> list[Priced]:
        """The useful ways of every part; what pricing them takes is charged to a budget."""
        if batch not in self._priced:
            self._priced[batch] = [Priced.of(self.space, k, batch) for k in range(len(self.space.limits))]
            budget.spend(sum(p.ways for p in self._priced[batch]) / WAYS_A_UNIT)
        return self._priced[batch]

    def slots(self, batch: int, most_ticks: float) -> Slots:
        """Stages that are busy for ``most_ticks`` a step or less, and some that are for longer; of ways priced before.

        Those for longer steps serve shorter ones too.
        """
        upto, slots = self._slots.get(batch, (-1.0, None))
        if slots is None or most_ticks > upto:
            slots = Slots.of(stage_table(self.space, batch, self._priced[batch], most_ticks))
            if self.keeps:
                self._slots[batch] = most_ticks, slots
        return slots
