"""Every way to run a stage of a mixed plan and what it may hold, written down again by other means than the search.

A stage of depth ``d``, counted from the end, keeps ``min(m, d)`` micro-batches. Of all recomputes of a segment that fit
the quickest is kept: a longer backward lengthens every path by more than it can hide of the stage's tail. Of ways that
reserve the same devices, use as many where these have limits on watts, and hop alike, one that is no slower in ``f``,
``b`` and ``f + b + tail`` stands for another: the end of a stage's last backward moves by ``f + b`` at least.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.clocks import FULL
from cost_models.mixed import Machine, placement
from cost_models.model_graph import ModelGraph
from planner.checks.rederive_offloads import every_share, offloads_no_more
from planner.clocks import search_clocks, weighs_joules_of_rented
from planner.limits import power_limits
from planner.options import Options
from topologies.cluster import Cluster

Ints = NDArray[np.int64]
NEVER = 2**60
KINDS = ("full", "selective", "none")


class OutOfTime(Exception):
    """The time for a derivation is over; what was known before stands."""


def look_at_clock(deadline: float) -> None:
    """Raises ``OutOfTime`` after a ``time.monotonic()`` moment."""
    if time.monotonic() > deadline:
        raise OutOfTime


@dataclass(frozen=True)
class MixedProblem:
    """What was to be planned on a mixed cluster, and the bytes that a device of each part may use.

    ``devices`` are those of every part that pipelines may use; all where none are said.
    """

    machine: Machine
    options: Options
    devices: tuple[int, ...] | None = None

    @cached_property
    def limits(self) -> tuple[int, ...]:
        """Bytes that a stage may use on a device, by part."""
        return tuple(int(part.memory_bytes * (1 - self.options.headroom)) for part in self.machine.cluster.parts)

    @cached_property
    def clocks(self) -> tuple[float, ...]:
        """The clocks that a stage may have; the full one alone stands for all where no joules count."""
        return search_clocks(self.options) if weighs_joules_of_rented(self.options) else (FULL,)

    def pinned(self, name: str, value: int | str) -> bool:
        """Whether the pins let ``name`` be ``value``."""
        return self.options.pins.get(name, value) == value

    def axes(self) -> dict[str, list[int]]:
        """The legal values of every axis in some stage, pins held."""
        model, seq_len = self.machine.model, self.machine.workload.seq_len
        upto = range(1, max(part.levels[0].fanout for part in self.machine.cluster.parts) + 1)
        divides = [t for t in upto if all(width % t == 0 for _, width in model.widths)]
        axes = {
            "tp": [t for t in divides if model.kv_heads % t == 0 or t % model.kv_heads == 0],
            "cp": [c for c in upto if c == 1 or seq_len % (2 * c) == 0],
            "ep": [e for e in range(1, max(1, model.experts) + 1) if max(1, model.experts) % e == 0],
            "zero": [0, 1, 2, 3],
        }
        return {name: [v for v in values if self.pinned(name, v)] for name, values in axes.items()}

    @cached_property
    def segments(self) -> Segments:
        """Segments of the model's layers, alike ones once."""
        return Segments.of(self.machine.model)


@dataclass(frozen=True)
class Segments:
    """Layers ``i`` to ``j - 1`` of one of each class of segments that cost the same; the class of every ``[i, j]``."""

    i: Ints
    j: Ints
    of_pair: Ints

    @staticmethod
    def of(model: ModelGraph) -> Segments:
        """Every segment but the whole model: by its kinds of layers, and whether it holds embedding or head."""
        layers, known, order = model.layers, {}, np.array(model.order, dtype=np.int64)
        of_pair = np.full((layers + 1, layers + 1), -1, dtype=np.int64)
        for i, j in itertools.combinations(range(layers + 1), 2):
            if j - i < layers:
                key = order[i:j].tobytes(), i == 0, j == layers
                of_pair[i, j] = known.setdefault(key, (len(known), i, j))[0]
        ends = np.array([(i, j) for _, i, j in known.values()], dtype=np.int64).reshape(-1, 2)
        return Segments(ends[:, 0], ends[:, 1], of_pair)


def reserved(part: Cluster, near: int, far: int) -> int:
    """Devices that a stage of ``near`` in each of ``far`` scale-up domains reserves: whole domains, or of a chain of
    divisors of one (each of whole hosts or inside a host) the smallest that holds it."""
    room, host = part.levels[0].fanout, part.devices_per_host
    if far > 1:
        return room * far
    size = room
    while size > 1:
        below = next(d for d in range(size - 1, 0, -1) if size % d == 0 and (d % host == 0 or host % d == 0))
        if below < near:
            break
        size = below
    return size


def place(part: Cluster, tp: int, cp: int, dp: int, ep: int) -> tuple[int, int] | None:
    """``(near, far)``: devices of a stage inside a scale-up domain, and over how many; ``None`` without a place."""
    if tp * cp * dp > part.devices or tp * cp > part.levels[0].fanout:
        return None
    try:
        inside = placement(part.group_capacity, part.devices_per_host, tp, cp, dp, ep)[2][0]
    except ValueError:
        return None
    return tp * cp * inside, dp // inside


def legal_ways(it: MixedProblem, k: int, batch: int) -> list[tuple[int, ...]]:
    """``(tp, cp, dp, ep, zero, micro_batch, devices reserved)`` of every way on part ``k`` for ``batch`` sequences."""
    part, axes, found = it.machine.cluster.parts[k], it.axes(), []
    copies = [dp for dp in range(1, min(batch, part.devices) + 1) if batch % dp == 0]
    for tp, cp, dp, ep in itertools.product(axes["tp"], axes["cp"], copies, axes["ep"]):
        at = place(part, tp, cp, dp, ep)
        if at is not None:
            size = reserved(part, *at)
            found += [(tp, cp, dp, ep, z, batch // dp, size) for z in axes["zero"] if z == 0 or cp * dp > 1]
    return found


@dataclass(frozen=True)
class Choices:
    """What a stage of one depth may hold, ``[choices]``: layers ``i`` to ``j - 1``, ticks, and how it is run.

    ``same`` and ``across`` are its sides of a hop; ``way`` is the position in :attr:`Ways.setups`.
    """

    i: Ints
    j: Ints
    forward: Ints
    backward: Ints
    tail: Ints
    way: Ints
    part: Ints
    size: Ints
    same: Ints
    across: Ints

    def __len__(self) -> int:
        return len(self.i)

    @property
    def ticks(self) -> Ints:
        """Forward and backward of one micro-batch."""
        return self.forward + self.backward

    def take(self, index: NDArray) -> Choices:
        """Some choices."""
        return Choices(*(getattr(self, name)[index] for name in Choices.__dataclass_fields__))


class Ways:
    """All ways to run stages of one global micro-batch, priced."""

    def __init__(self, it: MixedProblem, batch: int) -> None:
        self.it, self.m = it, it.machine.workload.global_batch // batch
        self.setups: list[tuple[int, ...]] = []
        self.shares: list[NDArray[np.float64] | None] = []
        self.chains: list[Chain] = []
        self.clocks: list[float] = []
        sides = []
        for k, clock in itertools.product(range(len(it.limits)), it.clocks):
            ways = legal_ways(it, k, batch)
            if not ways:
                continue
            table = np.array(ways, dtype=np.int64)
            prices = it.machine.prices(k, table[:, :6], (clock,))
            if tiers := len(it.machine.cluster.parts[k].tiers):
                every = list(every_share(tiers))
                ways = [way for way in ways for _ in every]
                prices = prices.take(np.repeat(np.arange(len(table)), len(every)))
                prices = it.machine.offloading(k, prices, np.stack(every * len(table)))
                table = np.array(ways, dtype=np.int64)
            self.shares += every * (len(ways) // len(every)) if tiers else [None] * len(ways)
            self.setups += [(k, *way) for way in ways]
            self.clocks += [clock] * len(ways)
            self.chains += [Chain(it.machine.model, prices, row) for row in range(len(ways))]
            tokens, devices = batch * it.machine.workload.seq_len, table[:, :3].prod(axis=1)
            sides.append([it.machine.side(k, tokens, devices, across=across) for across in (False, True)])
        self.part = np.array([setup[0] for setup in self.setups], dtype=np.int64)
        self.size = np.array([setup[-1] for setup in self.setups], dtype=np.int64)
        used = np.array([tp * cp * dp for _, tp, cp, dp, *_ in self.setups], dtype=np.int64)
        slower = np.array([it.clocks.index(clock) for clock in self.clocks], dtype=np.int64)
        self.told_apart = slower + len(it.clocks) * used * inside_limited(it)
        self.sides = np.concatenate(sides, axis=1) if sides else np.zeros((2, 0), dtype=np.int64)

    @cached_property
    def layer_ticks(self) -> NDArray[np.float64]:
        """Forward and backward of every kind of layer by way, ``[ways, kinds]``, without embedding and head."""
        tables = [(c.prices.forward + c.prices.backward)[c.row, :-2] for c in self.chains]
        return np.array(tables, dtype=np.float64)[:, sorted(set(self.it.machine.model.order))]

    def price(self, most: float, deepest: int, deadline: float) -> None:
        """Prices every segment by every way and depth up to ``deepest`` whose stage is busy below ``most`` ticks.

        Raises ``OutOfTime`` when a ``time.monotonic()`` moment passes.
        """
        flights, priced, free = np.arange(1, min(self.m, deepest) + 1), [], {}
        for w, chain in enumerate(self.chains):
            look_at_clock(deadline)
            alike = free.setdefault((*self.setups[w], self.clocks[w]), [])
            spared = [mask for share, mask in alike if offloads_no_more(share, self.shares[w])]
            skip = np.logical_or.reduce(spared) if spared else np.zeros((len(flights), 1), dtype=bool)
            *ticks, mask = self._of_way(chain, w, flights, most, skip)
            priced.append(ticks)
            if self.shares[w] is not None:
                alike.append((self.shares[w], mask | skip))
        self.forward, self.backward, self.tail = (np.stack(tables) for tables in zip(*priced, strict=True))
        self.stands = self._standing(deadline)

    def _of_way(self, chain: Chain, w: int, flights: Ints, most: float, skip: NDArray) -> tuple[NDArray, ...]:
        """Forward, backward and tail, ``[flights, segments]``, and where nothing is recomputed.

        ``NEVER`` where it does not fit, and where it need not be asked, since a way that offloads less of the same
        recomputes nothing.
        """
        i, j = self.it.segments.i, self.it.segments.j
        forward, backward = chain.forward(i, j), chain.backward(i, j)
        quick = np.flatnonzero((self.m * (forward + backward) < most) & ~skip.all(axis=0))
        again = np.full((len(flights), len(i)), NEVER, dtype=np.int64)
        again[:, quick] = least_recompute(self.it, chain, int(self.part[w]), i[quick], j[quick], flights)
        longer = backward + again
        tail = chain.tail(chain.tail_parts(i, j), forward, np.minimum(longer, NEVER))
        held = chain.tiers_hold(i, j, flights[:, None]) & ~skip
        late = ~held | (again >= NEVER) | (self.m * (forward + np.minimum(longer, NEVER // self.m)) >= most)
        least = self._least_again(chain, i, j)
        return np.broadcast_to(forward, late.shape), np.where(late, NEVER, longer), tail, ~late & (again <= least)

    def _least_again(self, chain: Chain, i: Ints, j: Ints) -> Ints:
        """Ticks that a stage with room for everything recomputes: none, or what is pinned."""
        pinned = self.it.options.pins.get("recompute")
        return np.zeros_like(i) if pinned is None else chain.recompute(str(pinned), i, j)

    def choices(self, depth: int) -> Choices:
        """Every stage of that depth that another does not stand for, sorted by ``j``, then ``i``."""
        flight = min(depth, self.stands.shape[1]) - 1
        ways, segments = np.nonzero(self.stands[:, flight])
        classes = [ways[segments == s] for s in range(len(self.it.segments.i))]
        i, j = np.nonzero(self.it.segments.of_pair >= 0)
        last = self.it.machine.model.layers
        there = (j == last) if depth == 1 else (j < last)
        i, j = i[there], j[there]
        order = np.argsort(j, kind="stable")
        i, j = i[order], j[order]
        segment = self.it.segments.of_pair[i, j]
        count = np.array([len(classes[s]) for s in segment], dtype=np.int64)
        way = np.concatenate([classes[s] for s in segment]) if len(segment) else np.zeros(0, dtype=np.int64)
        at = np.repeat(segment, count)
        return Choices(
            np.repeat(i, count), np.repeat(j, count), self.forward[way, flight, at], self.backward[way, flight, at],
            self.tail[way, flight, at], way, self.part[way], self.size[way], *self.sides[:, way],
        )  # fmt: skip

    def _standing(self, deadline: float) -> NDArray[np.bool_]:
        """``[ways, flights, segments]``: stages that fit and that no other of the same size and hops stands for."""
        forward, backward, whole = self.forward, self.backward, self.forward + self.backward + self.tail
        stands = backward < NEVER
        alike = np.stack([self.part, self.size, *self.sides, self.told_apart])
        for group in np.unique(alike, axis=1).T:
            mine = np.flatnonzero((alike == group[:, None]).all(axis=0))
            for one in mine.tolist():
                look_at_clock(deadline)
                mine = mine[stands[mine].any(axis=(1, 2))]
                other = mine[mine != one]
                if not stands[one].any():
                    continue
                no_worse = (forward[one] <= forward[other]) & (backward[one] <= backward[other])
                no_worse &= (whole[one] <= whole[other]) & stands[one]
                equal = (forward[one] == forward[other]) & (backward[one] == backward[other])
                equal &= whole[one] == whole[other]
                stands[other] &= ~(no_worse & (~equal | (one < other)[:, None, None]))
        return stands

    def described(self, way: int, layers: int) -> str:
        """One stage in words."""
        k, tp, cp, dp, ep, zero, micro, _ = self.setups[way]
        name = self.it.machine.cluster.parts[k].name
        slower = f", at {self.clocks[way]:g} of the full clock" if self.clocks[way] < FULL else ""
        degrees = f"tp={tp}, cp={cp}, dp={dp}, ep={ep}, zero={zero}, micro_batch={micro}"
        return f"{layers} layers on {name}: {degrees}{slower}"


def inside_limited(it: MixedProblem) -> bool:
    """Whether devices, hosts or racks have a limit on watts: then it matters on how many devices a stage runs."""
    return any(level != "site" for level in power_limits(it.options).given)


def least_recompute(
    it: MixedProblem, chain: Chain, k: int, i: Ints, j: Ints, flights: Ints, adds: dict[str, NDArray] | None = None
) -> NDArray:  # fmt: skip
    """Least ticks that recompute adds so that segments fit part ``k``, ``[flights, segments]``, or ``NEVER``; the least
    of what it ``adds`` by kind where that is said.
    """
    adds = chain.prices.extra if adds is None else adds
    fixed = chain.fixed_bytes + chain.state_bytes(i, j) + chain.logit_bytes(i, j)
    room = (it.limits[k] - fixed) // flights[:, None] - chain.saved_ends(i, j)
    found = np.zeros(room.shape, dtype=adds["full"].dtype)
    asked = np.ones(len(i), dtype=bool)
    if it.pinned("recompute", "none"):
        asked = (room < chain.saved("none", i, j)).any(axis=0)
    tables = [[_prefix(chain, table[kind]) for kind in KINDS] for table in (adds, chain.prices.saved)]
    for layers in np.unique((j - i)[asked]).tolist():
        mine = np.flatnonzero(asked & (j - i == layers))
        full, both = _pinned_pairs(it, layers)
        extra, kept = (_summed(sums, i[mine], j[mine], full, both) for sums in tables)
        for at, more, bytes_kept in zip(mine.tolist(), extra, kept, strict=True):
            order = np.argsort(more, kind="stable")
            least_kept = np.minimum.accumulate(bytes_kept[order])
            first = np.searchsorted(-least_kept, -room[:, at], side="left")
            found[:, at] = np.where(first < len(order), more[order][np.minimum(first, len(order) - 1)], NEVER)
    return found


def _prefix(chain: Chain, table: Ints) -> Ints:
    """Sums over the first 0, 1, 2, ... layers of the model, ``[L + 1]``."""
    return np.append(0, np.cumsum(table[chain.row][chain.order]))


def _summed(sums: list[Ints], i: Ints, j: Ints, full: Ints, both: Ints) -> Ints:
    """Sums over segments whose first ``full`` layers are recomputed in full, those up to ``both`` selectively,
    ``[segments, pairs]``; ``sums`` are by kind of recompute."""
    i, j = i[:, None], j[:, None]
    a, b = i + full, i + both
    return sums[0][a] - sums[0][i] + sums[1][b] - sums[1][a] + sums[2][j] - sums[2][b]


def _pinned_pairs(it: MixedProblem, layers: int) -> tuple[Ints, Ints]:
    """Layers recomputed in full, and those recomputed at all, of every choice that the pins allow, ``[pairs]``."""
    full, selective = pairs(layers)
    if (pin := it.options.pins.get("recompute")) is not None:
        held = {"full": full, "selective": selective, "none": layers - full - selective}[str(pin)]
        full, selective = full[held == layers], selective[held == layers]
    return full, full + selective


@lru_cache(maxsize=512)
def pairs(layers: int) -> tuple[Ints, Ints]:
    """Every ``(full, selective)`` of so many layers, ``[pairs]`` each."""
    full, selective = np.nonzero(np.add.outer(np.arange(layers + 1), np.arange(layers + 1)) <= layers)
    return full, selective
