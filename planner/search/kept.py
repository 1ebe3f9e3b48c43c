"""What a search holds: rows that were looked at, the best plan among them, what it says at its end."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import numpy as np

from cost_models.price import Prices
from cost_models.schedules import FEW_CUTS
from cost_models.strategy import Strategy
from planner.search.envelope import envelope
from planner.search.incumbent import Found
from planner.search.strategies import strategy_of

COUNTED = (
    *("meshes", "degrees", "degrees_that_cannot_fit"),
    *("meshes_expanded", "coarse_expanded", "degrees_expanded", "experts_expanded", "placements_expanded"),
    *("rows", "rows_that_cannot_fit", "rows_by_bound", "rows_dominated", "rows_evaluated"),
    *("rows_to_solver", "literals", "solver_rounds", "solver_cuts", "ties_unsettled"),
)
"""What a search counts."""


@dataclass
class Kept:
    """A row that was looked at: its prices, its place there, its number of virtual stages, its bound, its best plan.

    ``closed`` says what showed that no other plan of it beats the incumbent: its stages' columns, or CP-SAT.
    """

    prices: Prices
    row: int
    virtual: int
    bound: float
    found: Found | None
    closed: Literal["", "columns", "cp-sat"] = field(default="", kw_only=True)

    @property
    def point(self) -> bool:
        """Whether its plan is all that there is of it: the solver chooses cuts where a device has one stage."""
        return self.virtual > 1 or self.prices.rows.schedule in FEW_CUTS

    @property
    def comparable(self) -> bool:
        """Whether the row may be asked about together with others of its degrees and packing."""
        return self.prices.rows.schedule == "1f1b"

    @property
    def packing(self) -> Hashable:
        """How its hosts are packed, where they differ."""
        return None

    def with_the_best_of(self, group: Sequence[Self]) -> Self:
        """The row with the least of every price of a group of its degrees and packing."""
        return replace(self, prices=envelope([kept.prices for kept in group]))

    @property
    def key(self) -> tuple[int, ...]:
        """Degrees that make two plans different in kind: tp, cp, pp, dp, ep."""
        rows, r = self.prices.rows, self.row
        return tuple(int(a[r]) for a in (rows.tp, rows.cp, rows.pp, rows.dp, rows.ep))


@dataclass
class SearchResult:
    """The best plan, its proved bound, and what each step of the search removed."""

    best: Kept | None
    bound: float
    proved: bool
    counts: dict[str, int]
    kept: list[Kept] = field(default_factory=list)
    incumbent_before_solver: float = np.inf
    bound_root: float = 0.0
    seconds: float = 0.0
    stopped: str = ""
    excluded: list[dict[str, object]] = field(default_factory=list)


class Incumbent:
    """The best plan that a search knows so far, and what it is worth."""

    best: Kept | None = None

    @property
    def value(self) -> float:
        """The incumbent's objective; infinite before the first plan."""
        return np.inf if self.best is None or self.best.found is None else self.best.found.value

    def strategy(self, kept: Kept) -> Strategy:
        """The strategy of an evaluated row."""
        if kept.found is None:
            raise ValueError("the row has no plan")
        return strategy_of(kept.prices.rows, kept.row, kept.virtual, kept.found)
