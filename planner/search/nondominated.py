"""Which of many points no other point is at most as large as in everything: an exact sieve on sets of bits.

Points are taken in order of the sum of their ranks, in which a point can only be dominated by one before it, a block
of them at a time. Of one block and one quantity, the points at most as large as any value are the first few in that
quantity's order: one set of bits for every place in it, made by running ORs. What dominates a point is the AND of its
set in every quantity. A block is first held against itself; those of it that stay are then held against all that comes
later, and by transitivity nothing else of it has to be.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bits = NDArray[np.uint64]
BLOCK = 1024
"""Points that are held at once against those after them; sets of their bits stay in the processor's cache."""
WORD = 64


def nondominated(points: Floats) -> Ints:
    """Positions of ``[points, quantities]`` that no other point is below or equal to in everything, ascending.

    Of equal points the first one stays.
    """
    ranks = _distinct_ranks(points)
    order = np.argsort(ranks.sum(axis=0), kind="stable")
    ranks, found, left = np.ascontiguousarray(ranks[:, order]), [], np.arange(len(order))
    while len(left):
        block, left = left[:BLOCK], left[BLOCK:]
        block = block[~_dominated(ranks[:, block], ranks[:, block], within=True)]
        found.append(block)
        if len(left):
            left = left[~_dominated(ranks[:, block], ranks[:, left])]
    return np.sort(order[np.concatenate(found)]) if found else order


def _distinct_ranks(points: Floats) -> Ints:
    """``[quantities, points]``: the place of each value among its quantity's, quantities of the same order once.

    Those in which most points differ come first: they tell points apart soonest.
    """
    ranks = {}
    for values in points.T[(points != points[:1]).any(axis=0)]:
        distinct, rank = np.unique(values, return_inverse=True)
        ranks[rank.tobytes()] = (len(distinct), rank)
    table = [rank for _, rank in sorted(ranks.values(), key=lambda it: -it[0])]
    return np.stack(table) if table else np.zeros((1, len(points)), dtype=np.int64)


def _dominated(block: Ints, ranks: Ints, *, within: bool = False) -> NDArray[np.bool_]:
    """Which of ``ranks``, ``[quantities, points]``, some point of ``block`` is at most as large as in everything.

    With ``within`` they are the points of the block, and only earlier ones count.
    """
    words = -(-block.shape[1] // WORD)
    of = np.arange(ranks.shape[1])
    below = _earlier(block.shape[1], words) if within else None
    for mine, asked in zip(block, ranks, strict=True):
        here = _at_most(mine, int(asked.max()) + 1, words)[asked[of]]
        below = here if below is None else np.bitwise_and(below, here, out=below)
        some = np.bitwise_or.reduce(below, axis=1) != 0
        if 4 * np.count_nonzero(some) < 3 * len(of):
            of, below = of[some], below[some]
    found = np.zeros(ranks.shape[1], dtype=bool)
    found[of[below.any(axis=1)]] = True
    return found


def _at_most(ranks: Ints, most: int, words: int) -> Bits:
    """The set of the points whose rank is at most ``r``, for every ``r`` below ``most``, ``[most, words]``."""
    order = np.argsort(ranks, kind="stable")
    sets = np.zeros((len(order) + 1, words), dtype=np.uint64)
    sets[np.arange(1, len(order) + 1), order // WORD] = np.uint64(1) << (order % WORD).astype(np.uint64)
    sets = np.bitwise_or.accumulate(sets, axis=0)
    return sets[np.searchsorted(ranks[order], np.arange(most), "right")]


def _earlier(points: int, words: int) -> Bits:
    """For every point the set of those before it, ``[points, words]``."""
    return np.concatenate([np.zeros((1, words), dtype=np.uint64), _at_most(np.arange(points), points - 1, words)])
