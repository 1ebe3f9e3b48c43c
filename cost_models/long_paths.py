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

from cost_models.critical_paths import Path, Trace, critical_path, path_of, trace
from cost_models.pipeline import ScheduleGraph, ends, settled_shift
from cost_models.schedules import Schedule

Ints = NDArray[np.int64]


def longest_path(
    it: Schedule, forward: Ints, backward: Ints, hop: int, tail: Ints, weights: Ints | None = None,
    hidden: tuple[Ints, Ints] | None = None,
) -> Path:  # fmt: skip
    """A longest path of a schedule that repeats with every micro-batch, for one set of durations.

    They are ``[C]``, ``[C]``, a number, ``[pp]`` and ``[C]``, the last where the schedule splits the backward pass, and
    what is hidden of work that runs beside other.
    """
    if it.mirrored:
        return longest_path(it.half, forward, backward, hop, tail[: it.half.pp], weights, hidden)
    window, micro_batches, work = it.settling, it.micro_batches, (forward, backward, hop, tail, weights, hidden)
    while window < micro_batches:
        found, repeats = _extended(it, window, *work)
        if found is not None:
            return found
        window = 2 * window
        window += (micro_batches - window) % repeats if window < micro_batches else 0
    return critical_path(it.graph(), *work)


def _extended(
    it: Schedule, window: int, forward: Ints, backward: Ints, hop: int, tail: Ints, weights: Ints | None,
    hidden: tuple[Ints, Ints] | None,
) -> tuple[Path | None, int]:  # fmt: skip
    """The path of ``window`` micro-batches made longer; ``None`` where that has not settled or no cycle divides.

    The number is what the micro-batches that are left must be a multiple of.
    """
    graph, m = it.of(window).graph(), it.micro_batches
    more = [one[None] for one in (weights, *(hidden or ())) if one is not None]
    end = ends(graph, forward[None], backward[None], np.array([hop]), *more)
    if settled_shift(graph, end)[0] is None:
        return None, 1
    walked = trace(graph, end[:, 0], hop, tail)
    after = window - graph.lookback
    cycles = _cycles(walked, graph, after - graph.lookback)
    dividing = [(d, first, last) for d, first, last in cycles if (m - window) % d == 0]
    if not dividing:
        return None, min((d for d, _, _ in cycles), default=1)
    d, first, last = dividing[0]
    once = np.bincount(walked.kinds[first:last], minlength=walked.counts.size)
    times = (m - window) // d
    hops = walked.hops + times * int(walked.crossed[first:last].sum())
    return path_of(graph, walked.counts + times * once, hops, walked.device), d


def _cycles(walked: Trace, graph: ScheduleGraph, first: int) -> list[tuple[int, int, int]]:
    """``(d, from, to)``: positions on the path of the same kind of work, ``d`` micro-batches apart, shortest first.

    They lie in the ``lookback`` micro-batches from ``first`` on, whole periods of the schedule apart.
    """
    kind, batch = np.divmod(walked.nodes, graph.micro_batches)
    inside = np.flatnonzero((batch >= first) & (batch < first + graph.lookback))
    place = kind * graph.period + batch % graph.period
    found = []
    for one in np.unique(place[inside]):
        at = inside[place[inside] == one]
        found += [(int(batch[a] - batch[b]), int(a), int(b)) for a, b in pairwise(at)]
    return sorted(cycle for cycle in found if cycle[0] > 0)
