"""Step time of pipelines whose backward is split into the input's gradient ``B`` and the weights' ``W``.

Only ``B`` is waited for by the stage before; ``W`` fills gaps. Two families:

``zb-h1``: 1F1B whose stage ``s`` leaves ``s`` micro-batches' ``W`` for later, which costs no more memory than 1F1B;
``(p - 1)(F + B - W)`` of its device time is idle where stages are alike, of 1F1B's ``(p - 1)(F + B + W)``.

``zbv``, ``v-half``, ``v-min``: two virtual stages a device, ``s`` and ``2p - 1 - s``, so that the last lies beside the
first. One micro-batch's ``F0 F1 B1 B0`` begin on neighbouring devices 4, 2, 4, 2 (or 2, 1, 2, 1, or 1, 1, 1, 1) units
apart, a unit being one of six equal pieces of work; the block repeats every six units, and ``W`` takes the two slots
left. The sum of the four, 12, 6 or 4, makes activations last for all, half or a third of 1F1B's. These offsets are
derived from those memories and from every device having to hold as much. Durations are not equal in truth: the order
of work is kept, and the step is the longest path with the real ones, as in :mod:`cost_models.pipeline`.

Activations are held from ``F`` until ``W``. The search does not choose these schedules; rows that used them are
priced.

Source: Qi et al., arXiv:2401.10241 (zb-h1); Qi et al., arXiv:2405.15362 (V-shaped building blocks).
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Work = tuple[str, int, int]
PERIOD = 6
OFFSETS = {"zbv": (4, 2, 4, 2), "v-half": (2, 1, 2, 1), "v-min": (1, 1, 1, 1)}
KINDS = ("zb-h1", *OFFSETS)


def split_step_ticks(
    kind: str, pp: int, micro_batches: int, forward: Ints, backward: Ints, weights: Ints, hop: int, tail: Ints
) -> int:
    """Ticks of a step; a micro-batch's work by virtual stage in model order, ``weights`` being part of ``backward``."""
    chunks = pp if kind == "zb-h1" else 2 * pp
    once, again, later = (work.reshape(chunks, -1).sum(axis=1) for work in (forward, backward, weights))
    ticks = {"F": once.tolist(), "B": (again - later).tolist(), "W": later.tolist()}
    return _longest(_orders(kind, pp, micro_batches), ticks, hop) + int(tail.max())


def held_bytes(kind: str, pp: int, micro_batches: int, kept: Ints) -> Ints:
    """Bytes of activations on every device at its fullest moment, ``kept`` a micro-batch by virtual stage."""
    sizes = kept.reshape(pp if kind == "zb-h1" else 2 * pp, -1).sum(axis=1)
    change = {"F": 1, "B": 0, "W": -1}
    orders = _orders(kind, pp, min(micro_batches, 4 * pp))
    return np.array([np.cumsum([change[what] * sizes[c] for what, c, _ in order]).max() for order in orders])


@lru_cache(maxsize=64)
def _orders(kind: str, pp: int, micro_batches: int) -> tuple[tuple[Work, ...], ...]:
    """Each device's work in order, as (pass, virtual stage, micro-batch)."""
    if kind == "zb-h1":
        return tuple(tuple(_late_weights(s, min(pp - s, micro_batches), micro_batches)) for s in range(pp))
    starts = _block(pp, OFFSETS[kind])
    return tuple(tuple(_repeated(s, pp, starts[:, s], micro_batches)) for s in range(pp))


def _late_weights(stage: int, ahead: int, micro_batches: int) -> list[Work]:
    order = [("F", stage, j) for j in range(ahead)]
    for j in range(micro_batches):
        order.append(("B", stage, j))
        order += [("W", stage, j - stage)] if j >= stage else []
        order += [("F", stage, j + ahead)] if j + ahead < micro_batches else []
    return order + [("W", stage, j) for j in range(max(micro_batches - stage, 0), micro_batches)]


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


def _repeated(device: int, pp: int, starts: Ints, micro_batches: int) -> list[Work]:
    other = 2 * pp - 1 - device
    free = sorted(set(range(PERIOD)) - {int(start) % PERIOD for start in starts})
    first, second, back, last = (int(start) for start in starts)
    block = [(first, "F", device), (second, "F", other), (back, "B", other), (last, "B", device)]
    block += [(_next(back, free[0]), "W", other), (_next(last, free[1]), "W", device)]
    timed = sorted((start + PERIOD * j, what, c, j) for start, what, c in block for j in range(micro_batches))
    return [(what, c, j) for _, what, c, j in timed]


def _next(start: int, slot: int) -> int:
    """The first moment after ``start`` that lies in that slot of the period."""
    return start + 1 + (slot - start - 1) % PERIOD


def _longest(orders: tuple[tuple[Work, ...], ...], ticks: dict[str, list[int]], hop: int) -> int:
    """End of the last work: each device takes its work in order, each piece when what it needs has arrived."""
    pp, chunks = len(orders), len(ticks["F"])
    device = [c if c < pp else 2 * pp - 1 - c for c in range(chunks)]
    end: dict[Work, int] = {}
    at, clock = [0] * pp, [0] * pp
    while len(end) < sum(map(len, orders)):
        before = len(end)
        for d in range(pp):
            while at[d] < len(orders[d]):
                what, c, j = work = orders[d][at[d]]
                source = _source(what, c, j, chunks)
                if source is not None and source not in end:
                    break
                reach = 0 if source is None else end[source] + hop * (device[source[1]] != device[c])
                clock[d] = end[work] = max(clock[d], reach) + ticks[what][c]
                at[d] += 1
        if len(end) == before:
            raise RuntimeError("the schedule waits for itself")
    return max(clock)


def _source(what: str, c: int, j: int, chunks: int) -> Work | None:
    """The work whose result this needs from elsewhere."""
    if what == "F":
        return ("F", c - 1, j) if c else None
    if what == "B":
        return ("B", c + 1, j) if c < chunks - 1 else ("F", c, j)
    return None
