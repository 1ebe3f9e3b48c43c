"""Rows with one packing of hosts, and the plans found of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cost_models.chain import Chain
from cost_models.placed import placed_chain
from cost_models.price import Prices
from planner.search.envelope import envelope
from planner.search.incumbent import Found
from planner.search.kept import Kept
from planner.search.packing import Option, Shape

if TYPE_CHECKING:
    from planner.search.engine import Search


@dataclass(frozen=True)
class PlacedFound(Found):
    """A plan with the level of every group of hosts."""

    groups: tuple[int, ...] = ()

    @staticmethod
    def of(found: Found | None, groups: tuple[int, ...]) -> PlacedFound | None:
        """A plan found for groups in that order."""
        return None if found is None else PlacedFound(**vars(found), groups=groups)

    @property
    def order(self) -> tuple[float, ...]:
        """Where the plan stands among equally good ones of its row: of one split, faster groups first."""
        return (*super().order, *(-level for level in self.groups))


@dataclass
class PlacedKept(Kept):
    """A row with one packing, and its prices at every rate that some group has."""

    shape: Shape
    option: Option
    by_level: dict[int, Prices]
    place: tuple[float, ...] = ()

    @property
    def packing(self) -> tuple[Shape, Option]:
        """Of two packings a row as good as the better in everything is better than either by far."""
        return self.shape, self.option

    def with_the_best_of(self, group: Sequence[PlacedKept]) -> PlacedKept:
        """The row with the least of every price of a group, at every rate."""
        best = {level: envelope([kept.by_level[level] for kept in group]) for level in self.by_level}
        return replace(self, prices=best[self.option.levels[0]], by_level=best)

    def chain(self, search: Search, level: int) -> Chain:
        """The row as if all its groups had the rate of one level."""
        return Chain(search.model, self.by_level[level], 0)

    def placed(
        self, search: Search, groups: tuple[int, ...], sizes: list[int], offloaded: tuple[int, ...] = ()
    ) -> Chain:
        """The row with its groups at these levels and these layers, so many offloading, in every virtual stage."""
        levels = [level for level in groups for _ in range(self.shape.stages)]
        return placed_chain(search.model, self.by_level, levels, sizes, self.prices.hop, offloaded)
