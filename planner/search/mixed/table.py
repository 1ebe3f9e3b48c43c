"""What every stage of one global micro-batch would cost: ticks by way to run it, depth from the end and segment.

Depth 1 is the last stage. A stage at depth ``d`` holds ``min(m, d)`` micro-batches, however many stages come before
it, so one table serves pipelines of every length. Segments that cost the same (equal lengths from boundaries of one
class) share an entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.price import Prices
from planner.search.columns import stage_columns
from planner.search.mixed.space import MixedSpace, Setups, useful

Ints = NDArray[np.int64]
NEVER = 2**60


@dataclass(frozen=True)
class Segments:
    """Distinct segments: layers ``i`` to ``j - 1`` of each; ``index[i, j]`` finds a segment, -1 where there is none."""

    i: Ints
    j: Ints
    index: Ints

    @staticmethod
    def of(chain: Chain, longest: int) -> Segments:
        """Every segment of at most ``longest`` layers but the whole model: first, inner and last ones apart."""
        layers = chain.layers
        i, j = (a.ravel() for a in np.meshgrid(np.arange(layers), np.arange(1, layers + 1), indexing="ij"))
        keep = (j > i) & (j - i <= longest) & (j - i < layers)
        i, j = i[keep], j[keep]
        keys = np.stack([chain.places[i], j - i, i == 0, j == layers], axis=1)
        _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        index = np.full((layers + 1, layers + 1), -1, dtype=np.int64)
        index[i, j] = inverse.ravel()
        return Segments(i[first], j[first], index)


@dataclass(frozen=True)
class StageTable:
    """Costs ``[ways, flights, segments]`` in ticks, ``NEVER`` where a stage does not fit; ways ``[ways]``.

    ``same`` and ``across`` are the sides of a hop to a stage of the same part and of another.
    """

    batch: int
    micro_batches: int
    part: Ints
    size: Ints
    setup: Ints
    same: Ints
    across: Ints
    segments: Segments
    forward: Ints
    backward: Ints
    tail: Ints
    full: Ints
    selective: Ints

    @cached_property
    def time(self) -> Ints:
        """Forward and backward of one micro-batch."""
        return np.minimum(self.forward + self.backward, NEVER)

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return self.segments.index.shape[0] - 1

    def flight(self, depth: int | Ints) -> int | Ints:
        """Which entry of the flight axis serves a depth."""
        return np.minimum(depth, self.time.shape[1]) - 1


@dataclass(frozen=True)
class Priced:
    """The useful ways of one part for one global micro-batch, priced."""

    setups: Setups
    prices: Prices
    ways: int

    @staticmethod
    def of(space: MixedSpace, part: int, batch: int) -> Priced:
        """Priced once, useless ones dropped."""
        setups = space.setups(part, batch)
        if not len(setups):
            return Priced(setups, space.machine.prices(part, np.ones((1, 6), dtype=np.int64)).take(np.zeros(0, int)), 0)
        prices = space.machine.prices(part, setups.table)
        kept = useful(prices, setups, space.recompute)
        return Priced(setups.take(kept), prices.take(kept), len(setups))


def stage_table(space: MixedSpace, batch: int, priced: list[Priced], most_ticks: float, deepest: int) -> StageTable:
    """The table for micro-batches of ``batch`` sequences: stages that are busy for ``most_ticks`` a step at most."""
    machine, m = space.machine, space.machine.workload.global_batch // batch
    chain = Chain(machine.model, next(p.prices for p in priced if len(p.setups)), 0)
    segments = Segments.of(chain, _longest(machine.model.layers, priced, most_ticks / m))
    flights = min(m, deepest)
    tokens = batch * machine.workload.seq_len
    entries = [_entries(space, p, k, segments, flights, m, most_ticks) for p in priced for k in range(len(p.setups))]
    setups = [p.setups for p in priced]
    fields = [np.stack([e[k] for e in entries]) for k in range(5)]
    return StageTable(
        batch, m,
        part=np.concatenate([np.full(len(s), s.part) for s in setups]),
        size=np.concatenate([s.size for s in setups]),
        setup=np.concatenate([s.table for s in setups]),
        same=np.concatenate([machine.side(s.part, tokens, s.devices, across=False) for s in setups]),
        across=np.concatenate([machine.side(s.part, tokens, s.devices, across=True) for s in setups]),
        segments=segments, forward=fields[0], backward=fields[1], tail=fields[2], full=fields[3], selective=fields[4],
    )  # fmt: skip


def _longest(layers: int, priced: list[Priced], most_ticks: float) -> int:
    """Layers that a stage of the quickest way can hold within ``most_ticks``."""
    least = min(int((p.prices.forward + p.prices.backward)[:, :-2].min()) for p in priced if len(p.setups))
    return int(max(1, min(layers - 1, most_ticks // max(1, least))))


def _entries(
    space: MixedSpace, priced: Priced, way: int, segments: Segments, flights: int, m: int, most_ticks: float
) -> tuple[Ints, ...]:
    """Forward, backward, tail, full and selective layers of one way, ``[flights, segments]``."""
    chain = Chain(space.machine.model, priced.prices, way)
    chain.pp, chain.micro_batches = flights, flights
    i, j = segments.i, segments.j
    quick = np.flatnonzero(m * (chain.forward(i, j) + chain.backward(i, j)) <= most_ticks)
    found = tuple(np.full((flights, len(i)), NEVER, dtype=np.int64) for _ in range(5))
    depth = np.repeat(np.arange(1, flights + 1), len(quick))
    segment = np.tile(quick, flights)
    if not segment.size:
        return found
    limit, stage = space.limits[priced.setups.part], flights - depth
    columns = stage_columns(chain, stage, i[segment], j[segment], limit, space.recompute)
    at = flights - columns.stage - 1, segments.index[columns.i, columns.j]
    for blank, values in zip(
        found, (columns.forward, columns.backward, columns.tail, columns.full, columns.selective), strict=True
    ):
        blank[at] = values
    return found
