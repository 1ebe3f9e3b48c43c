"""How many hosts a site of so many watts runs, at what a host can draw: every device at its limit, fans and ports.

    host, peak     devices x board limit + the host's own + ports x a port's         (no PUE: what its rack must carry)
    site           hosts <= P / (PUE x host)             whole scale-up domains
    rack           hosts <= rack's limit / host          whole domains, or whole parts of one where a rack says so

The host's own watts are with its fans in air and without them on cold plates (:attr:`Cluster.host_power_w`): PUE holds
no fan of a host, so that each is counted once.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from topologies.cluster import Cluster
from topologies.resized import resized

ROUNDING = 1 + 1e-12
"""So that a limit of exactly so many hosts' watts is not one short."""


@dataclass(frozen=True, slots=True)
class Sized:
    """What fits a site: hosts and racks, and watts at their peak. ``hosts`` is 0 where not one domain fits."""

    hosts: int
    hosts_per_rack: int
    host_peak_w: float
    site_peak_w: float

    @property
    def racks(self) -> int:
        """Racks that the hosts stand in."""
        return -(-self.hosts // self.hosts_per_rack) if self.hosts else 0

    @property
    def rack_peak_w(self) -> float:
        """Watts of a full rack."""
        return self.hosts_per_rack * self.host_peak_w


def host_peak_w(cluster: Cluster) -> float:
    """Most watts of a host and of the network ports it hangs on."""
    devices_w = cluster.devices_per_host * cluster.accelerator.figures.board_power.value
    return devices_w + cluster.host_power_w + cluster.host.nics * cluster.fabric.figures.power_per_port.value


def domain_hosts(cluster: Cluster) -> int:
    """Hosts of one scale-up domain, which is not divided between sites or left with parts missing."""
    return max(1, cluster.host.scale_up_devices // cluster.devices_per_host)


def most_hosts_per_rack(cluster: Cluster) -> int:
    """Hosts that a rack of the facility carries, at most as many as the cluster puts there; 0 where none fits.

    Whole domains, unless the cluster itself spreads one over several racks. Where neither says anything, one domain.
    """
    limit, stated, domain = cluster.facility.figures.rack_power, cluster.hosts_per_rack, domain_hosts(cluster)
    carried = math.inf if limit is None else math.floor(limit.value / host_peak_w(cluster) * ROUNDING)
    together = domain if stated is None or stated >= domain else 1
    most = min(carried, math.inf if stated is None else stated)
    return domain if math.isinf(most) else int(most) // together * together


def sized(cluster: Cluster, power_w: float, each_w: float | None = None) -> Sized:
    """Whole domains of the cluster's hosts that ``power_w`` at the site's meter runs, ``each_w`` at its meter a host.

    Without ``each_w``, what each draws at most.
    """
    peak, pue = host_peak_w(cluster), cluster.facility.figures.pue.value
    per_rack, domain = most_hosts_per_rack(cluster), domain_hosts(cluster)
    fit = math.floor(power_w / (pue * peak if each_w is None else each_w) * ROUNDING) // domain * domain
    return Sized(fit if per_rack else 0, max(1, per_rack), peak, pue * peak * (fit if per_rack else 0))


def at_site(cluster: Cluster, hosts: int) -> Cluster:
    """The cluster with that many hosts, named by them."""
    return dataclasses.replace(resized(cluster, hosts), name=f"{hosts} x {cluster.host.name}, {cluster.facility.name}")
