"""Of the equally good splits of one row the first in the order of :mod:`planner.search.order`.

Stage by stage each column has a rank: fewest layers first, then least full, then least selective recompute, then
fewest layers that states leave and that activations do, then the highest clock, then the hosts with the most bandwidth.
Ranks of several stages at a time are digits of one number, which CP-SAT minimises over all plans as good as the best;
then they are fixed and the next stages follow. What comes out is the same for any number of workers, as a minimum is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.search.budget import Budget
from planner.search.certificate import OpenRow
from planner.search.incumbent import Found
from planner.search.row_model import RowModel

MOST_DIGITS = 2.0**40


def first_of_equals(row: OpenRow, best: Found, limit_bytes: int, budget: Budget, workers: int = 1) -> Found | None:
    """The first plan of the row that is as good as ``best``; ``None`` when the budget is spent before it is known."""
    problem, ranks = RowModel(row, best.value), _ranks(row)
    most, fixed, first = problem.most(best.value, equal=True), np.zeros(len(row.columns), dtype=bool), best
    for weights in _digits(row, ranks):
        found = None
        while found is None:
            if budget.over:
                return None
            answer = problem.ask(most, budget, workers, weights=weights, fixed=np.flatnonzero(fixed))
            if answer.status == "infeasible":
                return best
            if answer.status != "optimal":
                return None
            found = row.judge(answer.picked, limit_bytes)
            if found is None or problem.z_of(found.value) > most:
                problem.learn(answer.picked, found)
                found = None
        first = found
        picked = np.array(answer.picked)
        fixed[picked[weights[picked] >= 0]] = True
    return first


def _ranks(row: OpenRow) -> NDArray[np.int64]:
    """The place of every column in its stage."""
    columns = row.columns
    order = np.lexsort(
        (columns.i, row.speed, -columns.clock, -columns.kept, columns.out, columns.selective, columns.full,
         columns.j - columns.i, columns.stage)
    )  # fmt: skip
    kinds = (columns.stage, columns.j - columns.i, columns.full, columns.selective, columns.out, columns.kept,
             columns.clock, row.speed)  # fmt: skip
    numbers = np.stack(kinds)[:, order]
    fresh = np.concatenate([[True], (numbers[:, 1:] != numbers[:, :-1]).any(axis=0)])
    place = np.empty(len(columns), dtype=np.int64)
    place[order] = np.cumsum(fresh)
    first = np.full(row.chain.pp, np.iinfo(np.int64).max)
    np.minimum.at(first, columns.stage, place)
    return place - first[columns.stage]


def _digits(row: OpenRow, ranks: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """For groups of stages in turn the weight of every column, ``-1`` for those of other stages."""
    stage, groups, at = row.columns.stage, [], 0
    base = np.zeros(row.chain.pp, dtype=np.int64)
    np.maximum.at(base, stage, ranks + 1)
    while at < row.chain.pp:
        end, size = at, 1.0
        while end < row.chain.pp and (end == at or size * base[end] < MOST_DIGITS):
            size *= float(base[end])
            end += 1
        weights, scale = np.full(len(stage), -1, dtype=np.int64), 1
        for s in range(end - 1, at - 1, -1):
            mine = stage == s
            weights[mine] = scale * ranks[mine]
            scale *= int(base[s])
        groups.append(weights)
        at = end
    return groups
