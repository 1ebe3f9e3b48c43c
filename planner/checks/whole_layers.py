"""How long a step of a row is at least where stages hold whole layers, for the proof that is derived again.

The stages are filled one after the other, each with as many whole layers as it runs in ``T`` ticks a micro-batch
(:mod:`planner.checks.priced_bytes`). Where layers are left after the last, some stage of every split takes more than
``T``. With ``T`` the most for which that is so, ``S`` the work of all layers and ``m`` micro-batches, a 1F1B step takes

    m T        and for m > pp        2 S + (m - pp - 1) T + 2 (pp - 1) hop

The second is the return path of the longest stage ``s``, ``S + (m - pp + s) t_s + sum_{j>s} t_j``: stages up to it take
``(s + 1) t_s`` at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.model_graph import ModelGraph
from cost_models.price import Prices
from cost_models.schedules import schedule_of
from planner.checks.branching_points import even_cuts
from planner.checks.priced_bytes import Charged, Kept, telling_prices, ways_to_keep
from planner.checks.rederive_offloads import cheapest_layers

if TYPE_CHECKING:
    from planner.checks.rederive import Problem

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
HALVINGS = 24
ROWS_AT_ONCE = 256
ROUNDING = 1e-9


@dataclass(frozen=True)
class Filled:
    """A stage at prices: ``sums`` over the first 0, 1, ... layers, ``[prices, rows, L + 1]``, and what is there
    whatever it holds, ``[prices, rows]``."""

    sums: Floats
    fixed: Floats

    @staticmethod
    def of(charged: Charged, order: Ints, ends: tuple[bool, bool]) -> Filled:
        """The stage with layers in ``order`` and with embedding or head."""
        sums = np.cumsum(charged.layers[:, :, order], axis=2)
        zero = np.zeros_like(charged.room)
        fixed = sum((charged.ends[:, e] for e in (0, 1) if ends[e]), zero) - charged.room
        return Filled(np.concatenate([zero[:, :, None], sums], axis=2), fixed)

    def ticks(self, i: Ints, j: Ints, rows: Ints | None = None) -> Floats:
        """Ticks that layers ``i`` to ``j - 1`` take at the least, of one segment a row or of such of some ``rows``."""
        rows = np.arange(self.sums.shape[1]) if rows is None else rows
        return (self.sums[:, rows, j] - self.sums[:, rows, i] + self.fixed[:, rows]).max(axis=0)

    def reached(self, at: Ints, most: Floats, last: int) -> Ints:
        """Up to which layer it goes from ``at`` in at most so many ticks; ``at`` where in none."""
        low, high = at.copy(), np.full_like(at, last)
        while (low < high).any():
            middle = (low + high + 1) // 2
            fits = self.ticks(at, middle) <= most
            low, high = np.where(fits, middle, low), np.where(fits, high, np.maximum(middle - 1, low))
        return low


def stages_of(it: Problem, prices: Prices) -> list[Filled]:
    """The stages of rows with as many stages each."""
    pp, pinned, counts = int(prices.rows.pp[0]), it.options.pins.get("recompute"), _counts(it.model)
    order, found = np.array(it.model.order, dtype=np.int64), []
    for s in range(pp):
        ends, flight, parts = (s == 0, s == pp - 1), np.minimum(prices.rows.micro_batches, pp - s), []
        for kept in ways_to_keep(prices, it.limit_bytes, flight, pinned):
            charged = kept.charged(telling_prices(kept, counts / pp, ends))
            parts.append(Filled.of(charged, order, ends))
        found.append(Filled(*(np.concatenate([getattr(p, n) for p in parts]) for n in ("sums", "fixed"))))
    return found


def longest_stage(stages: list[Filled], most: Floats) -> Floats:
    """Ticks that the longest stage of every split takes at the least, ``[rows]``; infinite where none takes ``most``
    or less."""
    low, high = np.zeros_like(most), most
    fits = _all_placed(stages, high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        enough = _all_placed(stages, middle)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(fits, low * (1 - ROUNDING), np.inf)


def ticks_at_most(prices: Prices, counts: Floats) -> Floats:
    """Ticks that no stage takes more than: those of all layers and ends, each in its dearest way with its traffic."""
    sorts = [prices, *(() if prices.nearer is None else (prices.nearer, prices.kept, prices.kept.nearer))]
    passes = [it.forward + it.backward + sum(it.sent.values()) for it in sorts]
    again = np.maximum.reduce(list(prices.extra.values()))
    return (np.maximum.reduce(passes) + again) @ counts * (1 + ROUNDING)


def _all_placed(stages: list[Filled], most: Floats) -> NDArray[np.bool_]:
    layers = stages[0].sums.shape[2] - 1
    at = np.zeros(len(most), dtype=np.int64)
    fits = stages[0].ticks(at, at) <= most
    for stage in stages[:-1]:
        at = stage.reached(at, most, layers - 1)
    return fits & (stages[-1].ticks(at, np.full_like(at, layers)) <= most)


def values_of_whole_layers(it: Problem, prices: Prices, virtual: int) -> Floats:
    """The objective that no plan of a 1F1B row, or of an interleaved one, beats: the least joules with these ticks."""
    counts, free, rows = np.append(_counts(it.model), [1.0, 1.0]), cheapest_layers(prices), prices.rows
    if virtual > 1:
        ticks = step_of_even_cuts(it, prices, virtual)
    else:
        ticks = step_of_whole_layers(it, prices, (free.forward + free.backward) @ counts)
    dynamic = rows.micro_batches * (free.least_joules_pass @ counts) + free.joules_step @ counts
    return it.values(rows, ticks, dynamic * rows.stage_size * (1 - ROUNDING))


def step_of_whole_layers(it: Problem, prices: Prices, work: Floats) -> Floats:
    """Ticks that a 1F1B step of every row takes at the least; ``work`` is that of all layers, nothing recomputed."""
    found = np.zeros(len(prices.rows))
    for mine in _alike(prices.rows.pp):
        some, pp = prices.take(mine), int(prices.rows.pp[mine[0]])
        m, most = some.rows.micro_batches, ticks_at_most(some, np.append(_counts(it.model), [1.0, 1.0]))
        longest = longest_stage(stages_of(it, some), most)
        whole = np.minimum(longest, most)
        path = 2 * np.maximum(work[mine], whole) + (m - pp - 1) * whole + 2 * (pp - 1) * some.hop
        found[mine] = np.maximum(m * longest, np.where(m > pp, path, 0.0))
    return found


def step_of_even_cuts(it: Problem, prices: Prices, virtual: int) -> Floats:
    """Ticks that a step of every row takes at the least with so many virtual stages a device: its cuts are known."""
    prices, found = prices.with_virtual(virtual), np.zeros(len(prices.rows))
    held = [_fullest(prices, row) for row in range(len(prices.rows))]
    distinct = {both: n for n, both in enumerate(dict.fromkeys(held))}
    for mine in _alike(np.array([distinct[both] for both in held])):
        some, chain = prices.take(mine), Chain(it.model, prices, int(mine[0]))
        devices = {device: _Device.of(it, some, flights) for device, flights in held[mine[0]]}
        cuts = [np.max([one.ticks(chain, device, cut) for device, one in devices.items()], axis=0)
                for cut in even_cuts(chain)]  # fmt: skip
        found[mine] = some.rows.micro_batches * np.min(cuts, axis=0, initial=np.inf) * (1 - ROUNDING)
    return found


def _alike(of_row: Ints) -> Iterator[Ints]:
    """Rows of the same number, not too many at once."""
    for one in np.unique(of_row).tolist():
        every = np.flatnonzero(of_row == one)
        yield from (every[at : at + ROWS_AT_ONCE] for at in range(0, len(every), ROWS_AT_ONCE))


def _fullest(prices: Prices, row: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """The first two devices of a row and the last, each with the micro-batches of its virtual stages at one moment."""
    rows = prices.rows
    pp, m = int(rows.pp[row]), int(rows.micro_batches[row])
    schedule = schedule_of(rows.schedule, pp, int(rows.virtual[row]), m, rows.in_flight)
    return tuple((d, max(schedule.moments(d), key=sum)) for d in sorted({0, 1, pp - 1}))


@dataclass(frozen=True)
class _Device:
    """A device's virtual stages of rows at prices: ``charged`` for each number of micro-batches of ``flights``."""

    flights: tuple[int, ...]
    charged: dict[int, list[Charged]]

    @staticmethod
    def of(it: Problem, prices: Prices, flights: tuple[int, ...]) -> _Device:
        counts, pin = _counts(it.model) / prices.rows.pp[0], it.options.pins.get("recompute")

        def kept(flight: float) -> list[Kept]:
            return list(ways_to_keep(prices, it.limit_bytes, np.full(len(prices.rows), flight), pin))

        told = [telling_prices(one, counts, (False, False)) for one in kept(sum(flights) / len(flights))]
        each = {f: [one.charged(at) for one, at in zip(kept(f), told, strict=True)] for f in set(flights)}
        return _Device(flights, each)

    def ticks(self, chain: Chain, device: int, cut: list[int]) -> Floats:
        """Ticks a micro-batch of all virtual stages of the device, ``[rows]``, at the least."""
        at, kinds = chain.schedule.stages_of(device).tolist(), len(chain.model.kinds)
        total = [-one.room for one in self.charged[self.flights[0]]]
        for c, flight in zip(at, self.flights, strict=True):
            counts = np.bincount(chain.order[cut[c] : cut[c + 1]], minlength=kinds).astype(float)
            ends = (c == 0, cut[c + 1] == chain.layers)
            total = [some + one.of(counts, ends) + one.room
                     for some, one in zip(total, self.charged[flight], strict=True)]  # fmt: skip
        return np.concatenate(total).max(axis=0)


def _counts(model: ModelGraph) -> Floats:
    """Layers of every kind."""
    return np.bincount(model.order, minlength=len(model.kinds)).astype(float)
