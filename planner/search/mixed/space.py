"""The space of mixed plans: ways to run a stage on a part, and sizes of stages that always pack.

A stage reserves a size of its part: a whole number of scale-up domains, or one of a chain of divisors of a domain
(8, 4, 2, 1), so that any mix of sizes whose sum fits the part can be placed. It may use fewer devices than it reserves.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.clocks import FULL
from cost_models.mixed import Machine, inner_copies
from cost_models.price import Prices
from cost_models.rows import offloads_of
from cost_models.strategy import Offload
from planner.candidates import divisors, legal_cp, legal_tp, offload_text
from planner.mixed.asked import Asked
from planner.search.deadline import look
from planner.search.offloads import ways
from topologies.cluster import Cluster

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
RESTRICTIONS = [
    "a stage runs on one part; one 1F1B pipeline holds the whole model, two stages or more",
    "tp and cp of a stage are inside one scale-up domain, each axis as deep inside as it fits: tp, cp, then dp",
    "tp, cp, dp, ep, zero and devices may differ from stage to stage; micro_batch x dp is the same for all",
    "a stage's states are sharded over all of dp x cp or not at all; etp 1; no virtual stages",
    "a stage reserves whole scale-up domains or one of a chain of their divisors; sums per part stay within it",
    "every step waits for the slowest of all devices of the cluster, used or not",
    "what a stage keeps in memory tiers may differ from stage to stage, not within one; every device has an even part "
    "of its host's tiers and of its part's pools",
    "rent and idle power, where they count, are of the whole hosts that stages reserve devices on, as few as hold them",
    "plans on one part alone: the whole space of that part, searched by itself",
]


@dataclass(frozen=True)
class MixedSpace:
    """A machine with the legal values of every axis, by part where parts differ, the bytes that a stage may use, what
    is asked for beside memory, and the clocks that a stage may have, as fractions of the full one, which comes first.
    """

    machine: Machine
    pins: dict[str, int | str]
    limits: tuple[int, ...]
    asked: Asked = field(default_factory=Asked)
    clocks: tuple[float, ...] = (FULL,)

    @property
    def recompute(self) -> str | None:
        """The recompute that is pinned."""
        value = self.pins.get("recompute")
        return None if value is None else str(value)

    @property
    def devices(self) -> Ints:
        """Devices of every part."""
        return np.array([part.devices for part in self.machine.cluster.parts], dtype=np.int64)

    def rounds(self, batch: int) -> int:
        """Micro-batches of a step, each of ``batch`` sequences over a whole stage."""
        return self.machine.workload.global_batch // batch

    def batches(self) -> tuple[int, ...]:
        """Sequences of a micro-batch over a whole stage: divisors of the global batch."""
        return divisors(self.machine.workload.global_batch)

    def described(self) -> dict[str, Any]:
        """Axes with their values and the restrictions, for the proof."""
        parts = self.machine.cluster.parts
        return {
            "axes": {
                "stages": f"2 to {min(self.machine.model.layers, self.machine.cluster.devices)}",
                "parts": [part.name for part in parts],
                "devices_per_stage": {p.name: list(_sizes(p.group_capacity, p.devices_per_host)) for p in parts},
                "batch_per_micro_batch": list(self.batches()),
                "layers_per_stage": "every composition",
                "recompute": "per stage: the first layers full, the next selective, the rest none",
                **{name: list(values) for name, values in self._axes().items()},
                **({"offload": offload} if (offload := {p.name: _offload_text(p) for p in parts if p.tiers}) else {}),
                **({"clock": {"of every stage": list(self.clocks)}} if self.clocks != (FULL,) else {}),
            },
            "pins": dict(self.pins),
            "restrictions": RESTRICTIONS,
            **self.asked.described(parts),
        }  # fmt: skip

    @property
    def refused_pin(self) -> str:
        """The pin that no stage can have, with what is legal; empty where there is none such."""
        legal, held = self._legal(), self._axes()
        wrong = (f"{name}={self.pins[name]} is not legal in any stage; legal: {', '.join(map(str, legal[name]))}"
                 for name, values in held.items() if not values)  # fmt: skip
        return next(wrong, "")

    def _axes(self) -> dict[str, tuple[int, ...]]:
        return {
            name: values if name not in self.pins else tuple(it for it in values if it == self.pins[name])
            for name, values in self._legal().items()
        }

    def _legal(self) -> dict[str, tuple[int, ...]]:
        model, workload = self.machine.model, self.machine.workload
        most = max(part.levels[0].fanout for part in self.machine.cluster.parts)
        return {
            "tp": legal_tp(model, most), "cp": legal_cp(workload, most),
            "ep": divisors(max(1, model.experts)), "zero": (0, 1, 2, 3),
        }  # fmt: skip

    def setups(self, part: int, batch: int) -> Setups:
        """Every way to run a stage on a part with micro-batches of ``batch`` sequences."""
        cluster = self.machine.cluster.parts[part]
        capacity, host, axes = cluster.group_capacity, cluster.devices_per_host, self._axes()
        sizes, found = _sizes(capacity, host), []
        for tp, cp, dp in itertools.product(axes["tp"], axes["cp"], divisors(batch)):
            inside = inner_copies(capacity, host, tp * cp, dp) if tp * cp * dp <= cluster.devices else 0
            if not inside:
                continue
            near, far = tp * cp * inside, dp // inside
            size = capacity[0] * far if far > 1 else min(s for s in sizes if s >= near)
            for ep, zero in itertools.product(axes["ep"], axes["zero"]):
                spread = (near * far) % ep == 0 and far % (ep // int(np.gcd(ep, near))) == 0
                if spread and (zero == 0 or cp * dp > 1):
                    found.append((tp, cp, dp, ep, zero, batch // dp, size))
        table = np.array(found, dtype=np.int64).reshape(-1, 7)
        return Setups(part, table[:, :6], table[:, 6], np.zeros(len(table), dtype=np.int64), np.full(len(table), FULL))

    def offloads(self, part: int, at: int) -> tuple[Offload, ...]:
        """What the ways at a position of :func:`planner.search.offloads.ways` keep in the tiers of a part."""
        tiers = tuple(tier.name for tier in self.machine.cluster.parts[part].tiers)
        return offloads_of(ways(len(tiers))[at], tiers)

    def priced(self, setups: Setups) -> tuple[Setups, Prices]:
        """Ways with their prices: every one at all of its clocks, the full one first, and with all that it may keep in
        its part's memory tiers, nothing first."""
        prices = self.machine.prices(setups.part, setups.table, self.clocks)
        if self.clocks != (FULL,):
            each = np.repeat(self.clocks, len(setups))
            setups = dataclasses.replace(setups.take(np.arange(len(each)) % len(setups)), clock=each)
        every = ways(len(self.machine.cluster.parts[setups.part].tiers))
        if len(every) == 1:
            return setups, prices
        origin, at = np.divmod(np.arange(len(setups) * len(every)), len(every))
        setups = dataclasses.replace(setups.take(origin), offload=at)
        return setups, self.machine.offloading(setups.part, prices.take(origin), every[at])


def _offload_text(part: Cluster) -> dict[str, Any]:
    """What stages on a part may keep in its memory tiers: of every layer alike."""
    return {name: text for name, text in offload_text(part).items() if name != "layers"}


def _sizes(capacity: tuple[int, ...], host: int) -> tuple[int, ...]:
    """Sizes inside a domain, each a divisor of the one before, of whole hosts or inside one."""
    sizes = [capacity[0]]
    while sizes[-1] > 1:
        smaller = [d for d in divisors(sizes[-1])[:-1] if d % host == 0 or host % d == 0]
        sizes.append(smaller[-1])
    return tuple(sizes)


@dataclass(frozen=True)
class Setups:
    """Ways to run a stage on one part: ``table`` is ``[ways, 6]`` as :data:`cost_models.mixed.SETUP`.

    ``offload`` is what each keeps in the part's memory tiers, a position in :func:`planner.search.offloads.ways`, and
    ``clock`` what its devices run at, a fraction of their full one.
    """

    part: int
    table: Ints
    size: Ints
    offload: Ints
    clock: Floats

    def __len__(self) -> int:
        return len(self.size)

    @property
    def devices(self) -> Ints:
        """Devices in use."""
        return self.table[:, 0] * self.table[:, 1] * self.table[:, 2]

    def take(self, index: NDArray) -> Setups:
        """Some of the ways."""
        return Setups(self.part, *(it[index] for it in (self.table, self.size, self.offload, self.clock)))


def useful(
    prices: Prices, setups: Setups, pinned: str | None, *, joules: bool = False, alike: bool = False
) -> Ints:  # fmt: skip
    """Positions of ways that no other of the same size replaces in every stage.

    One replaces another that is worse in everything, or that is slower without recompute than it is with everything
    recomputed and needs no fewer bytes then; with ``joules`` neither may it spend more, and with ``alike`` it uses as
    many devices. Of equal ones the first stays.
    """
    least, more = _least_features(prices, setups), _more_features(prices)
    again = least.copy()
    kinds = prices.forward.shape[1]
    again[:, kinds : 2 * kinds] += prices.extra["full"]
    if joules:
        spent, repeated, several = (setups.devices[:, None] * it for it in _joules(prices))
        least, again = np.hstack([least, spent]), np.hstack([again, spent + repeated])
        more = np.hstack([more, several])
    kept, group = [np.zeros(0, dtype=np.int64)], np.stack([setups.size, setups.devices * alike])
    for one in np.unique(group, axis=1).T:
        members = np.flatnonzero((group == one[:, None]).all(axis=0))
        alive = np.ones(len(members), dtype=bool)
        for k, me in enumerate(members):
            look()
            if alive[k]:
                beaten = (least[me] <= least[members]).all(axis=1) & (more[me] <= more[members]).all(axis=1)
                if pinned is None:
                    beaten |= (again[me] <= least[members]).all(axis=1)
                beaten[k] = False
                alive &= ~beaten
        kept.append(members[alive])
    return np.sort(np.concatenate(kept))


def _joules(prices: Prices) -> tuple[Floats, ...]:
    """Joules of a device without recompute, what recomputing all adds to them, and what either kind adds."""
    full, selective = prices.joules_extra["full"], prices.joules_extra["selective"]
    spent = np.hstack([prices.joules_pass, prices.joules_step])
    return spent, np.hstack([full, np.zeros_like(full)]), np.hstack([full, selective])


def _least_features(prices: Prices, setups: Setups) -> Floats:
    """``[ways, quantities]`` where less is better: ticks without recompute, bytes with all of it."""
    tables = [
        prices.forward, prices.backward, prices.reduce, prices.gather, prices.update, prices.state_bytes,
        prices.saved["full"], *prices.tier_states.values(), *prices.tier_saved.values(),
    ]  # fmt: skip
    tied = prices.tier_tied.values()
    singles = np.stack([prices.fixed_bytes, prices.logits, prices.tied_bytes, -setups.devices, *tied], axis=1)
    return np.concatenate([*tables, singles], axis=1).astype(np.float64)


def _more_features(prices: Prices) -> Floats:
    """What recompute costs, and bytes with less of it."""
    tables = [prices.extra["full"], prices.extra["selective"], prices.saved["none"], prices.saved["selective"]]
    return np.concatenate(tables, axis=1).astype(np.float64)
