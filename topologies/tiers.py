"""Memory beyond the devices' own: a host's DRAM and drives, CXL modules, memory that computes, pools that hosts share.

    dram      memory_capacity, memory_bandwidth and device_link of the host
    nvme      nvme_capacity, nvme_bandwidth (reads) and nvme_write_bandwidth of the host
    others    by the catalogue's name, ``cxl-expander:4`` being four units on every host, ``cxl-pool:2`` two pools

A host has ``dram`` and ``nvme`` where its file gives these figures. What devices read and write passes their link and
the PCIe port that they share (:mod:`topologies.inside`), then the tier's own port, then what hosts of one pool share.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from topologies import catalogue
from topologies.catalogue import Host, MemoryTier
from topologies.errors import BadInput
from topologies.inside import device_rates
from topologies.records import Figure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from topologies.cluster import Cluster

MOST_UNITS = 4096
OWN = ("dram", "nvme")
DRIVE = "nvme-pcie5"
"""The catalogue's drive, as which a host's own are taken where its file says nothing of them."""
DMA_LATENCY_S = 10e-6
"""To set up one copy between a device and its host, measured between 5 and 16 us."""
BITS = 8


@dataclass(frozen=True, slots=True)
class Tier:
    """One tier of a cluster: of every host by itself (``pools`` 0), or of ``pools`` pools that share the hosts evenly.

    ``capacity_bytes`` is of one host or one pool. ``read_bytes_per_s`` and ``write_bytes_per_s`` are of a host's
    port, each where the other rests; ``pool_bytes_per_s`` of one pool, reads and writes together.
    ``update_bytes_per_s`` is how fast a processor beside the memory of one host goes through it, and
    ``attend_bytes_per_s`` how fast it goes through keys and values; 0 where there is none. ``device_bytes_per_s`` is of
    a device's own link; ``shared_bytes_per_s`` what each of the first 1, 2, ... of a host together get through their
    ports, empty where no port carries less than their links. The least of these and the tier's own rates holds.
    ``joules_per_byte`` is of what the memory reads or writes, ``link_joules_per_byte`` of what crosses a device's link;
    0 where no figure is known.
    """

    name: str
    kind: str
    capacity_bytes: float
    device_bytes_per_s: float
    read_bytes_per_s: float
    write_bytes_per_s: float
    latency_s: float
    update_bytes_per_s: float = 0.0
    pool_bytes_per_s: float = math.inf
    pools: int = 0
    joules_per_byte: float = 0.0
    usd_per_hour: float = 0.0
    attend_bytes_per_s: float = 0.0
    shared_bytes_per_s: tuple[float, ...] = ()
    link_joules_per_byte: float = 0.0

    def scaled(self, factor: float) -> Tier:
        """The tier with every rate ``factor`` times higher and its latency as much lower."""
        rates = ("device_bytes_per_s", "read_bytes_per_s", "write_bytes_per_s", "update_bytes_per_s",
                 "attend_bytes_per_s", "pool_bytes_per_s")  # fmt: skip
        changed = {name: getattr(self, name) * factor for name in rates}
        shared = tuple(rate * factor for rate in self.shared_bytes_per_s)
        return dataclasses.replace(self, **changed, shared_bytes_per_s=shared, latency_s=self.latency_s / factor)

    def of_a_device(self, devices: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bytes a second of each of the first so many devices of a host, all at work at the same time."""
        import numpy as np

        if not self.shared_bytes_per_s:
            return np.full(devices.shape, self.device_bytes_per_s)
        each = np.array(self.shared_bytes_per_s)
        return each[np.clip(devices.astype(np.int64), 1, len(each)) - 1]


def own_tiers(host: Host) -> tuple[Tier, ...]:
    """The tiers that a host's own figures describe: ``dram``, ``nvme``, or none.

    Its drives spend on a byte what the catalogue's do.
    """
    if host.figures.device_link is None:
        return ()
    return tuple(tier for tier in (_dram(host), _drives(host)) if tier is not None)


def _dram(host: Host) -> Tier | None:
    figures = host.figures
    if figures.memory_bandwidth is None:
        return None
    rate = figures.memory_bandwidth.value
    return Tier(
        "dram",
        "dram",
        capacity_bytes=figures.memory_capacity.value,
        read_bytes_per_s=rate,
        write_bytes_per_s=rate,
        latency_s=DMA_LATENCY_S,
        update_bytes_per_s=rate,
        joules_per_byte=_joules_per_byte(figures.memory_energy),
        **_way(host),
    )


def _drives(host: Host) -> Tier | None:
    figures = host.figures
    if figures.nvme_capacity is None or figures.nvme_bandwidth is None:
        return None
    read = figures.nvme_bandwidth
    return Tier(
        "nvme",
        "nvme",
        capacity_bytes=figures.nvme_capacity.value,
        read_bytes_per_s=read.value,
        write_bytes_per_s=(figures.nvme_write_bandwidth or read).value,
        latency_s=5 * DMA_LATENCY_S,
        joules_per_byte=_joules_per_byte(catalogue.load("tiers", DRIVE).figures.energy),
        **_way(host),
    )


def _way(host: Host) -> dict[str, Any]:
    """What a device's way to any memory of its host gives a tier. The host has the link's figure."""
    return {
        "device_bytes_per_s": host.figures.device_link.value,
        "shared_bytes_per_s": device_rates(host),
        "link_joules_per_byte": _joules_per_byte(host.figures.device_link_energy),
    }


def tier_of(part: MemoryTier, units: int, host: Host) -> Tier:
    """``units`` modules of ``part`` on every host, or so many pools. Raises ``BadInput`` without the host's link."""
    it = part.figures
    if host.figures.device_link is None:
        raise BadInput(
            f"memory tier {part.name!r} needs device_link of host {host.name!r}: how fast a device reaches memory "
            f"outside itself; give it in the host's figures, for example '55 GB/s' on PCIe 5 x16"
        )
    pooled = it.pool_bandwidth is not None
    each = 1 if pooled else units
    write = it.bandwidth if it.write_bandwidth is None else it.write_bandwidth
    return Tier(
        name=part.name,
        kind=part.kind,
        capacity_bytes=it.capacity.value * each,
        read_bytes_per_s=it.bandwidth.value * each,
        write_bytes_per_s=write.value * each,
        latency_s=DMA_LATENCY_S + it.latency.value,
        update_bytes_per_s=0.0 if it.update_bandwidth is None else it.update_bandwidth.value * each,
        pool_bytes_per_s=it.pool_bandwidth.value if pooled else math.inf,
        pools=units if pooled else 0,
        joules_per_byte=_joules_per_byte(it.energy),
        usd_per_hour=0.0 if it.price is None else it.price.value * units,
        attend_bytes_per_s=0.0 if it.attention_bandwidth is None else it.attention_bandwidth.value * each,
        **_way(host),
    )


def _joules_per_byte(energy: Figure[Any] | None) -> float:
    return 0.0 if energy is None else energy.value * BITS


def read_tiers(words: tuple[str, ...], present: tuple[Tier, ...], host: Host) -> tuple[Tier, ...]:
    """The tiers that ``words`` name: those present, or units of the catalogue's added to every host.

    Raises ``UnknownName`` for a name that is neither, ``BadInput`` for a count that is none or a name given twice.
    """
    found: dict[str, Tier] = {}
    for word in words:
        name, colon, count = word.partition(":")
        if name in found:
            once = "give it once" if name in OWN else f"give it once, with a count: {name[:80]}:2"
            raise BadInput(f"memory tier {name[:80]!r} is given twice; {once}")
        found[name] = _tier(name, _units(name, count) if colon else None, present, host)
    return tuple(found.values())


def _tier(name: str, units: int | None, present: tuple[Tier, ...], host: Host) -> Tier:
    mine = {tier.name: tier for tier in present}
    if name in mine and units is None:
        return mine[name]
    if name in OWN:
        what = f"{name}:{units} gives a count of what is" if name in mine else f"{name!r} is not among"
        raise BadInput(f"{what} the memory of host {host.name!r} itself; it has: {', '.join(mine) or 'none described'}")
    if name not in catalogue.names("tiers"):
        raise catalogue.unknown("memory tier", name, sorted({*mine, *OWN, *catalogue.names("tiers")}))
    return tier_of(catalogue.load("tiers", name), units or 1, host)


def _units(name: str, count: str) -> int:
    if not (count.isascii() and count.isdigit() and 1 <= int(count[:9]) <= MOST_UNITS):
        raise BadInput(f"{name[:80]}:COUNT is a number of units from 1 to {MOST_UNITS}; got {count[:80]!r}")
    return int(count)


def with_tiers(cluster: Cluster, words: tuple[str, ...]) -> Cluster:
    """The cluster with the memory tiers that ``words`` name, and no others; ``("all",)`` keeps every one it has."""
    if words == ("all",):
        if not cluster.present_tiers:
            raise BadInput(
                f"tiers=all, but no memory tier is known of {cluster.name!r}: its host gives no device_link; name one "
                f"of the catalogue: {', '.join(catalogue.names('tiers'))}, with that figure in the host's file"
            )
        return dataclasses.replace(cluster, tiers=cluster.present_tiers)
    return dataclasses.replace(cluster, tiers=read_tiers(words, cluster.present_tiers, cluster.host))
