"""What every stage of one global micro-batch would cost: ticks by way to run it, depth from the end and segment.

Depth 1 is the last stage. A stage at depth ``d`` holds ``min(m, d)`` micro-batches in flight, however many stages come
before it, so one table serves pipelines of every length. Segments that cost the same (equal lengths from boundaries of
one class) share an entry. Nothing is priced before it is asked for: most stages are ruled out by what they take with
one micro-batch in flight, which is never more than with several.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.chains import Chains
from cost_models.clocks import FULL
from cost_models.price import Prices
from planner.search.columns import Columns, quickest_columns, stage_columns
from planner.search.columns import Segments as Asked
from planner.search.deadline import look
from planner.search.mixed.space import MixedSpace, Setups, useful
from planner.search.mixed.waiting import near_devices, wait_rates
from planner.search.offloads import offloads_less

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Costs = tuple[int, int, int, int, int, float]
"""Forward, backward and tail of a stage in ticks, its full and selective layers, its joules."""
NEVER, QUICKEST = 2**60, -1
IMPOSSIBLE = (NEVER, NEVER, NEVER, NEVER, NEVER, np.inf)
LEAST = 1 - 1e-12
"""What sums of joules taken in another order may be rounded by."""


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
        setups, prices = space.priced(setups)
        count, able = len(setups), np.flatnonzero(np.isfinite(wait_rates(space, setups)))
        setups, prices, asked = setups.take(able), prices.take(able), space.asked
        kept = useful(prices, setups, space.recompute, joules=asked.weighs_joules, alike=asked.waits_inside)
        return Priced(setups.take(kept), prices.take(kept), count)


@dataclass(frozen=True)
class StageTable:
    """Ways to run a stage, ``[ways]``, and what a segment of layers takes by each of them.

    ``same`` and ``across`` are the sides of a hop to a stage of the same part and of another. ``base`` is the least
    that forward and backward of a micro-batch may take, ``[ways, segments]``: with nothing recomputed, and ``NEVER``
    where not even one micro-batch fits with everything recomputed. ``spared`` are the micro-batches that a way which
    offloads less, else the same, can have in flight without any recompute: up to these it stands for this one.
    ``joules`` are the least that a step may take of a stage above idle, at the meter, likewise ``[ways, segments]``;
    ``None`` where they do not count. Where they do a way runs a stage with every recompute that no other equals in time
    and joules. ``wait_rate`` are the ticks that a stage waits at least for each of its joules, ``near`` its
    devices inside a scale-up domain, ``[ways]``. ``chains`` are the layers by way, ``together`` all ways of each part
    that has any.
    """

    space: MixedSpace
    batch: int
    micro_batches: int
    part: Ints
    size: Ints
    setup: Ints
    offload: Ints
    clock: Floats
    same: Ints
    across: Ints
    segments: Segments
    base: Ints
    spared: Ints
    joules: Floats | None
    wait_rate: Floats
    near: Ints
    chains: list[Chain]
    together: list[Chains | None]
    known: dict[tuple[int, int, int], dict[int, Costs]] = field(default_factory=dict)

    @property
    def weighs_joules(self) -> bool:
        """Whether joules count."""
        return self.space.asked.weighs_joules

    @cached_property
    def told_apart(self) -> Ints:
        """Devices that ways use, ``[ways]``, where these, hosts or racks have limits on watts: they wait for others."""
        return np.prod(self.setup[:, :3], axis=1) * self.space.asked.waits_inside

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return self.segments.index.shape[0] - 1

    @property
    def flights(self) -> int:
        """The most micro-batches that any stage has in flight."""
        return min(self.micro_batches, self.layers)

    def flight(self, depth: int | Ints) -> int | Ints:
        """Micro-batches in flight at a depth."""
        return np.minimum(depth, self.flights)

    def needed(self, ways: Ints, flight: Ints | int, segment: Ints | int) -> NDArray[np.bool_]:
        """Which of some ways no other stands for that offloads less."""
        return self.spared[ways, segment] < flight

    def columns(self, way: int, flight: Ints, segment: Ints, *, quickest: bool = False) -> tuple[Ints, Columns]:
        """Stages of one way that fit, with the positions that they were asked at; flights, then segments ascend.

        One for each, the quickest, or, where joules count, every recompute that no other equals in time and joules.
        """
        i, j = self.segments.i[segment], self.segments.j[segment]
        limit, joules = self.space.limits[int(self.part[way])], self.weighs_joules and not quickest
        found = stage_columns(self.chains[way], self.flights - flight, i, j, limit, self.space.recompute, joules=joules)
        asked = flight * len(self.segments.i) + segment
        given = (self.flights - found.stage) * len(self.segments.i) + self.segments.index[found.i, found.j]
        return np.searchsorted(asked, given), found

    def quickest(self, part: int, way: Ints, flight: Ints, segment: Ints) -> tuple[NDArray[np.bool_], Columns]:
        """Stages, each of its own way of one part, as quick as each fits; and which of them do fit."""
        look()
        row = way - int(np.searchsorted(self.part, part))
        it = Asked.alike(self.flights - flight, self.segments.i[segment], self.segments.j[segment])
        found, fits = quickest_columns(
            self.together[part].of_rows(row), FULL, it, self.space.limits[part], self.space.recompute
        )
        return fits, found

    def spent(self, way: int, found: Columns) -> Floats:
        """Joules above idle, at the meter, that a step takes of all devices of some stages of one way."""
        if not self.weighs_joules:
            return np.zeros(len(found))
        chain, a = self.chains[way], found.i + found.full
        passes = chain.joules_pass(found.i, found.j)
        passes = passes + chain.total(chain.prices.joules_extra["full"], found.i, a, ends=False)
        again = chain.prices.joules_extra["selective"]
        passes = passes + chain.total(again, a, a + found.selective, ends=False)
        each = self.micro_batches * passes + chain.joules_step(found.i, found.j)
        return each * self.meter[way]

    @cached_property
    def meter(self) -> Floats:
        """Joules at the meter for one of every device of a stage, ``[ways]``: its devices, and their site's cooling."""
        pue = np.array([part.facility.figures.pue.value for part in self.space.machine.cluster.parts])
        return np.prod(self.setup[:, :3], axis=1) * pue[self.part]

    def name(self, full: Ints | int, selective: Ints | int) -> Ints | int:
        """The number by which a recompute is known: ``full`` layers, then ``selective`` ones."""
        return full * (self.layers + 1) + selective

    def each(self, way: int, flight: int, segment: int) -> dict[int, Costs]:
        """What one stage takes by every recompute that it may have, by :meth:`name`, the quickest first; never empty:
        one that does not fit takes ``NEVER``."""
        key = way, flight, segment
        if key not in self.known:
            self.learn(*(np.array([it]) for it in key))
        return self.known[key]

    def one(self, way: int, flight: int, segment: int, recompute: int = QUICKEST) -> Costs:
        """Forward, backward, tail, full and selective layers of one stage, and its joules."""
        found = self.each(way, flight, segment)
        return next(iter(found.values())) if recompute == QUICKEST else found[recompute]

    def learn(self, way: Ints, flight: Ints, segment: Ints) -> None:
        """Price several stages together, for :meth:`one` to know."""
        asked = set(zip(way.tolist(), flight.tolist(), segment.tolist(), strict=True))
        new = sorted(key for key in asked if key not in self.known)
        costs: list[dict[int, Costs]] = [{} for _ in new]
        for at, found, spent in self._new(*np.array(new).T) if new else ():
            fields = np.stack([found.forward, found.backward, found.tail, found.full, found.selective], axis=1).tolist()
            for k in np.lexsort((found.forward + found.backward, at)).tolist():
                costs[at[k]][self.name(*fields[k][3:])] = (*fields[k], float(spent[k]))
        self.known.update((key, each or {QUICKEST: IMPOSSIBLE}) for key, each in zip(new, costs, strict=True))

    def _new(self, way: Ints, flight: Ints, segment: Ints) -> Iterator[tuple[Ints, Columns, Floats]]:
        """Stages priced, with the positions that they were asked at and joules: by way where these count, else by part.

        Ways, then flights, then segments ascend.
        """
        for one in np.unique(way if self.weighs_joules else self.part[way]).tolist():
            mine = np.flatnonzero((way if self.weighs_joules else self.part[way]) == one)
            if self.weighs_joules:
                at, found = self.columns(one, flight[mine], segment[mine])
                yield mine[at], found, self.spent(one, found)
            else:
                fits, found = self.quickest(one, way[mine], flight[mine], segment[mine])
                yield mine[fits], found.take(fits), np.zeros(fits.sum())

    def some(self, way: Ints, depth: Ints, i: Ints, j: Ints, recompute: Ints) -> tuple[Ints, Floats]:
        """Those five of several stages, ``[5, stages]``, and their joules."""
        keys = way, self.flight(depth), self.segments.index[i, j], recompute
        costs = [self.one(*each) for each in zip(*(key.tolist() for key in keys), strict=True)]
        ticks = np.array([it[:5] for it in costs], dtype=np.int64).reshape(-1, 5).T
        return ticks, np.array([it[5] for it in costs])


def stage_table(space: MixedSpace, batch: int, priced: list[Priced], most_ticks: float) -> StageTable:
    """The table for micro-batches of ``batch`` sequences: stages that are busy for ``most_ticks`` a step at most."""
    machine, m = space.machine, space.machine.workload.global_batch // batch
    setups, tokens = [p.setups for p in priced], batch * machine.workload.seq_len
    chains = [_chain(space, p, k, m) for p in priced for k in range(len(p.setups))]
    segments = Segments.of(chains[0], _longest(machine.model.layers, priced, most_ticks / m))
    return StageTable(
        space, batch, m,
        part=np.concatenate([np.full(len(s), s.part) for s in setups]),
        size=np.concatenate([s.size for s in setups]),
        setup=np.concatenate([s.table for s in setups]),
        offload=np.concatenate([s.offload for s in setups]),
        clock=np.concatenate([s.clock for s in setups]),
        same=np.concatenate([machine.side(s.part, tokens, s.devices, across=False) for s in setups]),
        across=np.concatenate([machine.side(s.part, tokens, s.devices, across=True) for s in setups]),
        segments=segments, base=np.concatenate([_base(space, p, segments) for p in priced]),
        spared=np.concatenate([_spared(space, p, segments) for p in priced]),
        joules=np.concatenate([_joules(space, p, segments, m) for p in priced]) if space.asked.weighs_joules else None,
        wait_rate=np.concatenate([wait_rates(space, s) for s in setups]),
        near=np.concatenate([near_devices(space, s) for s in setups]),
        chains=chains, together=[_together(space, p, m) if len(p.setups) else None for p in priced],
    )  # fmt: skip


def _base(space: MixedSpace, priced: Priced, segments: Segments) -> Ints:
    """``base`` of the ways of one part."""
    prices, over = priced.prices, _Sums(space, segments)
    time = over.total(prices.forward) + over.total(prices.backward)
    if space.recompute is not None:
        time += over.total(prices.extra[space.recompute], ends=False)
    least = np.minimum(*(over.total(prices.saved[kind], ends=False) for kind in ("full", "none")))
    kept = least + over.total(prices.saved["none"], inside=False)
    fits = over.held(prices) + kept <= space.limits[priced.setups.part]
    for name, room in prices.tier_room.items():
        fits &= over.in_tier(prices, name) + over.total(prices.tier_saved[name]) <= room[:, None]
    return np.where(fits, time, NEVER)


def _joules(space: MixedSpace, priced: Priced, segments: Segments, m: int) -> Floats:
    """``joules`` of the ways of one part."""
    prices, over = priced.prices, _Sums(space, segments)
    passes = over.total(prices.joules_pass)
    if space.recompute is not None:
        passes = passes + over.total(prices.joules_extra[space.recompute], ends=False)
    pue = space.machine.cluster.parts[priced.setups.part].facility.figures.pue.value
    return (m * passes + over.total(prices.joules_step)) * (priced.setups.devices[:, None] * pue) * LEAST


def _spared(space: MixedSpace, priced: Priced, segments: Segments) -> Ints:
    """``spared`` of the ways of one part, 0 where no other of the same clock stands for one."""
    setups, alike = priced.setups, np.column_stack([priced.setups.table, priced.setups.clock])
    _, group = np.unique(alike, axis=0, return_inverse=True)
    less = offloads_less(len(space.machine.cluster.parts[setups.part].tiers), joules=space.asked.weighs_joules)
    free = np.zeros((int(group.max(initial=-1)) + 1, len(less), len(segments.i)), dtype=np.int64)
    free[group.ravel(), setups.offload] = _free(space, priced, segments) if less.any() else 0
    most = np.stack([free[:, some].max(axis=1, initial=0) for some in less], axis=1)
    return most[group.ravel(), setups.offload]


def _free(space: MixedSpace, priced: Priced, segments: Segments) -> Ints:
    """The most micro-batches in flight with nothing recomputed, or what is pinned, ``[ways, segments]``."""
    prices, over, kind = priced.prices, _Sums(space, segments), space.recompute or "none"
    kept = over.total(prices.saved[kind], ends=False) + over.total(prices.saved["none"], inside=False)
    most = (space.limits[priced.setups.part] - over.held(prices)) // np.maximum(kept, 1)
    for name, room in prices.tier_room.items():
        saved = np.maximum(over.total(prices.tier_saved[name]), 1)
        most = np.minimum(most, (room[:, None] - over.in_tier(prices, name)) // saved)
    return np.maximum(most, 0)


@dataclass(frozen=True)
class _Sums:
    """Sums of tables ``[ways, kinds]`` over segments, ``[ways, segments]``."""

    space: MixedSpace
    segments: Segments

    @cached_property
    def last(self) -> NDArray[np.bool_]:
        """Segments that end with the head."""
        return self.segments.j == self.space.machine.model.layers

    def total(self, table: Ints, *, inside: bool = True, ends: bool = True) -> Ints:
        """Layers ``inside`` and, at either end of the model, embedding and head."""
        i, j, first = self.segments.i, self.segments.j, self.segments.i == 0
        sums = np.cumsum(np.pad(table[:, np.array(self.space.machine.model.order)], ((0, 0), (1, 0))), axis=1)
        found = sums[:, j] - sums[:, i] if inside else np.zeros((len(table), len(i)), dtype=table.dtype)
        return found + (first * table[:, -2:-1] + self.last * table[:, -1:] if ends else 0)

    def held(self, prices: Prices) -> Ints:
        """Bytes of states, logits and what a device holds whatever its layers are."""
        copied = (self.last & (self.segments.i > 0)) * prices.tied_bytes[:, None]
        return (
            self.total(prices.state_bytes) + prices.fixed_bytes[:, None] + self.last * prices.logits[:, None] + copied
        )

    def in_tier(self, prices: Prices, name: str) -> Ints:
        """Bytes of states in a memory tier."""
        copied = (self.last & (self.segments.i > 0)) * prices.tier_tied[name][:, None]
        return self.total(prices.tier_states[name]) + copied


def _chain(space: MixedSpace, priced: Priced, way: int, m: int) -> Chain:
    """The layers as one way runs them, in as many stages as there may be."""
    chain = Chain(space.machine.model, priced.prices, way)
    chain.pp = chain.micro_batches = min(m, space.machine.model.layers)
    return chain


def _together(space: MixedSpace, priced: Priced, m: int) -> Chains:
    """The layers as all ways of a part run them, in as many stages as there may be."""
    rows = priced.prices.rows
    deep = np.full(len(rows), min(m, space.machine.model.layers))
    prices = dataclasses.replace(priced.prices, rows=dataclasses.replace(rows, pp=deep, micro_batches=deep))
    return Chains(space.machine.model, prices, np.arange(len(rows)))


def _longest(layers: int, priced: list[Priced], most_ticks: float) -> int:
    """Layers that a stage of the quickest way can hold within ``most_ticks``."""
    least = min(int((p.prices.forward + p.prices.backward)[:, :-2].min()) for p in priced if len(p.setups))
    return int(max(1, min(layers - 1, most_ticks // max(1, least))))
