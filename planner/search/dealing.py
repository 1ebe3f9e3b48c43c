"""What the best cut and dealing of groups costs at least, by dynamic programming from the last stage.

With ``t_s`` the work of stage ``s`` on one micro-batch, the return paths of 1F1B (:mod:`cost_models.pipeline`) say

    step >= (1 + r) (A_0 + 2 (pp - 1) hop) + M_0      A_s = sum_{j>=s} t_j
    M_s = max(M_{s+1}, (m - pp + s - r pp) t_s + A_{s+1} + 2 (pp - 1 - s) hop)

with ``r`` rounds past all stages (:mod:`planner.search.bounds`) or none.
``A`` and ``M`` of a suffix of stages depend on the layers it holds and on how many groups of each rate it used. Both
are minimised by themselves, which is exact where no stage has to choose between them, and a bound otherwise. Where
``m <= pp`` there are no return paths through every stage and only ``A_0`` counts. Rates are merged into faster ones
until the states are few: that again can only lower the bound.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from planner.search.bounds import rounds_of
from planner.search.cut_sums import LEAST
from planner.search.deadline import look

if TYPE_CHECKING:
    from planner.search.certificate import OpenRow

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
MOST_STATES = 512


@dataclass(frozen=True)
class Rates:
    """The states of groups: how many stages may still have each (merged) rate, and which one a column's rate is."""

    counts: tuple[int, ...]
    merged: Ints

    @staticmethod
    def of(counts: list[int]) -> Rates:
        """``counts`` stages of each rate, fastest first."""
        groups = [[n] for n in counts]
        while np.prod([sum(g) + 1 for g in groups], dtype=float) > MOST_STATES:
            sizes = [sum(a) + sum(b) for a, b in itertools.pairwise(groups)]
            at = int(np.argmin(sizes))
            groups[at : at + 2] = [groups[at] + groups[at + 1]]
        merged = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
        return Rates(tuple(sum(g) for g in groups), merged)


@dataclass(frozen=True)
class Suffixes:
    """Least ``A`` and ``M`` of the last stages, ``[first layer, groups used of each rate ...]``."""

    work: Floats
    path: Floats


def dealt_ticks(row: OpenRow, counts: list[int]) -> float:
    """Ticks that no cut of a row and no dealing of ``counts`` stages of each rate beats; infinite where none fits."""
    chain, rates = row.chain, Rates.of(counts)
    most = int(rounds_of(chain.pp, chain.micro_batches))
    return max(_with_rounds(row, rates, rounds) for rounds in {0, max(0, most)}) * LEAST


def _with_rounds(row: OpenRow, rates: Rates, rounds: int) -> float:
    """:func:`dealt_ticks` by paths with so many rounds."""
    suffixes, chain = _suffixes(row, rates, rounds), row.chain
    path = float(suffixes.path.min()) if chain.micro_batches > chain.pp else 0.0
    return (1 + rounds) * (float(suffixes.work.min()) + 2 * (chain.pp - 1) * chain.hop) + path


def _suffixes(row: OpenRow, rates: Rates, rounds: int) -> Suffixes:
    """Of all stages, from the last one up."""
    chain, columns = row.chain, row.columns
    shape = (chain.layers + 1, *(n + 1 for n in rates.counts))
    below = Suffixes(np.full(shape, np.inf), np.full(shape, np.inf))
    below.work[(-1, *(0 for _ in rates.counts))] = below.path[(-1, *(0 for _ in rates.counts))] = 0.0
    for stage in range(chain.pp - 1, -1, -1):
        look()
        further = Suffixes(np.full(shape, np.inf), np.full(shape, np.inf))
        for k in np.flatnonzero(columns.stage == stage).tolist():
            _extend(row, k, int(rates.merged[row.speed[k]]), rounds, below, further)
        below = further
    return Suffixes(below.work[0], below.path[0])


def _extend(row: OpenRow, k: int, rate: int, rounds: int, below: Suffixes, further: Suffixes) -> None:
    """Put one column before every suffix that it fits."""
    chain, columns = row.chain, row.columns
    stage, length, ticks = int(columns.stage[k]), int(columns.j[k] - columns.i[k]), float(columns.forward[k])
    ticks += float(columns.backward[k])
    begins = np.flatnonzero(chain.places[: chain.layers + 1 - length] == chain.places[columns.i[k]])
    begins = begins[(begins > 0) == (stage > 0)]
    used, free = ([slice(None)] * below.work.ndim for _ in range(2))
    used[1 + rate], free[1 + rate] = slice(1, None), slice(None, -1)
    work, path = (table[begins + length][tuple(free)] for table in (below.work, below.path))
    stays = chain.micro_batches - (1 + rounds) * chain.pp + stage
    path = np.maximum(path, stays * ticks + work + 2 * (chain.pp - 1 - stage) * chain.hop)
    for table, values in ((further.work, work + ticks), (further.path, path)):
        here = table[begins]
        here[tuple(used)] = np.minimum(here[tuple(used)], values)
        table[begins] = here
