"""What a search excluded, stage by stage: why, how many, and the least bound among them. Every row goes somewhere:

meshes        = bound + expanded + open               (tp, cp, pp, dp)
coarse        children of expanded meshes, with a micro-batch: likewise
degrees       = memory + bound + expanded + open      the coarse ones again, with all that is known of them
experts       children of expanded degrees, placements children of expanded experts: likewise, and those that no
              hosts hold
rows          = memory + bound + dominated + evaluated + open
evaluated     = bound + columns + cp-sat + open      those whose stages are still to be cut, one by one
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.search.frontier import Frontier
from planner.search.kept import Kept

REASONS = ("memory", "hosts", "bound", "dominated", "columns", "cp-sat", "open")
"""Cannot fit; finds no hosts, where these differ; no plan can beat the incumbent; another row is no dearer in anything;
no stage's columns can be part of a better plan; CP-SAT showed that there is none; left when the search ended early."""


@dataclass
class Ledger:
    """Counts and least bounds by ``(stage, reason)``, and how many rows came into each stage and went on from it."""

    count: dict[tuple[str, str], int] = field(default_factory=dict)
    least: dict[tuple[str, str], float] = field(default_factory=dict)
    came: dict[str, int] = field(default_factory=dict)
    went: dict[str, int] = field(default_factory=dict)

    def enter(self, stage: str, rows: int) -> None:
        """Rows that came into a stage."""
        self.came[stage] = self.came.get(stage, 0) + rows

    def pass_on(self, stage: str, rows: int) -> None:
        """Rows that went on to the next stage."""
        self.went[stage] = self.went.get(stage, 0) + rows

    def exclude(self, stage: str, reason: str, bounds: NDArray[np.float64] | list[float]) -> None:
        """Rows that end here, with their bounds: infinite for what cannot fit."""
        if len(bounds):
            key = (stage, reason)
            self.count[key] = self.count.get(key, 0) + len(bounds)
            self.least[key] = min(self.least.get(key, np.inf), float(np.min(bounds)))

    def with_waiting(self, waiting: dict[str, Frontier], below: float) -> Ledger:
        """The same and the rows that wait: excluded by their bound where that is not ``below``, or left open."""
        ledger = copy.deepcopy(self)
        for name, frontier in waiting.items():
            late = frontier.bounds >= below
            for gone in (*frontier.dropped, frontier.bounds[late]):
                ledger.exclude(name, "bound", gone)
            ledger.exclude(name, "open", frontier.bounds[~late])
        return ledger

    def with_evaluated(self, kept: Iterable[Kept], below: float) -> Ledger:
        """The same and the evaluated rows: closed by the solver, excluded by a bound not ``below``, or left open."""
        ledger = copy.deepcopy(self)
        for it in kept:
            if not it.point:
                late = it.bound >= below
                reason = it.closed or ("bound" if late else "open")
                ledger.enter("evaluated", 1)
                ledger.exclude("evaluated", reason, [below if it.closed else it.bound])
        return ledger

    def entries(self) -> list[dict[str, object]]:
        """One entry a stage and reason; ``least_bound`` is ``None`` where rows were not excluded by a number."""
        stages = list(dict.fromkeys([*self.came, *(stage for stage, _ in self.count)]))
        found = []
        for stage in stages:
            for reason in REASONS:
                if (stage, reason) in self.count:
                    least = self.least[stage, reason]
                    told = None if reason in ("memory", "hosts", "dominated") or not np.isfinite(least) else least
                    entry = {"stage": stage, "reason": reason, "rows": self.count[stage, reason], "least_bound": told}
                    found.append(entry)
        return found
