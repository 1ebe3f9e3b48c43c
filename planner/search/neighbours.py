"""Plans a layer away from one that CP-SAT chose: is one of them better, and by which paths are the others not?

A move takes a layer from one stage and gives it to another not far away, makes a stage one clock faster or slower, or
one stage faster and another slower. All moves are bounded by the known paths at once, and the most promising run the
schedule. The best of them that beats the incumbent is moved from again; when none does, the longest paths of those that
the known ones think better become known too, until no move looks better. CP-SAT then has in one round what it would ask
about one by one. Nothing here is needed for a proof; it makes proofs short.
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


def near(row: OpenRow, picked: list[int], incumbent: float, turns: int = MOST_TURNS) -> Near:
    """What moving layers and clocks between stages finds around ``picked``, one column a stage, in so many turns."""
    table, at, found, paths = _table(row, picked), np.array(picked), None, []
    for _ in range(turns):
        moves = _moves(row, table, at)
        bounds = _bounds(row, [*row.paths, *paths], moves)
        order = np.argsort(bounds, kind="stable")[:MOST_RUN]
        moves = moves[order[bounds[order] < incumbent]]
        if not len(moves):
            break
        values = values_of(row, moves)
        best = int(np.argmin(values))
        if values[best] < incumbent:
            incumbent, at = float(values[best]), moves[best]
            found = at.tolist()
        else:
            paths += [_longest(row, move) for move in moves[:MOST_CUTS]]
    return Near(found, paths)


def _table(row: OpenRow, picked: list[int]) -> Ints:
    """The quickest column of every stage, class of first layer, number of layers and clock; -1 where there is none.

    Where hosts differ, of those that no faster ones are needed for than for the stage's picked column.
    """
    columns, chain = row.columns, row.chain
    n, clock = columns.j - columns.i, _clocks(row)
    shape = (chain.pp, int(chain.places.max()) + 1, int(n.max()) + 2, len(chain.clocks))
    table = np.full(shape, -1, dtype=np.int64)
    slowest_first = np.argsort(-(columns.forward + columns.backward), kind="stable")
    slowest_first = slowest_first[(row.speed >= row.speed[picked][columns.stage])[slowest_first]]
    at = (a[slowest_first] for a in (columns.stage, chain.places[columns.i], n, clock))
    table[tuple(at)] = slowest_first
    return table


def _clocks(row: OpenRow) -> Ints:
    """The place of each column's clock among the row's."""
    return np.argmax(row.columns.clock[:, None] == np.array(row.chain.clocks)[None], axis=1)


def _moves(row: OpenRow, table: Ints, picked: Ints) -> Ints:
    """Columns of every plan one move away, ``[moves, pp]``."""
    counts, clocks = (row.columns.j - row.columns.i)[picked], _clocks(row)[picked]
    pairs = _pairs(len(counts))
    fewer, faster = -np.eye(len(counts), dtype=np.int64), np.eye(len(counts), dtype=np.int64)
    layers = counts + (fewer[pairs[0]] - fewer[pairs[1]])[counts[pairs[0]] > 1]
    clocked = clocks + np.concatenate([faster[pairs[0]] - faster[pairs[1]], faster, -faster])
    clocked = clocked[((clocked >= 0) & (clocked < table.shape[3])).all(axis=1)]
    return np.concatenate(
        [_columns_of(row, table, *np.broadcast_arrays(layers, clocks[None])),
         _columns_of(row, table, *np.broadcast_arrays(counts[None], clocked))]
    )  # fmt: skip


def _pairs(stages: int) -> tuple[Ints, Ints]:
    """Both stages of every move between two."""
    source, target = (a.ravel() for a in np.meshgrid(np.arange(stages), np.arange(stages), indexing="ij"))
    some = (source != target) & (np.abs(source - target) <= FARTHEST)
    return source[some], target[some]


def _columns_of(row: OpenRow, table: Ints, counts: Ints, clocks: Ints) -> Ints:
    """Columns of plans of so many layers a stage at such clocks, ``[plans, pp]``; plans without a column left out."""
    begins = np.cumsum(counts, axis=1) - counts
    stages, most = np.arange(counts.shape[1])[None], table.shape[2] - 1
    found = table[stages, row.chain.places[begins], np.minimum(counts, most), clocks]
    return found[(found >= 0).all(axis=1)]


def _bounds(row: OpenRow, paths: list[Path], picked: Ints) -> NDArray[np.float64]:
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


def _longest(row: OpenRow, picked: Ints) -> Path:
    columns, chain = row.columns, row.chain
    weights = columns.weights[picked] if chain.schedule.split else None
    durations = (columns.forward[picked], columns.backward[picked], chain.hop, columns.tail[picked], weights)
    return longest_path(chain.schedule, *durations)
