"""Pipelines a move away from one that was found: is one of them quicker?

A move gives a layer of one of the slowest stages to another, exchanges the slots of one of them with another's, or
gives a stage another slot, of many stages only a slow one. All moves run through the schedule at once, the best is
moved from again until none is better. Nothing here is needed for a proof; a better incumbent makes proofs short.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.search.deadline import look
from planner.search.mixed.pipelines import Chosen, Pipeline, learn, quickest, ways, with_other_ends
from planner.search.mixed.stages import Slots
from planner.search.mixed.table import NEVER, StageTable

Ints = NDArray[np.int64]
SLOWEST, FEW = 4, 12
MOST_TURNS, EVENTS = 16, 100_000
"""Moves in a row at most, and passes of one pipeline through its stages in all of them."""


def improved(
    table: StageTable, slots: Slots, devices: Ints, stages: Chosen, best: tuple[float, Pipeline]
) -> tuple[tuple[float, Pipeline], int]:
    """The value and the pipeline of the best found from ``best`` on, which has ``stages``; how many were tried."""
    tried, turns = 0, min(MOST_TURNS, EVENTS // (table.micro_batches * len(stages)))
    for _ in range(turns):
        look()
        moves = _moves(table, slots, devices, stages)
        each = quickest(table, slots, moves, below=best[0])
        tried += len(moves)
        k = min(range(len(moves)), key=lambda it: each[it][0], default=-1)
        if k < 0 or each[k][0] >= best[0]:
            break
        stages, best = moves[k], each[k]
    ends, more = with_other_ends(table, slots, stages, best[1], best[0])
    return min(best, ends, key=lambda it: it[0]), tried + more


def _moves(table: StageTable, slots: Slots, devices: Ints, stages: Chosen) -> list[Chosen]:
    """Every move from some stages, those left out that use more devices than there are or do not fit."""
    way = _ways(table, slots, stages)
    slowest = np.argsort([-sum(table.one(*key)[:2]) for key in way], kind="stable")[:SLOWEST].tolist()
    slot, n = [s for s, _, _ in stages], [j - i for _, i, j in stages]
    found = []
    for a in slowest:
        for b in range(len(stages)):
            if a != b and n[a] > 1:
                found.append((slot, [x - (k == a) + (k == b) for k, x in enumerate(n)]))
            if slot[a] != slot[b]:
                found.append(([slot[{a: b, b: a}.get(k, k)] for k in range(len(slot))], n))
    for a in range(len(stages)) if len(stages) <= FEW else slowest:
        found += [([*slot[:a], s, *slot[a + 1 :]], n) for s in range(len(slots.part)) if s != slot[a]]
    moved = [_joined(*one) for one in found if _room(slots, devices, one[0])]
    moved = [it for it in moved if all(table.segments.index[i, j] >= 0 for _, i, j in it)]
    learn(table, slots, moved)
    return [it for it in moved if all(table.one(*key)[0] < NEVER for key in _ways(table, slots, it))]


def _joined(slot: list[int], n: list[int]) -> Chosen:
    ends = np.cumsum(n).tolist()
    return [(s, j - x, j) for s, x, j in zip(slot, n, ends, strict=True)]


def _room(slots: Slots, devices: Ints, slot: list[int]) -> bool:
    used = np.bincount(slots.part[slot], weights=slots.size[slot], minlength=len(devices))
    return bool((used <= devices).all())


def _ways(table: StageTable, slots: Slots, stages: Chosen) -> list[tuple[int, int, int, int]]:
    """Way, flight, segment and recompute of every stage."""
    flight = table.flight(len(stages) - np.arange(len(stages))).tolist()
    segment = [int(table.segments.index[i, j]) for _, i, j in stages]
    each = zip(ways(table, slots, stages, table.micro_batches), flight, segment, strict=True)
    return [(way, f, g, recompute) for (way, recompute), f, g in each]
