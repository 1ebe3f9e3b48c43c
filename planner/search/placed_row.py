"""A row with one packing for CP-SAT: columns at every rate, and no more groups at each than the packing has.

    rate      sum_k x[s,k | rate q] = sum_k x[s+1,k | rate q]                          stages s, s+1 of one group
    groups    sum over first stages s of groups, sum_k x[s,k | rate q or faster] <= N_q    every rate q

beside the lines of :mod:`planner.search.certificate`. Any group may take any rate: which hosts a group gets follows. A
column says which rate suffices: the groups that a packing has are dealt out to the stages that need the fastest first.

Two things keep the choice small. A stage's tail hides in the drain of the stages before it when it is no longer than
their backward passes,

    tail_s <= sum_{j<s} b_j,    which no split makes less than (the layers that the other stages cannot hold) min b

and then counts as nothing; and of columns with the same layers a faster one stays only if it is better in something.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from planner.search.certificate import OpenRow, open_row, runs_of
from planner.search.columns import Columns
from planner.search.dealing import dealt_ticks
from planner.search.incumbent import weigh
from planner.search.placed_kept import PlacedFound, PlacedKept

if TYPE_CHECKING:
    from cost_models.chain import Chain
    from cost_models.critical_paths import Path
    from planner.search.bounds import Objective
    from planner.search.placed import PlacedSearch

Ints = NDArray[np.int64]


def open_placed_row(
    search: PlacedSearch, kept: PlacedKept, objective: Objective, beat: float, known: list[Path]
) -> PlacedRow | None:
    """The row with every column that could be part of a better plan; ``None`` when there is none."""
    first, *rest = (kept.chain(search, level) for level in kept.option.levels)
    stage = int(kept.prices.rows.stage_size[0])
    row = open_row(first, objective, stage, kept.bound, beat, search.limit, search.recompute, known, rest)
    if row is None:
        return None
    row.columns = _without_hidden_tails(row.chain, row.columns)
    row.keep(_needed(row))
    if len(kept.option.levels) > 1:
        row.keep(_fast_enough(row, kept))
    stages = [kept.option.counts[level] * kept.shape.stages for level in kept.option.levels]
    row.bound = max(row.bound, row.weight * dealt_ticks(row, stages))
    return PlacedRow(**vars(row), search=search, kept=kept) if row.bound < beat else None


def _fast_enough(row: OpenRow, kept: PlacedKept) -> Ints:
    """Columns of the rates that stages may have when groups go first to the stages whose costs depend on the rate.

    To the others any group will do. So where ``K`` groups matter, none of theirs is slower than the ``K``-th fastest.
    """
    faster = np.zeros(row.chain.pp, dtype=bool)
    faster[row.columns.stage[row.speed < len(kept.option.levels) - 1]] = True
    matters = faster.reshape(-1, kept.shape.stages).any(axis=1)
    fastest = np.repeat(np.arange(len(kept.option.levels)), [kept.option.counts[q] for q in kept.option.levels])
    slowest = int(fastest[max(1, int(matters.sum())) - 1])
    binds = matters[row.columns.stage // kept.shape.stages]
    return np.flatnonzero(~binds | (row.speed <= slowest))


def _without_hidden_tails(chain: Chain, columns: Columns) -> Columns:
    """Columns whose tail no split exposes have none."""
    longest = np.zeros(chain.pp, dtype=np.int64)
    np.maximum.at(longest, columns.stage, columns.j - columns.i)
    beyond = np.append(np.cumsum(longest[::-1])[::-1], 0)[:-1]
    layers_before = np.maximum(np.arange(chain.pp), chain.layers - beyond)
    layers_before[0] = 0
    least = int(chain.prices.backward[0, np.unique(chain.order)].min())
    drain = layers_before[columns.stage] * least
    return replace(columns, tail=np.where(columns.tail <= drain, 0, columns.tail))


def _needed(row: OpenRow) -> Ints:
    """Columns that no column of the same layers, offloading alike, at a slower rate equals; all where joules count."""
    columns = row.columns
    if row.objective.counts_joules:
        return np.arange(len(columns))
    names = ("stage", "i", "j", "out", "kept", "forward", "backward", "tail")
    costs = np.stack([getattr(columns, name) for name in names])
    order = np.lexsort((-row.speed, *costs[::-1]))
    same = (costs[:, order][:, 1:] == costs[:, order][:, :-1]).all(axis=0)
    return np.sort(order[np.append(True, ~same)])


@dataclass
class PlacedRow(OpenRow):
    """An open row that also chooses the rate of every group."""

    search: PlacedSearch
    kept: PlacedKept

    def judge(self, picked: list[int], limit_bytes: int) -> PlacedFound | None:
        """The plan of these columns, each stage on hosts that are at least as fast as its column asks for."""
        groups = self._dealt(self.speed[picked][:: self.kept.shape.stages])
        runs, clocks = runs_of(self.columns, picked), tuple(self.columns.clock[picked].tolist())
        out = self.columns.leaving(picked)
        chain = self.kept.placed(self.search, groups, [stage[-1][2] - stage[0][1] for stage in runs], out)
        found = weigh(chain, runs, self.objective, self.stage_size, limit_bytes, clocks, out)
        return PlacedFound.of(found, groups)

    def _dealt(self, asked: Ints) -> tuple[int, ...]:
        """The level of every group: the packing's, fastest first, to those that ask for the fastest."""
        option = self.kept.option
        have = np.repeat(option.levels, [option.counts[level] for level in option.levels])
        dealt = np.empty(len(asked), dtype=np.int64)
        dealt[np.argsort(asked, kind="stable")] = have
        return tuple(dealt.tolist())

    def restrict(self, model: cp_model.CpModel, x: list[cp_model.IntVar]) -> None:
        """No more groups at each rate than the packing has, and one rate for all stages of a group."""
        stages, option = self.kept.shape.stages, self.kept.option
        if len(option.levels) == 1:
            return
        for k, level in enumerate(option.levels):
            of = [
                sum(x[c] for c in np.flatnonzero((self.speed <= k) & (self.columns.stage == s)))
                for s in range(self.chain.pp)
            ]
            model.add(sum(of[::stages]) <= option.at_least[level])
            for s in range(self.chain.pp):
                if s % stages:
                    model.add(of[s] == of[s - 1])
