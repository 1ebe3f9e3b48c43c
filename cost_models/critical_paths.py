"""Paths through a schedule: each bounds its step from below for every set of durations, the longest one is the step.

The graph and its durations are those of :mod:`cost_models.pipeline`. A path's length is linear in the durations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cost_models.pipeline import START, ScheduleGraph, boundaries, ends

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Path:
    """``forward . f + backward . b + hops * hop + tail[device] <= step`` for every set of durations.

    ``crossed`` counts the path's hops over each boundary between virtual stages, where they are not all alike. Where
    the backward pass is split, ``backward`` counts the input's gradients and ``weights`` the weights'. Of these and of
    the forwards, ``beside`` counts those that run beside each other, which takes as much less as they hide.
    """

    forward: Ints
    backward: Ints
    hops: int
    device: int
    crossed: Ints | None = None
    weights: Ints | None = None
    beside: tuple[Ints, Ints] | None = None

    def ticks(
        self, forward: Ints, backward: Ints, hop: int, tail: Ints, weights: Ints | None = None,
        hidden: tuple[Ints, Ints] | None = None,
    ) -> int:  # fmt: skip
        """The path's length for one set of durations, ``weights`` being part of ``backward`` where that is split.

        ``hidden`` is what a forward and an input's gradient take less when they run beside another.
        """
        ends = self.hops * hop + tail[self.device]
        if hidden is not None and self.beside is not None:
            ends = ends - sum(count @ less for count, less in zip(self.beside, hidden, strict=True))
        if weights is None or self.weights is None:
            return int(self.forward @ forward + self.backward @ backward + ends)
        return int(self.forward @ forward + self.backward @ (backward - weights) + self.weights @ weights + ends)


@dataclass(frozen=True)
class PathTable:
    """Several paths at once, ``[paths, C]``."""

    forward: Ints
    backward: Ints
    weights: Ints
    hops: Ints
    device: Ints

    @staticmethod
    def of(paths: tuple[Path, ...]) -> PathTable:
        """The table of paths none of whose work runs beside other."""
        weights = (path.backward if path.weights is None else path.weights for path in paths)
        columns = ((path.forward for path in paths), (path.backward for path in paths), weights)
        ends = (np.array([getattr(path, name) for path in paths]) for name in ("hops", "device"))
        return PathTable(*(np.stack(list(column)) for column in columns), *ends)

    def longest(
        self, forward: Ints, backward: Ints, hop: int | Ints, tail: Ints, weights: Ints | None = None
    ) -> Ints:  # fmt: skip
        """The length of the longest one, ``[...]``, for durations ``[..., C]`` as :meth:`Path.ticks` takes them."""
        late = np.zeros_like(forward) if weights is None else weights
        work = forward @ self.forward.T + (backward - late) @ self.backward.T + late @ self.weights.T
        return (work + np.multiply.outer(hop, self.hops) + tail[..., self.device]).max(axis=-1)


@dataclass(frozen=True)
class Trace:
    """A longest path from its end to its start: its nodes, which of them waited for data from another device.

    ``kinds`` and ``counts`` say which work it passes and how often each kind, ``over`` the virtual stage (see
    :func:`cost_models.pipeline.boundaries`) whose data each node waited for: its own, or that of the backward which it
    runs beside.
    """

    nodes: Ints
    crossed: Ints
    kinds: Ints
    counts: Ints
    device: int
    over: Ints

    @property
    def hops(self) -> int:
        """How often it crosses devices."""
        return int(self.crossed.sum())


def critical_path(
    graph: ScheduleGraph, forward: Ints, backward: Ints, hop: int | Ints, tail: Ints, weights: Ints | None = None,
    hidden: tuple[Ints, Ints] | None = None,
) -> Path:  # fmt: skip
    """A longest path for one set of durations (``[C]``, ``[C]``, number or ``[C - 1]``, ``[pp]``, ``[C]``, pair)."""
    each = np.broadcast_to(np.asarray(hop, dtype=np.int64), (max(1, graph.chunks - 1),))
    more = [one[None] for one in (weights, *(hidden or ())) if one is not None]
    end = ends(graph, forward[None], backward[None], each[None], *more)[:, 0]
    found, crossed = trace(graph, end, each, tail), np.zeros(max(1, graph.chunks - 1), dtype=np.int64)
    np.add.at(crossed, boundaries(graph, found.over), found.crossed)
    return path_of(graph, found.counts, found.hops, found.device, crossed)


def path_of(graph: ScheduleGraph, counts: Ints, hops: int, device: int, crossed: Ints | None = None) -> Path:
    """A path from how often it passes every kind of work."""
    forward, backward, *weights = np.split(counts[: graph.passes * graph.chunks], graph.passes)
    beside = tuple(np.split(counts[graph.passes * graph.chunks :], 2)) if graph.together is not None else None
    if beside is not None:
        forward, backward = forward + beside[0], backward + beside[1]
    return Path(forward, backward, hops, device, crossed, *(weights or (None,)), beside)


def trace(graph: ScheduleGraph, end: Ints, hop: int | Ints, tail: Ints) -> Trace:
    """The longest path behind the ends of all nodes (see :func:`ends`); ``hop`` a number or ``[C - 1]``."""
    each = np.broadcast_to(np.asarray(hop, dtype=np.int64), (max(1, graph.chunks - 1),))
    boundary = boundaries(graph, np.arange(graph.passes * graph.chunks))
    device = int(np.argmax(end[graph.last] + tail))
    place = np.empty(end.size - 1, dtype=np.int64)
    place[graph.node] = np.arange(graph.node.size)
    walked, node = [], int(graph.last[device])
    while node != START:
        at = int(place[node])
        arrivals = [
            (end[source] + far * each[boundary[chunk]], source, far, chunk)
            for source, far, chunk in _waited_for(graph, at)
            if source != START
        ]
        latest, source, far, chunk = max(arrivals, default=(-1, START, 0, node // graph.micro_batches))
        before = int(graph.before[at])
        by_data = source != START and (before == START or latest >= end[before])
        walked.append((node, at, far if by_data else 0, chunk))
        node = source if by_data else before
    nodes, places, crossed, over = np.array(walked, dtype=np.int64).T
    kinds, every = graph.kinds[places], (graph.passes + 2 * (graph.together is not None)) * graph.chunks
    return Trace(nodes, crossed, kinds, np.bincount(kinds, minlength=every), device, over)


def _waited_for(graph: ScheduleGraph, at: int) -> list[tuple[int, int, int]]:
    """``(source, whether it is far, virtual stage whose boundary it crosses)`` of all data the node at ``at`` needs."""
    own = (int(graph.source[at]), int(graph.far[at]), int(graph.node[at]) // graph.micro_batches)
    if graph.together is None:
        return [own]
    return [own, *(tuple(int(a[at]) for a in (graph.together.source, graph.together.far, graph.together.chunk)),)]


@lru_cache(maxsize=1024)
def seed_paths(pp: int, virtual: int, micro_batches: int) -> tuple[Path, ...]:
    """Paths known without running the schedule; each is a lower bound for every set of durations.

    With ``t = f + b`` and stage ``s``: all work of its device between the fill and the drain,

        sum_{j<s} f_j + m t_s + sum_{j<s} b_j      (and with stage s's own tail instead of the drain)

    and for 1F1B with ``m > pp - s`` the first micro-batch down and up to ``s``, then ``m - pp + s``
    micro-batches there, then the last one down and up:

        S + (m - pp + s) t_s + sum_{j>s} t_j

    whose convex combination over ``s`` gives the classical ``S + (m - 1) S / pp`` for any split; and the same that go
    round all stages first (:func:`round_path`).
    """
    paths = [_whole_path(pp, virtual)]
    for s in range(pp):
        paths += _device_paths(pp, virtual, micro_batches, s)
        if virtual == 1 and micro_batches > pp - s:
            paths += _return_paths(pp, micro_batches, s)
        if virtual == 1 and pp > 1 and micro_batches - pp + s > pp:
            paths.append(round_path(pp, micro_batches, 0, pp - 1, s))
    return tuple(paths)


def _whole_path(pp: int, virtual: int) -> Path:
    chunks = pp * virtual
    ones = np.ones(chunks, dtype=np.int64)
    return Path(ones, ones.copy(), 2 * (chunks - 1) if pp > 1 else 0, 0)


def _device_paths(pp: int, virtual: int, m: int, s: int) -> list[Path]:
    forward, drain = np.zeros(pp * virtual, dtype=np.int64), np.zeros(pp * virtual, dtype=np.int64)
    forward[:s] = 1
    forward[s::pp] = m
    drain[s::pp] = m
    undrained = drain.copy()
    drain[:s] = 1
    return [Path(forward, drain, 2 * s, 0), Path(forward, undrained, s, s)]


def _return_paths(pp: int, m: int, s: int) -> list[Path]:
    below = pp - 1 - s
    forward, backward = np.ones(pp, dtype=np.int64), np.ones(pp, dtype=np.int64)
    for work in (forward, backward):
        work[s] += m - pp + s
        work[s + 1 :] += 1
    undrained = backward.copy()
    undrained[:s] = 0
    return [Path(forward, backward, 2 * (pp - 1) + 2 * below, 0), Path(forward, undrained, (pp - 1) + 3 * below, s)]


def round_path(pp: int, m: int, first: int, last: int, s: int) -> Path:
    """The return path of stage ``s``, which first goes round stages ``first`` to ``last``, ``s`` among them.

    From the backward of a micro-batch at ``s`` up to ``first``, down to ``last`` and up to ``s`` it is as many further
    as these are stages, ``w``; so it goes round while ``m - pp + s - 1`` micro-batches leave room for that:

        S + r sum_{first<=j<=last} t_j + (m - pp + s - r w) t_s + sum_{j>s} t_j      r = floor((m - pp + s - 1) / w)
    """
    stage, width = np.arange(pp), last - first + 1
    rounds = (m - pp + s - 1) // width
    passes = 1 + (stage > s) + rounds * ((first <= stage) & (stage <= last))
    passes[s] += m - pp + s - rounds * width
    return Path(passes, passes.copy(), 2 * (pp - 1) + 2 * (pp - 1 - s) + 2 * rounds * (width - 1), 0)
