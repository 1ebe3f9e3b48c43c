"""What may be asked on a mixed cluster: time, rent or energy, limits on each and on mean watts, what each part's hosts
cost and draw."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from cost_models.mixed_power import busy_host_w, idle_host_w
from cost_models.money import hosts_usd_per_s
from cost_models.power_levels import LEVELS, PowerLimits, idle_w
from cost_models.workload import Training
from planner.clocks import check_clocks, weighs_joules_of_rented
from planner.errors import BadInput
from planner.limits import LIMITS, per_step, power_limits, step_ceilings
from planner.objectives import minimised
from planner.options import Options
from topologies.cluster import Cluster
from topologies.mixed import MixedCluster
from topologies.units import quantity_text

PINS = ("tp", "cp", "ep", "zero", "recompute")
"""What can be pinned in every stage alike."""

QUANTITIES = ("time", "money", "energy")
"""What is minimised or limited on mixed clusters."""

LEAST_IDLE = 1e-3
"""Of what a host's devices add under load, what it draws idle at least where joules count: these are searched in ticks
of what hosts draw idle, of which there are none where that is nothing."""


@dataclass(frozen=True)
class Asked:
    """What is minimised, what a step may take at most, and dollars a second of a host by part, where all have prices.

    Rent is paid for whole hosts that are in use, and these draw ``idle_w`` at the meter, by part, whatever they do.
    Steps wait until their mean watts are within ``power``.
    """

    minimised: Literal["time", "money", "energy"] = "time"
    usd_per_s: tuple[float, ...] | None = None
    most_s: float = math.inf
    most_usd: float = math.inf
    most_j: float = math.inf
    idle_w: tuple[float, ...] | None = None
    power: PowerLimits = field(default_factory=PowerLimits)

    @property
    def weighs_rent(self) -> bool:
        """Whether it matters what the hosts in use cost."""
        return self.minimised == "money" or self.most_usd < math.inf

    @property
    def weighs_energy(self) -> bool:
        """Whether it matters what stages and the hosts in use spend together."""
        return self.minimised == "energy" or self.most_j < math.inf

    @property
    def waits(self) -> bool:
        """Whether steps may have to wait for their watts."""
        return bool(self.power.given)

    @property
    def waits_inside(self) -> bool:
        """Whether they may have to for those of a device, a host or a rack."""
        return any(level != "site" for level in self.power.given)

    @property
    def weighs_joules(self) -> bool:
        """Whether it matters what stages spend."""
        return self.weighs_energy or self.waits

    @property
    def weighs_hosts(self) -> bool:
        """Whether it matters which hosts are in use."""
        return self.weighs_rent or self.weighs_energy or self.power.site_w is not None

    def usd(self, hosts: tuple[int, ...], step_s: float) -> float | None:
        """Dollars of a step on so many hosts of every part; ``None`` without prices."""
        if self.usd_per_s is None:
            return None
        return math.fsum(rate * count for rate, count in zip(self.usd_per_s, hosts, strict=True)) * step_s

    @property
    def limits(self) -> dict[str, float]:
        """What a step may take at most, by the name of the limit; infinite where there is none."""
        return {"step-time": self.most_s, "step-money": self.most_usd, "step-energy": self.most_j}

    def above(self, step_s: float, usd: float | None, joules: float) -> Iterator[str]:
        """The limits that a step of so many seconds, dollars and joules is above, in words."""
        for (name, most), value in zip(self.limits.items(), (step_s, usd or 0.0, joules), strict=True):
            if value > most * (1 + 1e-9):
                yield f"{name} is {value:.6g} {LIMITS[name].unit}, above the limit of {most:.6g} {LIMITS[name].unit}"

    def described(self, parts: tuple[Cluster, ...]) -> dict[str, Any]:
        """What of it restricts plans or weighs them, for the proof; nothing where only time is asked for."""
        said: dict[str, Any] = {}
        if self.weighs_rent and self.usd_per_s is not None:
            named = zip(parts, self.usd_per_s, strict=True)
            said["hosts_in_use"] = {part.name: f"0 to {part.hosts}" for part in parts}
            said["usd_per_host_hour"] = {part.name: 3600 * rate for part, rate in named}
        if (self.weighs_energy or self.power.site_w is not None) and self.idle_w is not None:
            said["hosts_in_use"] = {part.name: f"0 to {part.hosts}" for part in parts}
            said["idle_w_per_host"] = {part.name: w for part, w in zip(parts, self.idle_w, strict=True)}
        said |= {name: most for name, most in self.limits.items() if most < math.inf}
        if self.waits:
            said["watts"] = "limits are met by waiting; a part's stages stand on its hosts, the largest first"
        return said | {f"{level}-power": watts for level, watts in self.power.given.items()}


def asked_of(cluster: MixedCluster, workload: Training, options: Options) -> Asked:
    """What the options ask of plans on a mixed cluster.

    Raises ``BadInput`` for money where a part has no price, for energy where hosts of one draw next to nothing idle,
    for limits on training without tokens, and for limits on watts that every part is above when idle, or on racks of
    which a part does not say what stands in one.
    """
    if without := [name for name in options.limits if LIMITS[name].of_training and options.tokens is None]:
        raise BadInput(f"limit {without[0]} is on training N tokens, and none are given; add --tokens, such as 15T")
    most = step_ceilings(per_step(options, workload))
    each = [hosts_usd_per_s(1, part) for part in cluster.parts]
    rates = None if None in each else tuple(map(float, each))
    ceilings = (most.get(name, math.inf) for name in QUANTITIES)
    least = next((name for name in QUANTITIES if name == minimised(options.objective)), "time")
    idle = tuple(idle_host_w(part) for part in cluster.parts)
    asked = Asked(least, rates, *ceilings, idle, power_limits(options))
    if asked.weighs_rent:
        _check_prices(cluster, each)
    _check_power(cluster, asked.power)
    if asked.weighs_energy:
        _check_idle(cluster, asked.idle_w)
    return asked


def _check_prices(cluster: MixedCluster, each: list[float | None]) -> None:
    """Raises ``BadInput`` for a part whose hosts have no price above 0."""
    for part, rate in zip(cluster.parts, each, strict=True):
        if not rate:
            raise BadInput(
                f"money on a mixed cluster is rent, and part {part.name!r} has no price above 0; list a cluster file "
                "with price_usd_per_device_hour as that part: of machines of one's own, what an hour of one takes in "
                "power and upkeep"
            )


def _check_power(cluster: MixedCluster, power: PowerLimits) -> None:
    """Raises ``BadInput`` for limits that no part can keep, and for racks of unknown hosts."""
    for level, watts in power.given.items():
        idle = {part.name: idle_w(level, part) for part in cluster.parts}
        if watts <= min(idle.values()):
            what = {"device": "a device", "host": "a host"}.get(level, "one host")
            drawn = ", ".join(f"{quantity_text(w, 'W', 4)} on {name!r}" for name, w in idle.items())
            raise BadInput(
                f"the limits cannot hold: limit {level}-power is {quantity_text(watts, 'W', 4)}, but {what} draws "
                f"{drawn} idling; raise it above the least of these"
            )
    unknown = [part.name for part in cluster.parts if part.hosts_per_rack is None]
    if power.rack_w is not None and unknown:
        raise BadInput(
            f"the limits cannot hold: limit rack-power needs the hosts of a rack, and part {unknown[0]!r} does not "
            "say; set hosts_per_rack in a cluster file, or limit host-power"
        )


def _check_idle(cluster: MixedCluster, idle_w: tuple[float, ...]) -> None:
    """Raises ``BadInput`` for a part whose hosts draw next to nothing idle."""
    for part, watts in zip(cluster.parts, idle_w, strict=True):
        busy_w = busy_host_w(part)
        if watts <= 0 or watts < LEAST_IDLE * busy_w:
            raise BadInput(
                f"energy on a mixed cluster is weighed by what idle hosts draw, and one of part {part.name!r} draws "
                f"{watts:.3g} W, below {LEAST_IDLE:.1%} of the {busy_w:.4g} W that its devices add under load; give "
                "its accelerator an idle_power or its host a power as they are measured, or plan the parts alone"
            )


def check_asked(options: Options, start: object = None, jobs: int | str = 1) -> None:
    """Raises ``BadInput`` for what is not searched on mixed clusters."""
    given = {
        **{f"limit {name}": True for name in options.limits if LIMITS[name].quantity not in (*QUANTITIES, *LEVELS)},
        "calibration": options.calibration is not None, f"solver={options.solver}": options.solver != "default",
        "start": start is not None, f"workers={options.workers}": options.workers > 1, f"jobs={jobs}": str(jobs) != "1",
    }  # fmt: skip
    if unknown := [name for name, said in given.items() if said]:
        raise BadInput(f"{', '.join(unknown)}: not for mixed clusters; leave it out, or plan the parts alone")
    check_clocks(options, weighs=weighs_joules_of_rented(options))

    wrong = [name for name in options.objective.split(",") if minimised(name) not in QUANTITIES]
    if wrong:
        searched = ", ".join(QUANTITIES)
        raise BadInput(
            f"objective {wrong[0]} is not searched on mixed clusters, {searched} are; plan the parts alone for it"
        )
    if wrong := [name for name in options.pins if name not in PINS]:
        raise BadInput(
            f"{wrong[0]}={options.pins[wrong[0]]} cannot be pinned on a mixed cluster, whose stages differ in it; "
            f"pins that hold in every stage are {', '.join(PINS)}"
        )
