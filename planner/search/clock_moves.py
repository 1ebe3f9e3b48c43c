"""Plans near one that CP-SAT chose where stages choose clocks: fast stages spread evenly, then one move at a time.

Hops make a window of stages slower than its stages, unless some of them are faster. Where a lower clock saves joules
the best plans therefore mix fast and slow stages, spread as evenly as may be: their times have one mean, the error of
each stage being handed on to the next. From the best of those for many means, and of the choice itself, moves go on:
one stage one clock up or down, one up and another down, a layer from one stage to another. All moves are bounded by
the known paths at once, the most promising run the schedule, and the longest paths of some of them become known, until
no move looks better. Nothing here is needed for a proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cost_models.critical_paths import Path
from planner.search.deadline import look
from planner.search.neighbours import Near, bounds_by, longest_of, values_of

if TYPE_CHECKING:
    from planner.search.budget import Budget
    from planner.search.certificate import OpenRow

Ints = NDArray[np.int64]
MEANS, PHASES, SLOPES = 96, 3, (0.0, 0.01, 0.03)
"""Mean times of a stage from the quickest to the thriftiest of a cut, errors the first stage begins with, and parts
of a mean by which the last stage's is longer than the first's."""
MOST_RUN, MOST_CUTS, MOST_TURNS = 48, 4, 32
"""Moves whose schedule is run at once, paths learned of them, and how often, at most."""
TIGHT, MOST_LEARNED = 0.97, 6
"""Of paths those count that are so much of the longest for a plan; how many CP-SAT learns of those round its end."""


@dataclass(frozen=True)
class Ladders:
    """Columns of every stage, class of first layer and number of layers, quickest first; -1 beyond the last.

    ``table`` is ``[stages, classes, layers + 1, steps]``, ``at`` the step of each column, ``places`` the class of each
    boundary.
    """

    table: Ints
    at: Ints
    places: Ints

    @staticmethod
    def of(row: OpenRow, picked: list[int]) -> Ladders:
        """Where hosts differ, of columns that no faster ones are needed for than for the stage's picked one."""
        columns, places = row.columns, row.chain.places
        some = np.flatnonzero(row.speed >= row.speed[picked][columns.stage])
        keys = np.stack([columns.stage, places[columns.i], columns.j - columns.i])[:, some]
        order = np.lexsort((row.dynamic[some], (columns.forward + columns.backward)[some], *keys))
        keys, some = keys[:, order], some[order]
        fresh = np.append(True, (np.diff(keys, axis=1) != 0).any(axis=0))
        step = np.arange(len(some)) - np.maximum.accumulate(np.where(fresh, np.arange(len(some)), 0))
        table = np.full((row.chain.pp, int(places.max()) + 1, int(keys[2].max()) + 2, int(step.max()) + 1), -1)
        table[(*keys, step)] = some
        at = np.zeros(len(columns), dtype=np.int64)
        at[some] = step
        return Ladders(table, at, places)

    def of_cut(self, counts: Ints) -> Ints:
        """The columns of stages with so many layers, ``[..., pp, steps]``."""
        begins = np.cumsum(counts, axis=-1) - counts
        return self.table[np.arange(counts.shape[-1]), self.places[begins], np.minimum(counts, self.table.shape[2] - 1)]

    def picked(self, counts: Ints, steps: Ints) -> Ints:
        """The columns of plans by layers and steps of every stage, ``[plans, pp]``; the last step for later ones."""
        mine = self.of_cut(counts)
        last = np.maximum((mine >= 0).sum(axis=-1) - 1, 0)
        return np.take_along_axis(mine, np.clip(steps, 0, last)[..., None], axis=-1)[..., 0]


def better_clocks(row: OpenRow, picked: list[int], incumbent: float, budget: Budget) -> Near:
    """The best plan found around ``picked``, one column a stage, ``None`` when none is better than the incumbent.

    And the longest paths of plans that were run on the way.
    """
    ladders, paths = Ladders.of(row, picked), list[Path]()
    plans = np.concatenate([np.array(picked)[None], _spread(row, ladders, (row.columns.j - row.columns.i)[picked])])
    plans, values = _run(row, plans, row.paths, np.inf, budget)
    best, value = plans[np.argmin(values)], float(values.min())
    tight = _tight(row, best, row.paths)
    for _ in range(MOST_TURNS):
        if budget.over:
            break
        moves, values = _run(row, _moves(row, ladders, best), [*tight, *paths], value, budget)
        if not len(moves):
            break
        if values.min() < value:
            best, value = moves[np.argmin(values)], float(values.min())
            paths.append(longest_of(row, best))
        else:
            paths += [longest_of(row, move) for move in moves[:MOST_CUTS]]
    return Near(best.tolist() if value < incumbent else None, _tight(row, best, paths)[:MOST_LEARNED])


def _run(
    row: OpenRow, plans: Ints, paths: list[Path], below: float, budget: Budget
) -> tuple[Ints, NDArray[np.float64]]:  # fmt: skip
    """The most promising plans by these paths of those that may be ``below``, and their objective by the schedule."""
    look()
    bounds = bounds_by(row, paths, plans)
    order = np.argsort(bounds, kind="stable")[:MOST_RUN]
    plans = plans[order[bounds[order] < below]]
    budget.evaluated(len(plans))
    return plans, values_of(row, plans)


def _spread(row: OpenRow, ladders: Ladders, counts: Ints) -> Ints:
    """Plans of a cut whose stages' times have one mean as nearly as may be from the first stage on, ``[plans, pp]``."""
    mine, pp = ladders.of_cut(counts), len(counts)
    times = (row.columns.forward + row.columns.backward)[mine].astype(float)
    slowest, ticks = np.where(mine >= 0, times, 0).max(axis=1), np.where(mine >= 0, times, np.inf)
    quickest = ticks.min(axis=1)
    gap = (slowest - quickest).max() / max(mine.shape[1] - 1, 1)
    means = np.linspace(quickest.max(), slowest.max(), MEANS)
    mean, phase, slope = (it.ravel() for it in np.meshgrid(means, np.arange(PHASES) / PHASES, SLOPES, indexing="ij"))
    error, chosen = phase * gap, []
    for s in range(pp):
        due = mean * (1 + slope * (s / pp - 0.5)) + error
        step = np.maximum((ticks[s] <= due[:, None]).sum(axis=1) - 1, 0)
        error = np.clip(due - ticks[s][step], 0, gap)
        chosen.append(mine[s][step])
    return np.unique(np.stack(chosen, axis=1), axis=0)


def _moves(row: OpenRow, ladders: Ladders, best: Ints) -> Ints:
    """Plans one move away, ``[moves, pp]``."""
    counts, steps, pp = (row.columns.j - row.columns.i)[best], ladders.at[best], len(best)
    every, one = np.arange(pp), np.eye(pp, dtype=np.int64)
    a, b = (it.ravel() for it in np.meshgrid(every, every, indexing="ij"))
    apart = a != b
    changes = np.concatenate([one, -one, (one[a] - one[b])[apart]])
    given = apart & (counts[a] > 1)
    moved = counts + one[b[given]] - one[a[given]]
    found = np.concatenate([ladders.picked(np.broadcast_to(counts, changes.shape), steps + changes),
                            ladders.picked(moved, np.broadcast_to(steps, moved.shape))])  # fmt: skip
    return found[(found >= 0).all(axis=1) & (found != best).any(axis=1)]


def _tight(row: OpenRow, best: Ints, paths: list[Path]) -> list[Path]:
    """Of some paths those that are nearly the longest of them for a plan, longest first."""
    ticks = [int(row.columns.along(path)[best].sum()) + path.hops * row.chain.hop for path in paths]
    order = np.argsort(ticks, kind="stable")[::-1]
    return [paths[k] for k in order if ticks[k] >= TIGHT * max(ticks)]
