"""When memory beside the devices pays for itself: with a tier, without it, on more devices, with more HBM.

With ``U`` USD a token of the best way without the tier, ``r`` tokens a second with it and ``R`` USD a second for the
rented hosts, the tier may cost

    p = (U r - R) / (devices GB)        USD for a gigabyte in use and second

and pays for itself at any price below. The least bandwidth is the part of the tier's rates at which the plan with it
is no cheaper a token than the best way without, its price left aside; between two parts of which one pays, the search
halves. Every row is planned, none extrapolated. What a way takes in joules a token stands beside its money, which is
rent: that holds the electricity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from planner.errors import BadInput, InfeasiblePlan
from planner.options import tiers_of
from planner.result import Plan
from topologies.cluster import Cluster
from topologies.enlarged import host_step, with_more_memory
from topologies.ready import read_cluster
from topologies.resized import resized
from topologies.tiers import with_tiers

HOSTS_GROW = (1.25, 1.5, 2.0, 3.0, 4.0)
HBM_GROWS = (1.25, 1.5, 2.0)
HALVINGS = 5
Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Way:
    """One way to do the work: what it takes a step, makes and costs; ``plan`` is ``None`` where nothing fits."""

    name: str
    plan: Plan | None
    devices: int
    usd_per_device_hour: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of the whole job, 0 where nothing fits."""
        return 0.0 if self.plan is None else self.plan.workload.tokens / self.plan.step_s

    @property
    def usd_per_s(self) -> float:
        """Rent of every device of the cluster, those that idle too: they are paid while the job runs."""
        return self.devices * self.usd_per_device_hour / 3600.0

    @property
    def usd_per_token(self) -> float:
        """Infinite where nothing fits."""
        return self.usd_per_s / self.tokens_per_s if self.tokens_per_s else float("inf")

    @property
    def joules_per_token(self) -> float:
        """At the facility's meter, with what tiers and the way there take; infinite where nothing fits."""
        return float("inf") if self.plan is None else self.plan.joules_per_token

    @property
    def tier_joules_per_token(self) -> float:
        """What moving tensors to and from tiers takes of a token, before cooling."""
        if self.plan is None:
            return 0.0
        tiers = {use.tier for use in self.plan.tiers}
        return sum(it.joules or 0.0 for it in self.plan.moved if it.level in tiers) / self.plan.workload.tokens


@dataclass(frozen=True)
class BreakEven:
    """The ways side by side; ``gb_per_device`` of the tier that the plan keeps there.

    ``usd_per_gb_hour`` is the price below which it pays, ``None`` where nothing else fits at any price, negative where
    it does not pay if given away. ``least_bandwidth`` is the part of its bandwidth from which it pays when free.
    """

    tier: str
    with_tier: Way
    without: tuple[Way, ...]
    more_memory: tuple[Way, ...]
    gb_per_device: float
    usd_per_gb_hour: float | None
    least_bandwidth: float | None

    @property
    def best_without(self) -> Way:
        """The cheapest a token of the ways that have a price."""
        return min(self.without, key=lambda way: way.usd_per_token)


def break_even(
    model: Any, cluster: str | Cluster, tier: str, *, time_limit_s: float = 20.0,
    progress: Progress = lambda stage, best, bound: None, **asked: Any,
) -> BreakEven:  # fmt: skip
    """What ``tier`` (``"cxl-expander:4"``, ``"dram"``) is worth for ``model`` on ``cluster``.

    ``asked`` are further arguments of :func:`planner.plan`. Raises ``BadInput`` for none or several tiers, for devices
    without a price and for a plan not searched for time, ``InfeasiblePlan`` where nothing fits with the tier either.
    """
    machine, tier = read_cluster(cluster), _one_tier(tier)
    if not machine.price_usd_per_device_hour:
        raise BadInput(
            f"a break-even needs a price: {machine.name!r} has no price_usd_per_device_hour above 0; give it in a "
            "cluster file"
        )
    asking = _Asking(model, machine, tier, {**asked, "time_limit_s": time_limit_s, "alternatives": 0}, progress)
    mine = asking.with_tier()
    without = (asking.alone(), *asking.more_hosts(mine))
    used = [max(use.need_bytes, default=0.0) for use in mine.plan.tiers] if mine.plan is not None else []
    found = BreakEven(tier, mine, without, asking.more_memory(), sum(used) / 1e9, None, None)
    least = asking.least_bandwidth(found.best_without) if found.gb_per_device else None
    return dataclasses.replace(found, usd_per_gb_hour=price_per_gb_hour(found), least_bandwidth=least)


def _one_tier(tier: str) -> str:
    words = tiers_of(tier)
    if len(words) != 1:
        raise BadInput(
            f"a break-even is that of one memory tier, and --tier {str(tier)[:80]!r} names {len(words)}; write for "
            "example --tier cxl-expander:4"
        )
    return words[0]


def price_per_gb_hour(found: BreakEven) -> float | None:
    """The price at which the tier and the best way without it cost the same a token."""
    other, mine = found.best_without.usd_per_token, found.with_tier
    if other == float("inf") or not found.gb_per_device:
        return None
    spare_usd_per_s = other * mine.tokens_per_s - mine.usd_per_s
    return spare_usd_per_s * 3600.0 / (mine.devices * found.gb_per_device)


@dataclass(frozen=True)
class _Asking:
    """One question, asked of several machines."""

    model: Any
    machine: Cluster
    tier: str
    asked: dict[str, Any]
    progress: Progress

    def with_tier(self) -> Way:
        return self._way(f"with {self.tier}", self.machine, tiers=self.tier, must=True)

    def alone(self) -> Way:
        return self._way("as it is", self.machine)

    def more_hosts(self, mine: Way) -> list[Way]:
        """More hosts, up to the first number that is as quick as the plan with the tier."""
        step, found = host_step(self.machine), list[Way]()
        for grown in (1 + step / self.machine.hosts, *HOSTS_GROW):
            hosts = step * -(-int(self.machine.hosts * grown + 0.5) // step)
            if hosts <= self.machine.hosts or any(way.name == f"{hosts} hosts" for way in found):
                continue
            found.append(self._way(f"{hosts} hosts", resized(self.machine, hosts)))
            if found[-1].tokens_per_s >= mine.tokens_per_s:
                break
        return found

    def more_memory(self) -> tuple[Way, ...]:
        return tuple(self._way(f"{grown:g} x HBM", with_more_memory(self.machine, grown)) for grown in HBM_GROWS)

    def least_bandwidth(self, other: Way) -> float | None:
        """The part of the tier's rates from which it pays; ``None`` where it does not at all of them."""
        if not self._pays(1.0, other):
            return None
        low, high = 2.0**-10, 1.0
        for _ in range(HALVINGS):
            middle = (low * high) ** 0.5
            low, high = (low, middle) if self._pays(middle, other) else (middle, high)
        return high

    def _pays(self, part: float, other: Way) -> bool:
        tiered = with_tiers(self.machine, (self.tier,))
        slower = dataclasses.replace(tiered, present_tiers=tuple(_rated(tier, part) for tier in tiered.tiers))
        way = self._way("slower", slower, tiers="all")
        return way.plan is not None and bool(way.plan.tiers) and way.usd_per_token < other.usd_per_token

    def _way(self, name: str, machine: Cluster, *, tiers: str = "", must: bool = False) -> Way:
        from planner.api import plan

        price = self.machine.price_usd_per_device_hour or 0.0
        self.progress(name, float("inf"), 0.0)
        try:
            found = plan(self.model, machine, tiers=tiers, **self.asked)
        except InfeasiblePlan:
            if must:
                raise
            return Way(name, None, machine.devices, price)
        return Way(name, found, machine.devices, price)


def _rated(tier: Any, part: float) -> Any:
    """The tier with that part of its rates; the device's link and latency stay."""
    rates = ("read_bytes_per_s", "write_bytes_per_s", "update_bytes_per_s", "attend_bytes_per_s", "pool_bytes_per_s")
    return dataclasses.replace(tier, **{name: getattr(tier, name) * part for name in rates})
