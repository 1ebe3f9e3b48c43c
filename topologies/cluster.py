"""A cluster: which devices there are, what joins them level by level, and what they draw and cost.

Levels run from the inside out. The first ``domain_levels`` make the scale-up domain (devices that load and store
to each other): one, or the partitions of a package and the packages, or the axes of a torus. The levels after them
are groups of domains joined by the fabric. A cluster is regular: every group of a level looks like every other, so
a million devices cost no more to describe than eight.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from topologies.catalogue import Accelerator, Fabric, Facility, Fleet, Host, Part, Store
from topologies.host_shape import HostShape
from topologies.tiers import Tier

if TYPE_CHECKING:
    import networkx
    import numpy as np
    from numpy.typing import NDArray

    from topologies.irregular import Irregular

Number = TypeVar("Number")
PEAK_FALLBACK = {"fp8": "bf16", "fp4": "fp8", "bf16": "fp16", "tf32": "fp32", "fp16": "fp32"}


@dataclass(frozen=True, slots=True)
class Level:
    """One network level: groups of ``fanout`` members of the level below, one direction, per device."""

    name: str
    fanout: int
    bandwidth_bytes_per_s: float
    latency_s: float
    link: str
    ring: bool = False
    """An axis of a torus: members form a closed ring, and the bandwidth is that of both ways round together."""
    several_switches: bool = False
    """Groups are no one switch's: a dragonfly's hold many, an optical pod is joined by what no file tells."""

    def described(self) -> dict[str, str | float]:
        """Its fields, without those that say nothing."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not False}


@dataclass(frozen=True)
class Cluster:
    """``hosts`` equal hosts on one fabric in one facility."""

    name: str
    accelerator: Accelerator
    host: Host
    fabric: Fabric
    facility: Facility
    hosts: int
    levels: tuple[Level, ...]
    price_usd_per_device_hour: float | None = None
    present_tiers: tuple[Tier, ...] = ()
    """Memory beyond the devices' own."""
    tiers: tuple[Tier, ...] = ()
    """That of it, or added to it, which a plan may use (:func:`topologies.tiers.with_tiers`)."""
    rate_scale: float = 1.0
    """Every rate times this and every latency over it: a twin that is uniformly faster (see :meth:`scaled`)."""
    fleet: Fleet | None = None
    """Machines that fail as these do; ``None`` for the usual ones of :mod:`topologies.ready`."""
    store: Store | None = None
    """Where checkpoints are written; ``None`` for the usual place."""
    irregular: Irregular | None = None
    """What differs among the hosts; everything else then describes a cluster that is better everywhere."""
    hosts_per_rack: int | None = None
    """Hosts that share one rack's power; ``None`` where nothing says."""
    calibration: str = ""
    """The text of a file of constants measured on these machines (:mod:`cost_models.measured`); empty for none."""
    hosts_per_leaf: int | None = None
    """Hosts below one leaf switch, likewise."""
    hosts_per_feed: int | None = None
    """Hosts on one power feed, likewise."""
    racks_per_row: int | None = None
    """Racks that stand in a row, likewise."""

    def __hash__(self) -> int:
        """By what tells most clusters apart: parts hold tables, which have no hash."""
        return hash((self.name, self.hosts, self.levels))

    @property
    def devices_per_host(self) -> int:
        """Devices under one operating system, so ranks in one torchrun."""
        return self.host.devices

    @property
    def domain_levels(self) -> int:
        """Levels that make the scale-up domain."""
        axes = self.host.torus.axes if self.host.torus else ()
        return max(len(axes), 1 + (self.accelerator.partitions > 1))

    @property
    def domain_devices(self) -> int:
        """Devices of a scale-up domain."""
        return math.prod(level.fanout for level in self.levels[: self.domain_levels])

    @property
    def ports(self) -> int:
        """Network ports of a host; none where all devices are in one scale-up domain."""
        return self.host.nics if len(self.levels) > self.domain_levels else 0

    @cached_property
    def host_shape(self) -> HostShape:
        """Where a host ends among the levels."""
        return HostShape.of(self.host.devices, self.group_capacity, self.domain_levels)

    def packages(self, devices: Number) -> Number:
        """Packages that so many devices in use come to, parts of one counted as such."""
        return devices / self.accelerator.partitions

    @property
    def devices(self) -> int:
        """Devices in all that work."""
        return self.hosts * self.host.devices if self.irregular is None else sum(self.irregular.devices)

    @property
    def host_power_w(self) -> float:
        """What a host draws beside its devices: in air with its fans, on cold plates without them."""
        figures = self.host.figures
        saved = figures.liquid_saves if self.facility.cooling == "liquid" else None
        return figures.power.value - (0.0 if saved is None else saved.value)

    def energy_j_per_bit(self, level: int) -> float | None:
        """Joules a bit on the way between two devices of a level; ``None`` where the catalogue has no figure."""
        package = self.accelerator.package
        if level >= self.domain_levels:
            figure = self.fabric.figures.energy
        elif level == 0 and self.accelerator.partitions > 1:
            figure = package.figures.energy if package else None
        else:
            figure = self.host.figures.scale_up_energy
        return None if figure is None else figure.value

    @property
    def memory_bytes(self) -> float:
        """Bytes of device memory that the driver leaves to a process; the capacity where no one measured it."""
        figures = self.accelerator.figures
        usable = figures.memory_usable or figures.memory_capacity
        return usable.value

    @property
    def memory_bandwidth_bytes_per_s(self) -> float:
        """Peak bandwidth of device memory."""
        return self.accelerator.figures.memory_bandwidth.value * self.rate_scale

    def peak_flop_per_s(self, dtype: str) -> float:
        """Dense peak for ``dtype`` (``"fp32"``, ``"bf16"``, ``"fp8"``, ...), or of the next wider type it runs as."""
        figure = getattr(self.accelerator.figures, f"peak_{dtype}", None)
        if figure is None:
            return self.peak_flop_per_s(PEAK_FALLBACK[dtype])
        return figure.value * self.rate_scale

    def supports(self, dtype: str) -> bool:
        """Whether the catalogue has a peak for ``dtype``."""
        return getattr(self.accelerator.figures, f"peak_{dtype}", None) is not None

    @property
    def group_capacity(self) -> tuple[int, ...]:
        """Most members one group may use at each level, innermost first."""
        return tuple(level.fanout for level in self.levels)

    def hosts_used(self, used_per_level: tuple[int, ...]) -> int:
        """Hosts that hold so many members of every level."""
        import numpy as np

        return int(self.host_shape.hosts(np.array(used_per_level)))

    def classes(self) -> NDArray[np.int64]:
        """The class of every usable host: those of one class may be exchanged without any change. One where regular."""
        import numpy as np

        return np.zeros(self.hosts, dtype=np.int64) if self.irregular is None else self.irregular.classes

    @property
    def host_names(self) -> list[str]:
        """How the usable hosts are called, by position; nothing where hosts are alike."""
        it = self.irregular
        return [] if it is None else [it.name(h) for h in range(len(it.numbers))]

    def at_rate(self, rate: float) -> Cluster:
        """The regular cluster whose scale-out level has that part of this one's bandwidth."""
        outer = (
            dataclasses.replace(level, bandwidth_bytes_per_s=level.bandwidth_bytes_per_s * rate)
            for level in self.levels[1:]
        )
        return dataclasses.replace(self, levels=(self.levels[0], *outer), irregular=None)

    def scaled(self, factor: float) -> Cluster:
        """A twin whose every rate is ``factor`` times higher and every latency ``factor`` times lower."""
        levels = tuple(
            dataclasses.replace(
                level,
                bandwidth_bytes_per_s=level.bandwidth_bytes_per_s * factor,
                latency_s=level.latency_s / factor,
            )
            for level in self.levels
        )
        present, tiers = (tuple(tier.scaled(factor) for tier in some) for some in (self.present_tiers, self.tiers))
        return dataclasses.replace(
            self, levels=levels, present_tiers=present, tiers=tiers, rate_scale=self.rate_scale * factor
        )

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change when anything about the cluster does, its memory tiers aside.

        Which tiers a plan may use is part of its question, so they stand in the space that its proof names.
        """
        records = (self.accelerator, self.host, self.fabric, self.facility)
        parts = {
            "records": [part.model_dump(mode="json") for part in records],
            "levels": [level.described() for level in self.levels],
            "numbers": [self.hosts, self.price_usd_per_device_hour, self.rate_scale],
        }
        if self.irregular is not None:
            parts["irregular"] = dataclasses.asdict(self.irregular)
        names = ("hosts_per_rack", "hosts_per_leaf", "hosts_per_feed", "racks_per_row")
        parts |= {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.calibration:
            parts["calibration"] = self.calibration
        parts |= {name: part.model_dump(mode="json") for name, part in self._named().items()}
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _named(self) -> dict[str, Part]:
        """The parts that stand in place of usual ones."""
        given = {"fleet": self.fleet, "store": self.store}
        return {name: part for name, part in given.items() if part is not None}

    def graph(self) -> networkx.Graph:
        """The whole cluster as a graph: one node a device, host and switch; edges carry bandwidth and latency."""
        from topologies.graph import cluster_graph

        return cluster_graph(self)
