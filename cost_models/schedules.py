"""Every pipeline schedule by its name: 1F1B, interleaved, and those whose order of work differs.

``zb-h1`` splits the backward pass into the input's gradient ``B``, which the stage before waits for, and the weights'
``W``, which fills gaps: 1F1B whose stage ``s`` leaves ``s`` micro-batches' ``W`` for later, at no more memory than
1F1B. Of its device time ``(p - 1)(F + B - W)`` is idle where stages are alike, of 1F1B's ``(p - 1)(F + B + W)``.

``zbv``, ``v-half``, ``v-min`` split it too. A device has two virtual stages, ``s`` and ``2p - 1 - s``, so that the
last lies beside the first. One micro-batch's ``F0 F1 B1 B0`` begin on neighbouring devices 4, 2, 4, 2 (or 2, 1, 2, 1,
or 1, 1, 1, 1) units apart, a unit being one of six equal pieces of work; the block repeats every six units, and ``W``
takes the two slots left. The sum of the four, 12, 6 or 4, makes activations last for all, half or a third of 1F1B's.
These offsets are derived from those memories and from every device having to hold as much.

``eager-1f1b`` is 1F1B with more micro-batches in flight, so that a stage need not wait for what is on its way:
``in_flight`` on the first device, as many more than 1F1B on the others, and on none above ``2 (p - s) - 1``.

``dualpipe`` and ``dualpipev`` send micro-batches through from both ends, or down and back, and run forwards beside
backwards, whose exchange among experts hides in between (:mod:`cost_models.bidirectional`). A device has two stages:
``s`` and ``2p - 1 - s`` of a V's ``2p``, or ``s`` and ``p - 1 - s`` of DualPipe's ``p``, of which every stage has two
copies. Both devices of such a pair do the same at the same time, so one of them is all that is run: its ``half``.

Durations are not equal in truth: the order of work is kept, and the step is the longest path with the real ones, as in
:mod:`cost_models.pipeline`. Activations are held from ``F`` until ``W``, or until ``B`` where that is not split.

Source: Qi et al., arXiv:2401.10241 (zb-h1); Qi et al., arXiv:2405.15362 (V-shaped building blocks); Zhuang et al.,
arXiv:2211.05322 (eager 1F1B).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cost_models.bidirectional import beside, joined, least_micro_batches, nodes_of
from cost_models.critical_paths import Path, PathTable, seed_paths
from cost_models.pipeline import (
    START,
    ScheduleGraph,
    device_order,
    in_flight,
    ordered,
    repeated_ticks,
    schedule_graph,
    settling_micro_batches,
    step_ticks,
)
from cost_models.strategy import MIRRORED

Ints = NDArray[np.int64]
PERIOD = 6
OFFSETS = {"zbv": (4, 2, 4, 2), "v-half": (2, 1, 2, 1), "v-min": (1, 1, 1, 1)}
BIDIRECTIONAL = (MIRRORED, "dualpipev")
FOLDED = (*OFFSETS, "dualpipev")
FEW_CUTS = (*OFFSETS, *BIDIRECTIONAL)
"""Schedules whose devices have two stages, all alike but for the ends."""
SPLIT = ("zb-h1", *FEW_CUTS)
EAGER = "eager-1f1b"
FURTHER = (*SPLIT, EAGER)
"""Schedules beside 1F1B and interleaved 1F1B."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which order of work: ``virtual`` stages a device; ``in_flight`` micro-batches on the first device when eager."""

    kind: str
    pp: int
    virtual: int
    micro_batches: int
    in_flight: int = 0

    @property
    def split(self) -> bool:
        """Whether the weights' gradients are work of their own."""
        return self.kind in SPLIT

    @property
    def folded(self) -> bool:
        """Whether the second virtual stage of the devices runs back from the last to the first."""
        return self.kind in FOLDED or (self.kind == MIRRORED and self.virtual == 2)

    @property
    def paired(self) -> bool:
        """Whether forwards run beside backwards."""
        return self.kind in BIDIRECTIONAL

    @property
    def mirrored(self) -> bool:
        """Whether every stage is on two devices, each with half of the micro-batches."""
        return self.kind == MIRRORED and self.virtual == 1

    @property
    def half(self) -> Schedule:
        """What one device of every mirrored pair does: a V whose turn is a hop too; other schedules are whole."""
        return Schedule(self.kind, self.pp // 2, 2, self.micro_batches // 2) if self.mirrored else self

    @property
    def rounds(self) -> int:
        """Micro-batches that pass a stage on one device."""
        return self.half.micro_batches

    @property
    def stages_a_device(self) -> int:
        """Virtual stages that a device holds."""
        return self.half.virtual

    @property
    def devices(self) -> tuple[int, ...]:
        """The device of every virtual stage, in model order; of two that hold it the one it is numbered by."""
        return _devices(self.folded, self.pp, self.virtual)

    def stages_of(self, device: int) -> Ints:
        """Virtual stages of a device, in model order."""
        if self.mirrored:
            return self.half.stages_of(min(device, self.pp - 1 - device))
        if self.folded:
            return np.array([device, 2 * self.pp - 1 - device])
        return np.arange(device, self.pp * self.virtual, self.pp)

    def by_device(self, values: Ints) -> Ints:
        """Values of all virtual stages, ``[v, pp]``: a column is a device's, in model order."""
        if self.mirrored:
            return np.concatenate([self.half.by_device(values), self.half.by_device(values)[:, ::-1]], axis=1)
        table = values.reshape(self.virtual, self.pp)
        return np.stack([table[0], table[1][::-1]]) if self.folded else table

    def graph(self) -> ScheduleGraph:
        """The order of all work; of mirrored devices the half of it."""
        return _graph(self.half)

    def work(self, device: int) -> list[tuple[int, int, int]]:
        """The work of one device in order: ``(pass, virtual stage, micro-batch)`` with passes ``F``, ``B``, ``W``.

        What runs in one piece stands one after the other. Of devices that are not mirrored.
        """
        node, micro_batch = np.divmod(self._nodes(device), self.micro_batches)
        which, stage = np.divmod(node, self.pp * self.virtual)
        return list(zip(which.tolist(), stage.tolist(), micro_batch.tolist(), strict=True))

    def _nodes(self, device: int) -> Ints:
        if self.kind not in FURTHER:
            return device_order(self.pp, self.virtual, self.micro_batches, device)
        return _order(self, device)

    def step_ticks(
        self, forward: Ints, backward: Ints, weights: Ints | None, hop: Ints, tail: Ints,
        hidden: tuple[Ints, Ints] | None = None,
    ) -> Ints:  # fmt: skip
        """Ticks of the whole step, ``[batch]``, arguments as :func:`cost_models.pipeline.step_ticks` takes them.

        ``weights``, a part of ``backward``, are asked for where the schedule splits that, and ``hidden``, what a
        forward and an input's gradient take less beside each other, where it pairs them.
        """
        if self.kind not in FURTHER:
            return step_ticks(self.pp, self.virtual, self.micro_batches, forward, backward, hop, tail)
        it, work = self.half, (forward, backward, weights) if self.split else (forward, backward)
        work, tail = (*work, *(hidden if self.paired else ())), tail[:, : it.pp]
        return repeated_ticks(lambda count: _graph(it.of(count)), it.micro_batches, it.settling, work, hop, tail)

    def beside(self) -> tuple[Ints, Ints]:
        """Of each virtual stage on one device, the forwards and the backwards that run beside another's, ``[C]``."""
        return beside(self.half.pp, self.half.micro_batches)

    @property
    def settling(self) -> int:
        """Micro-batches that are simulated before the schedule is asked whether it has settled."""
        return 5 * _lookback(self) if self.kind in FURTHER else settling_micro_batches(self.pp, self.virtual)

    def of(self, micro_batches: int) -> Schedule:
        """The same schedule of another number of micro-batches."""
        return Schedule(self.kind, self.pp, self.virtual, micro_batches, self.in_flight)

    def moments(self, device: int) -> tuple[tuple[int, ...], ...]:
        """Micro-batches that each virtual stage of a device holds at its worst moments; memory must do for every one.

        See :func:`cost_models.pipeline.in_flight`.
        """
        if self.kind not in FURTHER:
            return in_flight(self.pp, self.virtual, self.micro_batches, device)
        it = self.half
        return _moments(it.of(min(it.micro_batches, 2 * _lookback(it))), min(device, 2 * it.pp - 1 - device))

    def flight(self, stage: Ints) -> Ints:
        """Micro-batches in flight at most on devices of one virtual stage each."""
        if self.kind not in FURTHER:
            return np.minimum(self.micro_batches, self.pp - stage)
        return np.array([self.moments(device)[0][0] for device in range(self.pp)])[stage]

    def seed_paths(self) -> tuple[Path, ...]:
        """Paths known without running the schedule; each is a lower bound for every set of durations.

        For the further kinds all work of a device after the forwards that lead to its first one. For zb-h1 also, from
        stage ``s`` up, with the ``s + 1`` last weights' gradients that the last input's does not wait for left out,

            sum_{j<s} (F_j + B_j) + m (F_s + B_s) + (m - 1 - s) W_s + W_0
            sum_{j!=s} (F_j + B_j) + (m - pp + s + 1) F_s + m B_s + (m - 1 - s) W_s + W_0       for m >= pp - s

        of which the second first goes down and back; and for eager 1F1B, with ``a_s`` forwards ahead,

            sum_{j<s} (F_j + B_j) + m (F_s + B_s)
            sum_{j!=s} (F_j + B_j) + (m - a_s + 1) F_s + m B_s                                  for m >= a_s
        """
        if self.kind not in FURTHER:
            return seed_paths(self.pp, self.virtual, self.micro_batches)
        return _seed_paths(self.half)

    def seed_table(self) -> PathTable:
        """:meth:`seed_paths` as one table, of schedules that pair no passes."""
        return _seed_table(self)


@lru_cache(maxsize=1024)
def _seed_table(it: Schedule) -> PathTable:
    return PathTable.of(it.seed_paths())


def schedule_of(
    kind: str, pp: int, virtual: int, micro_batches: int, in_flight: int = 0
) -> Schedule:  # fmt: skip
    """A schedule by the name that rows carry, where ``1f1b`` with several virtual stages is the interleaved one."""
    if kind == "1f1b" and virtual > 1:
        return Schedule("interleaved", pp, virtual, micro_batches)
    return Schedule(kind, pp, virtual, micro_batches, in_flight)


def virtual_stages_of(kind: str) -> int:
    """Virtual stages a device under one of the further kinds."""
    return 2 if kind in FOLDED else 1


def may_run(kind: str, pp: Ints, micro_batches: Ints) -> NDArray[np.bool_]:
    """Whether one of the further schedules has so many stages and micro-batches, arrays alike.

    All need ``pp > 1``; ``dualpipev`` and ``dualpipe`` also ``2 pp`` micro-batches, the latter an even number of them
    and an even ``pp`` from 4.
    """
    legal = (pp > 1) & (micro_batches > 0)
    if kind in BIDIRECTIONAL:
        legal = legal & (micro_batches >= least_micro_batches(pp))
    if kind == MIRRORED:
        legal = legal & (pp > 2) & (pp % 2 == 0) & (micro_batches % 2 == 0)
    return legal


@lru_cache(maxsize=512)
def _devices(folded: bool, pp: int, virtual: int) -> tuple[int, ...]:
    there = tuple(range(pp))
    return (*there, *there[::-1]) if folded else there * virtual


def _lookback(it: Schedule) -> int:
    """Micro-batches within which everything a node waits for lies."""
    return 3 * it.pp + 2 if it.folded else 2 * it.pp + 1


@lru_cache(maxsize=128)
def _graph(it: Schedule) -> ScheduleGraph:
    shape = (it.pp, it.virtual, it.micro_batches)
    if it.kind not in FURTHER:
        return schedule_graph(*shape)
    order = np.stack([_order(it, device) for device in range(it.pp)])
    together = joined(it.pp, it.micro_batches) if it.paired else None
    return ordered(shape, order, _edges(it), _lookback(it), 1, 3 if it.split else 2, together)


def _order(it: Schedule, device: int) -> Ints:
    """The work of one device in order, as node numbers (see :class:`cost_models.pipeline.ScheduleGraph`)."""
    if it.paired:
        return np.concatenate(nodes_of(it.pp, it.micro_batches, device))
    if it.folded:
        return _blocks(it, device)
    return _late_weights(it, device) if it.split else _eager(it, device)


def _nodes(it: Schedule, which: int, stage: int) -> Ints:
    """Nodes of all micro-batches of pass ``which`` (forward, input's gradient, weights') of a virtual stage."""
    return np.arange(it.micro_batches) + it.micro_batches * (stage + which * it.pp * it.virtual)


def _eager(it: Schedule, device: int) -> Ints:
    m, ahead = it.micro_batches, _ahead(it, device)
    forward, backward = _nodes(it, 0, device), _nodes(it, 1, device)
    at = np.arange(m)
    return np.concatenate([forward, backward])[np.argsort(np.concatenate([2 * (at - ahead) + 1, 2 * at]))]


def _ahead(it: Schedule, device: int) -> int:
    """Forwards that an eager device runs before its first backward."""
    usual = it.pp - device
    return min(it.micro_batches, usual + it.in_flight - it.pp, 2 * usual - 1)


def _late_weights(it: Schedule, device: int) -> Ints:
    """zb-h1: as 1F1B, each weights' gradient ``device`` micro-batches after the input's, the last at the end."""
    m, at = it.micro_batches, np.arange(it.micro_batches)
    late = np.where(at + device < m, 3 * (at + device) + 1, 3 * m + at)
    when = np.concatenate([3 * (at - min(it.pp - device, m)) + 2, 3 * at, late])
    return np.concatenate([_nodes(it, which, device) for which in range(3)])[np.argsort(when)]


def _blocks(it: Schedule, device: int) -> Ints:
    """A V-shaped schedule: one micro-batch's block of work, repeated every six units."""
    other, starts = 2 * it.pp - 1 - device, _block(it.pp, OFFSETS[it.kind])[:, device]
    free = sorted(set(range(PERIOD)) - set((starts % PERIOD).tolist()))
    first, second, back, last = starts.tolist()
    block = [(first, 0, device), (second, 0, other), (back, 1, other), (last, 1, device)]
    block += [(_next(back, free[0]), 2, other), (_next(last, free[1]), 2, device)]
    when = np.concatenate([start + PERIOD * np.arange(it.micro_batches) for start, _, _ in block])
    return np.concatenate([_nodes(it, which, stage) for _, which, stage in block])[np.argsort(when)]


@lru_cache(maxsize=64)
def _block(pp: int, offsets: tuple[int, int, int, int]) -> Ints:
    """Starts of ``F0 F1 B1 B0`` on every device, ``[4, pp]``: the shortest block whose repetitions do not collide."""
    s = np.arange(pp)
    for waits in sorted(itertools.product(range(PERIOD), repeat=3), key=lambda waits: (sum(waits), waits)):
        first = offsets[0] * s
        second = first[-1] + 1 + waits[0] + offsets[1] * s[::-1]
        back = second[0] + 1 + waits[1] + offsets[2] * s
        last = back[-1] + 1 + waits[2] + offsets[3] * s[::-1]
        starts = np.stack([first, second, back, last])
        if (np.diff(np.sort(starts % PERIOD, axis=0), axis=0) > 0).all():
            return starts
    raise RuntimeError(f"no block of offsets {offsets} for {pp} devices")


def _next(start: int, slot: int) -> int:
    """The first moment after ``start`` that lies in that slot of the period."""
    return start + 1 + (slot - start - 1) % PERIOD


def _edges(it: Schedule) -> tuple[Ints, Ints]:
    """For every node the one whose data it needs, and whether that lies on another device; ``W`` follows its ``B``."""
    m, chunks, device = it.micro_batches, it.pp * it.virtual, np.array(it.devices)
    forward, backward = np.arange(m * chunks) - m, np.arange(m * chunks) + m * (chunks + 1)
    forward[:m] = START
    backward[-m:] = np.arange(m) + m * (chunks - 1)
    crosses = np.repeat(((device[1:] != device[:-1]) | (it.kind == MIRRORED)).astype(np.int64), m)
    none = np.zeros(m, dtype=np.int64)
    own = [np.arange(m * chunks) + m * chunks] if it.split else []
    near = [np.zeros(m * chunks, dtype=np.int64)] if it.split else []
    return np.concatenate([forward, backward, *own]), np.concatenate([none, crosses, crosses, none, *near])


@lru_cache(maxsize=2048)
def _moments(it: Schedule, device: int) -> tuple[tuple[int, ...], ...]:
    """Held micro-batches by virtual stage at every moment at which no other moment holds as much of all."""
    order, chunks, stages = _order(it, device), it.pp * it.virtual, it.stages_of(device)
    which, chunk = np.divmod(order // it.micro_batches, chunks)
    gone = 2 if it.split else 1
    step = (which == 0).astype(np.int64) - (which == gone)
    change = np.where(chunk[:, None] == stages[None, :], step[:, None], 0)
    held = np.unique(np.cumsum(change, axis=0)[which == 0], axis=0)
    covered = (held[:, None, :] <= held[None, :, :]).all(axis=2).sum(axis=1) > 1
    return tuple(tuple(row) for row in held[~covered].tolist())


@lru_cache(maxsize=1024)
def _seed_paths(it: Schedule) -> tuple[Path, ...]:
    paths = [_own_work(it, device) for device in range(it.pp)]
    if not it.folded:
        paths += [_last_up(it, s) for s in range(it.pp)]
        ahead = [_ahead(it, s) if it.kind == EAGER else it.pp - s for s in range(it.pp)]
        paths += [_down_and_up(it, s, ahead[s]) for s in range(it.pp) if it.micro_batches >= ahead[s]]
    return tuple(paths)


def _own_work(it: Schedule, device: int) -> Path:
    mine = np.zeros(it.pp * it.virtual, dtype=np.int64)
    mine[it.stages_of(device)] = it.micro_batches
    forward = mine.copy()
    forward[:device] = 1
    both = tuple(np.where(mine > 0, count, 0) for count in it.beside()) if it.paired else None
    return Path(forward, mine, device, device, weights=mine if it.split else None, beside=both)


def _last_up(it: Schedule, s: int) -> Path:
    both = np.zeros(it.pp, dtype=np.int64)
    both[:s], both[s] = 1, it.micro_batches
    return Path(both, both, 2 * s, 0, weights=_weights_in_time(it, s))


def _down_and_up(it: Schedule, s: int, ahead: int) -> Path:
    forward, backward = np.ones(it.pp, dtype=np.int64), np.ones(it.pp, dtype=np.int64)
    forward[s], backward[s] = it.micro_batches - ahead + 1, it.micro_batches
    return Path(forward, backward, 2 * (it.pp - 1), 0, weights=_weights_in_time(it, s))


def _weights_in_time(it: Schedule, s: int) -> Ints | None:
    """Weights' gradients of stage ``s`` before its last input's, and the first stage's last one."""
    if not it.split:
        return None
    weights = np.zeros(it.pp, dtype=np.int64)
    weights[s] = max(0, it.micro_batches - 1 - s)
    weights[0] += 1
    return weights
