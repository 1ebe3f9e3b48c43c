"""A row with one packing for CP-SAT: columns at every rate, as many groups of each as the packing has.

    rate      sum_k x[s,k | rate q] = sum_k x[s+1,k | rate q]                 stages s, s+1 of one group
    groups    sum over first stages s of groups, sum_k x[s,k | rate q] = n_q    every rate q

beside the lines of :mod:`planner.search.certificate`. Any group may take any rate: which hosts a group gets follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from ortools.sat.python import cp_model

from planner.search.bounds import objective_of
from planner.search.certificate import OpenRow, open_row, picked_runs
from planner.search.incumbent import judge
from planner.search.placed import PlacedFound, PlacedKept, PlacedSearch

if TYPE_CHECKING:
    from cost_models.pipeline import Path


def open_placed_row(search: PlacedSearch, kept: PlacedKept, beat: float, known: list[Path]) -> PlacedRow | None:
    """The row with every column that could be part of a better plan; ``None`` when there is none."""
    first, *rest = (kept.chain(search, level) for level in kept.option.levels)
    objective = objective_of(kept.prices.rows, search.cluster, search.options)
    stage = int(kept.prices.rows.stage_size[0])
    row = open_row(first, objective, stage, kept.bound, beat, search.limit, search.recompute, known, rest)
    return None if row is None else PlacedRow(**row.__dict__, search=search, kept=kept)


@dataclass
class PlacedRow(OpenRow):
    """An open row that also chooses the rate of every group."""

    search: PlacedSearch
    kept: PlacedKept

    def judge(self, picked: list[int], limit_bytes: int) -> PlacedFound | None:
        """The plan of these columns, each stage on hosts of its column's rate."""
        levels = [self.kept.option.levels[rate] for rate in self.rate[picked].tolist()]
        groups = tuple(levels[:: self.kept.shape.stages])
        runs = picked_runs(self.columns, picked)
        chain = self.kept.placed(self.search, groups, [stage[-1][2] - stage[0][1] for stage in runs])
        found = judge(chain, runs, self.objective, self.stage_size, limit_bytes)
        return None if found is None else PlacedFound(**vars(found), groups=groups)

    def restrict(self, model: cp_model.CpModel, x: list[cp_model.IntVar]) -> None:
        """As many groups at each rate as the packing has, and one rate for all stages of a group."""
        stages, option = self.kept.shape.stages, self.kept.option
        if len(option.levels) == 1:
            return
        for k, level in enumerate(option.levels):
            of = [
                sum(x[c] for c in np.flatnonzero((self.rate == k) & (self.columns.stage == s)))
                for s in range(self.chain.pp)
            ]
            model.add(sum(of[::stages]) == option.counts[level])
            for s in range(self.chain.pp):
                if s % stages:
                    model.add(of[s] == of[s - 1])
