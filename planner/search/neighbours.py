"""Plans a layer away from one that CP-SAT chose: is one of them better, and by which paths are the others not?

A move takes a layer from one stage and gives it to another not far away. All moves are bounded by the known paths at
once, and the most promising run the schedule. The best of them that beats the incumbent is moved from again; when none
does, the longest paths of those that the known ones think better become known too, until no move looks better. CP-SAT
then has in one round what it would ask about one by one. Nothing here is needed for a proof; it makes proofs short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cost_models.critical_paths import Path
from cost_models.long_paths import longest_path
from cost_models.power_levels import wait_s

if TYPE_CHECKING:
    from planner.search.certificate import OpenRow

Ints = NDArray[np.int64]
FARTHEST = 8
"""Stages between the two of a move at most."""
MOST_RUN = 24
MOST_CUTS = 6
MOST_TURNS = 24
"""Moves whose schedule is run at once, paths learned of them, and how often, at most."""


@dataclass(frozen=True)
class Near:
    """The best columns found, one a stage, ``None`` when no better ones are near; and paths that rule others out."""

    picked: list[int] | None
    paths: list[Path]


def near(row: OpenRow, picked: list[int], incumbent: float) -> Near:
    """What moving layers between stages finds around ``picked``, one column a stage."""
    columns, table = row.columns, _table(row, picked)
    counts, found, paths = (columns.j - columns.i)[picked], None, []
    for _ in range(MOST_TURNS):
        moves = _moves(row, table, counts)
        bounds = bounds_by(row, [*row.paths, *paths], moves)
        order = np.argsort(bounds, kind="stable")[:MOST_RUN]
        moves = moves[order[bounds[order] < incumbent]]
        if not len(moves):
            break
        values = values_of(row, moves)
        best = int(np.argmin(values))
        if values[best] < incumbent:
            incumbent, found = float(values[best]), moves[best].tolist()
            counts = (columns.j - columns.i)[found]
        else:
            paths += [longest_of(row, move) for move in moves[:MOST_CUTS]]
    return Near(found, paths)


def _table(row: OpenRow, picked: list[int]) -> Ints:
    """The quickest column of every stage, class of first layer and number of layers; -1 where there is none.

    Where hosts differ, of those that no faster ones are needed for than for the stage's picked column.
    """
    columns, chain = row.columns, row.chain
    n = columns.j - columns.i
    table = np.full((chain.pp, int(chain.places.max()) + 1, int(n.max()) + 2), -1, dtype=np.int64)
    slowest_first = np.argsort(-(columns.forward + columns.backward), kind="stable")
    slowest_first = slowest_first[(row.speed >= row.speed[picked][columns.stage])[slowest_first]]
    at = (a[slowest_first] for a in (columns.stage, chain.places[columns.i], n))
    table[tuple(at)] = slowest_first
    return table


def _moves(row: OpenRow, table: Ints, counts: Ints) -> Ints:
    """Columns of every plan one move away, ``[moves, pp]``."""
    stages, most = np.arange(len(counts)), table.shape[2] - 1
    source, target = (a.ravel() for a in np.meshgrid(stages, stages, indexing="ij"))
    some = np.flatnonzero((source != target) & (np.abs(source - target) <= FARTHEST) & (counts[source] > 1))
    moved = np.repeat(counts[None], len(some), axis=0)
    every = np.arange(len(some))
    moved[every, source[some]] -= 1
    moved[every, target[some]] += 1
    begins = np.cumsum(moved, axis=1) - moved
    picked = table[stages[None], row.chain.places[begins], np.minimum(moved, most)]
    return picked[(picked >= 0).all(axis=1)]


def bounds_by(row: OpenRow, paths: list[Path], picked: Ints) -> NDArray[np.float64]:
    """The objective by these paths, ``[plans]``."""
    columns = row.columns
    split = [columns.weights] if row.chain.schedule.split else []
    durations = (columns.forward, columns.backward - columns.weights, columns.tail, *split)
    forward, backward, tail, *weights = (values[picked].astype(float) for values in durations)
    ticks = forward @ np.array([path.forward for path in paths], dtype=float).T
    ticks += backward @ np.array([path.backward for path in paths], dtype=float).T
    for late in weights:
        ticks += late @ np.array([path.weights for path in paths], dtype=float).T
    ticks += np.array([path.hops * row.chain.hop for path in paths], dtype=float)
    ticks += tail[:, [path.device for path in paths]]
    return _objective(row, picked, ticks.max(axis=1, initial=0.0))


def values_of(row: OpenRow, picked: Ints) -> NDArray[np.float64]:
    """The objective by the schedule itself, ``[plans]``."""
    columns, chain = row.columns, row.chain
    hop = np.full(len(picked), chain.hop)
    weights = columns.weights[picked] if chain.schedule.split else None
    work = (columns.forward[picked], columns.backward[picked], weights)
    return _objective(row, picked, chain.schedule.step_ticks(*work, hop, columns.tail[picked]))


def _objective(row: OpenRow, picked: Ints, ticks: NDArray) -> NDArray[np.float64]:
    objective, dynamic = row.objective.take(np.zeros(len(picked), dtype=np.int64)), row.dynamic[picked]
    step_s = np.maximum(ticks * row.chain.prices.ticks.second, wait_s(row.rates, dynamic / row.stage_size))
    return objective.value(step_s, dynamic.sum(axis=1))


def longest_of(row: OpenRow, picked: Ints) -> Path:
    columns, chain = row.columns, row.chain
    weights = columns.weights[picked] if chain.schedule.split else None
    durations = (columns.forward[picked], columns.backward[picked], chain.hop, columns.tail[picked], weights)
    return longest_path(chain.schedule, *durations)
