"""Pipeline schedules: when every forward and backward runs, how long the step takes, and what bounds it.

A schedule fixes the order of work on each device. Step time is then the longest path in a graph whose
nodes are ``F(c, i)`` and ``B(c, i)`` for virtual stage ``c`` and micro-batch ``i``, with edges

    F(c-1, i) -> F(c, i)      one hop          F(C-1, i) -> B(C-1, i)
    B(c+1, i) -> B(c, i)      one hop          each device's work in its order

plus, on each device, the tail (gradient reduction, optimiser, weight gathering) after its last work.
Durations depend on the virtual stage only. Every path through the graph is a lower bound that is linear
in the durations, whatever they are; the longest path for one set of durations is the step time for that
set (:mod:`cost_models.critical_paths`).

Virtual stage ``c`` lives on device ``c mod pp``. 1F1B: Narayanan et al., PipeDream, arXiv:1806.03377, in
the flushing form of arXiv:2006.09503; interleaved: Narayanan et al., arXiv:2104.04473, section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
START = -1
NEVER = np.iinfo(np.int64).max
NARROW_WAVE = 16
"""Nodes a wave, times columns, up to which one node after the other is quicker than one wave after the other."""


@dataclass(frozen=True)
class Together:
    """Work that a device does in one piece: a forward beside a backward, a backward in two parts without a break.

    All arrays are by place in the waves. ``kind`` counts on from ``chunk`` in steps of the virtual stages: forwards,
    inputs' gradients, weights', then forwards and inputs' gradients that run beside each other. The first node of a
    piece also waits for ``source``, a hop away where ``far``, over the boundary of ``chunk``.
    """

    kind: Ints
    source: Ints
    far: Ints
    chunk: Ints


@dataclass(frozen=True)
class ScheduleGraph:
    """The order of work, cut into waves of independent nodes.

    A node's number is ``i + m * c`` for ``F(c, i)`` and ``m * C`` more for ``B(c, i)``, as much again for ``W(c, i)``
    where the backward pass is split in two: three ``passes``. Wave ``w`` holds nodes ``node[wave[w]:wave[w + 1]]``;
    ``before`` is the previous node on the device, ``source`` the one whose data it needs (``START`` for none), ``far``
    whether that data crosses devices. After ``period`` micro-batches the order repeats, and what a node waits for is
    at most ``lookback`` micro-batches away. ``together`` says what runs in one piece, where something does.
    """

    pp: int
    virtual: int
    micro_batches: int
    node: Ints
    wave: Ints
    before: Ints
    source: Ints
    far: Ints
    last: Ints
    lookback: int
    period: int
    passes: int = 2
    together: Together | None = None

    @property
    def kinds(self) -> Ints:
        """Of which duration every node is, by place in the waves."""
        return self.node // self.micro_batches if self.together is None else self.together.kind

    @cached_property
    def edges(self) -> tuple[list[int], list[int], list[int]]:
        """Every node with its source and the one before it, in plain integers."""
        return self.node.tolist(), self.source.tolist(), self.before.tolist()

    @property
    def chunks(self) -> int:
        """Virtual stages in all."""
        return self.pp * self.virtual


def device_order(pp: int, virtual: int, micro_batches: int, device: int) -> Ints:
    """The work of one device in order, as node numbers (see :class:`ScheduleGraph`), ``[2 m v]``.

    1F1B runs ``pp - device`` forwards ahead, then one backward for each forward. Interleaved runs
    ``2 (pp - device - 1) + (v - 1) pp + 1`` ahead, in groups of ``pp`` micro-batches through each of its
    virtual stages in turn.
    """
    total, m = micro_batches * virtual, micro_batches
    k = np.arange(total)
    if virtual == 1:
        ahead, turn, batch = min(total, pp - device), np.zeros_like(k), k
    else:
        ahead = warmup_forwards(pp, virtual, m, device)
        turn, batch = (k // pp) % virtual, (k // (pp * virtual)) * pp + k % pp
    forwards = batch + m * (device + pp * turn)
    backwards = batch + m * (device + pp * (virtual - 1 - turn)) + m * pp * virtual
    order = np.empty(2 * total, dtype=np.int64)
    order[:ahead] = forwards[:ahead]
    paired = total - ahead
    order[ahead : ahead + 2 * paired : 2] = backwards[:paired]
    order[ahead + 1 : ahead + 2 * paired : 2] = forwards[ahead:]
    order[ahead + 2 * paired :] = backwards[paired:]
    return order


def warmup_forwards(pp: int, virtual: int, micro_batches: int, device: int) -> int:
    """Forwards that a device of an interleaved schedule runs before its first backward."""
    return min(micro_batches * virtual, 2 * (pp - device - 1) + (virtual - 1) * pp + 1)


@lru_cache(maxsize=512)
def schedule_graph(pp: int, virtual: int, micro_batches: int) -> ScheduleGraph:
    """The waves of a schedule.

    Raises ``ValueError`` for an interleaved one whose ``micro_batches`` are not a multiple of ``pp``.
    """
    _check_interleaving(pp, virtual, micro_batches)
    order = np.stack([device_order(pp, virtual, micro_batches, s) for s in range(pp)])
    edges = _data_edges(pp, virtual, micro_batches)
    return ordered((pp, virtual, micro_batches), order, edges, lookback(pp, virtual), 1 if virtual == 1 else pp)


def ordered(
    shape: tuple[int, int, int], order: Ints, edges: tuple[Ints, Ints], back: int, period: int, passes: int = 2,
    joined: tuple[Ints, Ints] | None = None,
) -> ScheduleGraph:  # fmt: skip
    """The graph of ``order``, each device's nodes ``[pp, passes m v]``, with ``(source, far)`` of every node.

    ``joined`` has for every node the last of its piece, and the backward that a forward runs beside or ``START``.
    """
    source, far = edges
    before = np.full(source.size, START, dtype=np.int64)
    before[order[:, 1:]] = order[:, :-1]
    if joined is None:
        node, wave = _waves(order, source)
        together = None
    else:
        source = _at_the_end(shape, source, joined[0])
        node, wave = _waves(order, source, np.where(joined[1] == START, START, source[joined[1]]))
        together = _together(shape, node, source, far, joined[1])
    return ScheduleGraph(
        *shape, node, wave, before[node], source[node], far[node], order[:, -1].copy(), back, period, passes, together
    )


def _at_the_end(shape: tuple[int, int, int], source: Ints, last: Ints) -> Ints:
    """Sources put off to the end of their piece; the weights' gradients follow their own backward at once."""
    late = np.where(source == START, START, last[source])
    own = 2 * shape[0] * shape[1] * shape[2]
    late[own:] = source[own:]
    return late


def _together(shape: tuple[int, int, int], node: Ints, source: Ints, far: Ints, partner: Ints) -> Together:
    """What runs in one piece, by place in the waves, from ``partner`` of every forward."""
    m, chunks = shape[2], shape[0] * shape[1]
    beside = np.zeros(source.size, dtype=bool)
    paired = np.flatnonzero(partner != START)
    beside[paired] = beside[partner[paired]] = True
    kind = np.arange(source.size) // m + 3 * chunks * beside
    mine = partner[node]
    some = mine != START
    return Together(
        kind[node], np.where(some, source[mine], START), np.where(some, far[mine], 0), np.where(some, mine // m, 0)
    )


def _check_interleaving(pp: int, virtual: int, micro_batches: int) -> None:
    if virtual > 1 and micro_batches % pp:
        raise ValueError(
            f"an interleaved schedule runs groups of pp micro-batches: micro_batches = {micro_batches} is not a "
            f"multiple of pp = {pp}; take one that is, or virtual_stages = 1"
        )


def _data_edges(pp: int, virtual: int, micro_batches: int) -> tuple[Ints, Ints]:
    m, chunks = micro_batches, pp * virtual
    forward = np.arange(m * chunks) - m
    forward[:m] = START
    backward = np.arange(m * chunks) + m * (chunks + 1)
    backward[-m:] = np.arange(m) + m * (chunks - 1)
    far = np.full(2 * m * chunks, int(pp > 1), dtype=np.int64)
    far[:m] = 0
    far[-m:] = 0
    return np.concatenate([forward, backward]), far


def _waves(order: Ints, source: Ints, also: Ints | None = None) -> tuple[Ints, Ints]:
    """Nodes in an order in which each wave needs earlier waves only, and where the waves begin.

    A node needs its ``source``, and what is in ``also``.
    """
    waits, beside = (edges.tolist() for edges in (source, source if also is None else also))
    devices = [iter(row) for row in order.tolist()]
    heads = [next(device) for device in devices]
    wave_of, nodes, starts = [NEVER] * source.size + [START], list[int](), [0]
    while len(nodes) < order.size:
        wave = len(starts) - 1
        for d, node in enumerate(heads):
            if node != START and wave_of[waits[node]] < wave and wave_of[beside[node]] < wave:
                wave_of[node] = wave
                nodes.append(node)
                heads[d] = next(devices[d], START)
        if len(nodes) == starts[-1]:
            raise RuntimeError("the schedule waits for itself")
        starts.append(len(nodes))
    return np.array(nodes, dtype=np.int64), np.array(starts)


def ends(
    graph: ScheduleGraph, forward: Ints, backward: Ints, hop: Ints, weights: Ints | None = None,
    hidden_forward: Ints | None = None, hidden_backward: Ints | None = None,
) -> Ints:  # fmt: skip
    """End of every node, ``[nodes + 1, batch]``; the last row is the start of the step, 0.

    ``forward`` and ``backward`` are ``[batch, C]`` ticks, so are ``weights``, a part of ``backward``, where it is
    split, and what is hidden of a forward and an input's gradient beside each other; ``hop`` is ``[batch]``, or
    ``[batch, C - 1]`` by boundary.
    """
    work = (forward, backward) if weights is None else (forward, backward - weights, weights)
    if graph.together is not None:
        work = (*work, work[0] - hidden_forward, work[1] - hidden_backward)
    ticks, kind = np.concatenate(work, axis=1).T, graph.kinds
    end = np.zeros((graph.node.size + 1, forward.shape[0]), dtype=np.int64)
    reach = _reach(graph, hop, graph.far, graph.node // graph.micro_batches)
    both = graph.together
    if both is None and end.size <= NARROW_WAVE * graph.wave.size:
        return _one_by_one(graph, ticks, reach)
    other = None if both is None else _reach(graph, hop, both.far, both.chunk)
    for first, after in zip(graph.wave[:-1].tolist(), graph.wave[1:].tolist(), strict=True):
        data = end[graph.source[first:after]] + reach[first:after]
        if both is not None:
            data = np.maximum(data, end[both.source[first:after]] + other[first:after])
        start = np.maximum(data, end[graph.before[first:after]])
        end[graph.node[first:after]] = start + ticks[kind[first:after]]
    return end


def _one_by_one(graph: ScheduleGraph, ticks: Ints, reach: Ints) -> Ints:
    """What :func:`ends` gives, node by node in plain integers: of a few short waves' columns."""
    columns = []
    for each, far in zip(ticks[graph.kinds].T.tolist(), reach.T.tolist(), strict=True):
        end = [0] * (graph.node.size + 1)
        for node, source, before, late, work in zip(*graph.edges, far, each, strict=True):
            data, free = end[source] + late, end[before]
            end[node] = (data if data > free else free) + work
        columns.append(end)
    return np.array(columns, dtype=np.int64).T


def _reach(graph: ScheduleGraph, hop: Ints, far: Ints, chunk: Ints) -> Ints:
    """Ticks that data is on its way, ``[nodes, batch]``."""
    return far[:, None] * (hop[None, :] if hop.ndim == 1 else hop.T[boundaries(graph, chunk)])


def boundaries(graph: ScheduleGraph, chunk: Ints) -> Ints:
    """The boundary before a forward's virtual stage, after a backward's (``chunk`` counted on from the forwards)."""
    return np.clip(np.where(chunk < graph.chunks, chunk - 1, chunk - graph.chunks), 0, max(0, graph.chunks - 2))


def step_ticks(pp: int, virtual: int, micro_batches: int, forward: Ints, backward: Ints, hop: Ints, tail: Ints) -> Ints:
    """Ticks of the whole step, ``[batch]``; ``tail`` is ``[batch, pp]``, ``hop`` as in :func:`ends`."""
    _check_interleaving(pp, virtual, micro_batches)
    short = settling_micro_batches(pp, virtual)
    return repeated_ticks(
        lambda count: schedule_graph(pp, virtual, count), micro_batches, short, (forward, backward), hop, tail
    )


def repeated_ticks(
    graph_of: Callable[[int], ScheduleGraph], micro_batches: int, short: int, work: tuple[Ints, ...], hop: Ints,
    tail: Ints,
) -> Ints:  # fmt: skip
    """Ticks of the whole step, ``[batch]``, of a schedule with any number of micro-batches; from ``short`` on, it asks.

    In its steady state a schedule repeats: when every node of a window longer than any dependency ends
    exactly one period later than the same node a period earlier, so do all nodes after it, and each further
    period adds as much. Long steps are computed that way, exactly, over windows twice as long each time; one that two
    windows would cover is computed whole. ``work`` is forward, backward and, as :func:`ends` takes them, the weights'
    part and what is hidden, each ``[batch, C]``.
    """
    step, rest = np.zeros(len(hop), dtype=np.int64), np.arange(len(hop))
    while rest.size:
        graph = graph_of(short if 2 * short <= micro_batches else micro_batches)
        end = ends(graph, work[0][rest], work[1][rest], hop[rest], *(w[rest] for w in work[2:]))
        whole = (end[graph.last].T + tail[rest]).max(axis=1)
        if graph.micro_batches == micro_batches:
            step[rest] = whole
            break
        shift = settled_shift(graph, end)
        done = np.array([one is not None for one in shift])
        further = np.array([one or 0 for one in shift], dtype=np.int64)
        step[rest] = whole + (micro_batches - short) // graph.period * further
        rest, short = rest[~done], 2 * short
    return step


def settled_shift(graph: ScheduleGraph, end: Ints) -> list[int | None]:
    """Ticks that each further period adds, for every column of ``end``; ``None`` where the schedule has not settled."""
    back, period = graph.lookback, graph.period
    by_node = end[:-1].reshape(graph.passes * graph.chunks, graph.micro_batches, -1)
    after = graph.micro_batches - back
    shift = by_node[:, after - back : after] - by_node[:, after - back - period : after - period]
    settled = (shift == shift[:1, :1]).all(axis=(0, 1))
    return [int(ticks) if same else None for ticks, same in zip(shift[0, 0], settled, strict=True)]


def lookback(pp: int, virtual: int) -> int:
    """Micro-batches within which everything a node waits for lies."""
    return pp + 1 if virtual == 1 else 3 * pp


def settling_micro_batches(pp: int, virtual: int) -> int:
    """Micro-batches simulated before a schedule is asked whether it has settled."""
    return 4 * lookback(pp, virtual) + 8 if virtual == 1 else 5 * lookback(pp, virtual)


def filling_micro_batches(pp: Ints | int, micro_batches: Ints | int) -> Ints:
    """Of so many micro-batches those after which devices hold no more at any moment than they did before."""
    return np.minimum(micro_batches, 4 * pp)


@lru_cache(maxsize=4096)
def in_flight(pp: int, virtual: int, micro_batches: int, device: int) -> tuple[tuple[int, ...], ...]:
    """Micro-batches whose activations each virtual stage of a device holds at its worst moments.

    Each entry is a vector over the device's ``virtual`` stages; memory must suffice for every one. For 1F1B
    it is the single number ``min(m, pp - device)``. Interleaved, a device holds the most right after a forward, when
    as many backwards are done as forwards beyond those of the warm-up. These moments hold equally many in all, so that
    none exceeds another, and come again after every round of the virtual stages.
    """
    if virtual == 1:
        return ((min(micro_batches, pp - device),),)
    ahead, block = warmup_forwards(pp, virtual, micro_batches, device), pp * virtual
    forwards = np.arange(ahead, min(micro_batches * virtual, ahead + block - 1) + 1)
    done = _by_turn(forwards, pp, virtual) - _by_turn(forwards - ahead, pp, virtual)[:, ::-1]
    return tuple(sorted(set(map(tuple, done.tolist()))))


def _by_turn(count: Ints, pp: int, virtual: int) -> Ints:
    """Of the first ``count`` passes of a device, in groups of ``pp``, those of each virtual stage, ``[counts, v]``."""
    rounds, rest = np.divmod(count, pp * virtual)
    return (rounds * pp)[:, None] + np.clip(rest[:, None] - pp * np.arange(virtual), 0, pp)
