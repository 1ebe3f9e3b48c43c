"""Longest paths of 1F1B schedules too long to be written down: the steady state's cycle, as often as it takes.

A step of ``m`` micro-batches that has settled (:func:`cost_models.pipeline.settled_shift`) after ``w`` of them grows by
the same ticks with each further one. The longest path of ``w`` micro-batches then passes the settled window by the same
kind of work ``u`` and again ``v``, ``d`` micro-batches later; between them it costs ``d`` times that growth, and of
``m`` micro-batches

    path(m) = path(w) up to v  +  (m - w)/d times u -> v  +  path(w) from v on

is a path, since the order of work is the same everywhere but near its two ends, and as long as the step. So a hundred
thousand micro-batches need no graph of their own, whose nodes would be millions.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cost_models.pipeline import (
    Path,
    Trace,
    critical_path,
    ends,
    lookback,
    schedule_graph,
    settled_shift,
    settling_micro_batches,
    trace,
)

Ints = NDArray[np.int64]


def longest_path(pp: int, micro_batches: int, forward: Ints, backward: Ints, hop: int, tail: Ints) -> Path:
    """A longest path of the 1F1B schedule for one set of durations (``[pp]``, ``[pp]``, number, ``[pp]``)."""
    window = settling_micro_batches(pp, 1)
    while window < micro_batches:
        found, repeats = _extended(pp, micro_batches, window, forward, backward, hop, tail)
        if found is not None:
            return found
        window = 2 * window
        window += (micro_batches - window) % repeats if window < micro_batches else 0
    return critical_path(schedule_graph(pp, 1, micro_batches), forward, backward, hop, tail)


def _extended(
    pp: int, m: int, window: int, forward: Ints, backward: Ints, hop: int, tail: Ints
) -> tuple[Path | None, int]:
    """The path of ``window`` micro-batches made longer; ``None`` where that has not settled or no cycle divides.

    The number is what the micro-batches that are left must be a multiple of.
    """
    graph = schedule_graph(pp, 1, window)
    end = ends(graph, forward[None], backward[None], np.array([hop]))
    if settled_shift(graph, end)[0] is None:
        return None, 1
    walked = trace(graph, end[:, 0], hop, tail)
    after = window - lookback(pp, 1)
    cycles = _cycles(walked, window, after - lookback(pp, 1), after)
    dividing = [(d, first, last) for d, first, last in cycles if (m - window) % d == 0]
    if not dividing:
        return None, min((d for d, _, _ in cycles), default=1)
    d, first, last = dividing[0]
    once = np.bincount(walked.nodes[first:last] // window, minlength=2 * pp)
    times = (m - window) // d
    hops = walked.hops + times * int(walked.crossed[first:last].sum())
    counts = walked.counts + times * once
    return Path(counts[:pp], counts[pp:], hops, walked.device), d


def _cycles(walked: Trace, window: int, first: int, after: int) -> list[tuple[int, int, int]]:
    """``(d, from, to)``: positions on the path of the same kind of work, ``d`` micro-batches apart, shortest first."""
    kind, batch = np.divmod(walked.nodes, window)
    inside = np.flatnonzero((batch >= first) & (batch < after))
    found = []
    for one in np.unique(kind[inside]):
        at = inside[kind[inside] == one]
        found += [(int(batch[a] - batch[b]), int(a), int(b)) for a, b in pairwise(at)]
    return sorted(cycle for cycle in found if cycle[0] > 0)
