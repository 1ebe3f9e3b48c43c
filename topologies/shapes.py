"""Builders of network levels: scale-up domains and what joins them, as a cluster file describes it.

    package      the devices of one package, where a partition mode makes several (:mod:`topologies.partitions`)
    scale-up     fanout = min(scale_up_devices, devices in all)      bandwidth = the accelerator's
    torus        one level an axis                                   bandwidth = both ways round, 2 b
    scale-out    fanout = whole scale-up domains                      only when there is more than one
                 bandwidth = nics * min(NIC, port) / devices of a host / oversubscription

Between hosts a fat-tree's switches, or one of these over ``d`` devices that send ``n`` bytes a second each:

    dragonfly    group     n min(1, (a - 1) / 2 p)          ``a`` routers a group, ``p`` ports for hosts on each,
                 global    min(n, a h g / 2 d)              ``h`` global links of ``g`` on each router
    optical      pod       n                                circuits are set up for the job between pods:
                 circuits  min(n, c g / d)                  ``c`` of ``g`` leave each pod

The fabric's latency is that of the farthest hosts. Below a leaf, a pod or a dragonfly's group a way passes two switches
less for each level that it does not reach, ``l - 2 s`` and so on inwards, and one at the least, where the fabric says
what a switch takes.

The halves of a dragonfly are what is left where the traffic of a group meets one other group alone, as in a ring of
groups, and goes by way of a third. A pod's circuits go to the pods that it talks to, so that all of them are in use.

Source: Kim, Dally, Scott and Abts, "Technology-driven, highly-scalable dragonfly topology", ISCA 2008, section 4
(uniform traffic and Valiant routing); Jouppi et al., "TPU v4", ISCA 2023, arXiv:2304.01433, section 2 (circuits).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

from pydantic import Field

from topologies.catalogue import Accelerator, Fabric, Host, Torus
from topologies.cluster import Level
from topologies.errors import BadInput
from topologies.partitions import package_level
from topologies.records import Record
from topologies.units import BytesPerSecond

MOST_DEVICES = 2**21
Count = Annotated[int, Field(strict=True, ge=1, le=MOST_DEVICES)]
Ratio = Annotated[float, Field(ge=1, allow_inf_nan=False)]


class Switches(Record):
    """A level of equal switches, or rails of them: ``hosts`` below one, and what these send over what it sends up."""

    name: str
    hosts: Count
    oversubscription: Ratio = 1.0


class Dragonfly(Record):
    """Groups of routers, all of a group joined to each other, and every group to every other.

    ``ports_per_router`` is for hosts' NICs, ``global_links`` those of a router that leave its group;
    ``link_bandwidth`` of each, one direction, is the fabric's port unless it is given.
    """

    routers_per_group: Count
    ports_per_router: Count
    global_links: Count
    link_bandwidth: BytesPerSecond | None = None


class Optical(Record):
    """Circuit switches between pods of ``hosts``: ``circuits`` of ``bandwidth``, one direction, leave each pod."""

    hosts: Count
    circuits: Count
    bandwidth: BytesPerSecond | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Outside:
    """What a cluster file says of the network between hosts: one of these, or nothing."""

    switches: tuple[Switches, ...] = ()
    dragonfly: Dragonfly | None = None
    optical: Optical | None = None

    def levels(
        self, levels: tuple[Level, ...], inside: int, host: Host, fabric: Fabric, origin: str
    ) -> tuple[Level, ...]:
        """The levels with those between hosts in place of the one that joins all domains.

        Raises ``BadInput`` for two descriptions of one network, and for one that the hosts do not fill evenly.
        """
        given = [name for name in ("switches", "dragonfly", "optical") if getattr(self, name)]
        if len(given) > 1:
            raise BadInput(f"{origin}: {' and '.join(given)} describe one network twice; leave one out")
        if len(levels) <= inside or not given:
            return levels
        inner, outer = levels[:inside], levels[inside]
        build = {"switches": _switched, "dragonfly": _dragonfly, "optical": _optical}[given[0]]
        return (*inner, *build(outer, getattr(self, given[0]), host, fabric, origin))


def nic_share_bytes_per_s(host: Host, fabric: Fabric) -> float:
    """Bytes a second that one device of ``host`` sends into ``fabric`` when all do, oversubscription aside.

    nics * min(NIC, port) / devices
    """
    slower = min(host.figures.nic_bandwidth.value, fabric.figures.port_bandwidth.value)
    return host.nics * slower / host.devices


def regular_levels(accelerator: Accelerator, host: Host, fabric: Fabric, hosts: int) -> tuple[Level, ...]:
    """Scale-up, and scale-out over whole domains; hosts beyond the last whole domain stay idle."""
    domains = hosts * host.devices // host.scale_up_devices
    inside = _domain(accelerator, host, hosts * host.devices)
    return inside if domains < 2 else (*inside, _scale_out(host, fabric, domains))


def _domain(accelerator: Accelerator, host: Host, devices: int) -> tuple[Level, ...]:
    """The levels of a scale-up domain, or of what there is of one. Raises ``BadInput`` for a part of a torus."""
    if host.torus is not None:
        return _torus(host.torus, accelerator, host, devices)
    parts = accelerator.partitions
    scale_up = Level(
        name="scale-up",
        fanout=min(host.scale_up_devices, devices) // parts,
        bandwidth_bytes_per_s=accelerator.figures.scale_up_bandwidth.value,
        latency_s=host.figures.scale_up_latency.value,
        link=host.scale_up_link,
    )
    return (scale_up,) if parts == 1 else (package_level(accelerator), scale_up)


def _torus(torus: Torus, accelerator: Accelerator, host: Host, devices: int) -> tuple[Level, ...]:
    """One level an axis; a closed one sends both ways round, an open one has an end that only hears from one side."""
    if devices < math.prod(torus.axes):
        text = " x ".join(map(str, torus.axes))
        raise BadInput(
            f"a torus of {text} = {math.prod(torus.axes)} devices is not filled by {devices}; give it "
            f"{math.prod(torus.axes) // host.devices} hosts of {host.devices}, or a smaller one"
        )
    _check_rows(torus, host)
    link = _given(torus.link_bandwidth, "link_bandwidth", "the torus",
                  accelerator.figures.scale_up_bandwidth.value / (2 * len(torus.axes)))  # fmt: skip
    return tuple(
        Level(
            name=f"torus {axis}",
            fanout=size,
            bandwidth_bytes_per_s=2 * link,
            latency_s=host.figures.scale_up_latency.value,
            link=host.scale_up_link,
            ring=True,
        )
        for axis, size in zip("xyzuvw", torus.axes, strict=False)
    )


def _check_rows(torus: Torus, host: Host) -> None:
    """Raises ``BadInput`` where hosts are not whole rows of the torus, or whole parts of a row."""
    held = 1
    for size in torus.axes:
        members, rest = divmod(host.devices, held)
        if rest == 0 and members <= size and size % members == 0:
            return
        if rest or members % size:
            break
        held *= size
    text = " x ".join(map(str, torus.axes))
    raise BadInput(
        f"hosts of {host.devices} devices do not fill whole rows of a torus of {text}, or whole parts of a row; "
        "put an axis first that a host's devices divide, or that divides them"
    )


def _scale_out(host: Host, fabric: Fabric, domains: int) -> Level:
    if host.nics == 0:
        raise BadInput(f"host {host.name!r} has nics = 0, so {domains} scale-up domains cannot be joined; give it NICs")
    return Level(
        name="scale-out",
        fanout=domains,
        bandwidth_bytes_per_s=nic_share_bytes_per_s(host, fabric) / fabric.oversubscription,
        latency_s=fabric.figures.latency.value,
        link=fabric.name,
    )


def _switched(
    outer: Level, switches: tuple[Switches, ...], host: Host, fabric: Fabric, origin: str
) -> tuple[Level, ...]:
    """The hosts' switches, inside out; above each the bandwidth is what it sends up.

    Raises ``BadInput`` for switches that do not hold whole domains, whole inner switches, or do not divide the hosts.
    """
    found: list[Level] = []
    below, bandwidth = 1, outer.bandwidth_bytes_per_s
    for each in switches:
        domains = _whole_domains(each.hosts, f"a switch {each.name!r}", below, outer, host, origin)
        if below < domains < outer.fanout:
            name, fanout = each.name, domains // below
            found.append(dataclasses.replace(outer, name=name, fanout=fanout, bandwidth_bytes_per_s=bandwidth))
            below = domains
        bandwidth /= each.oversubscription if domains < outer.fanout else 1.0
    outermost = dataclasses.replace(outer, fanout=outer.fanout // below, bandwidth_bytes_per_s=bandwidth)
    return _nearer(fabric, (*found, outermost))


def _nearer(fabric: Fabric, levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """The levels with two switches less on the way for each level inwards, where the fabric says what one takes."""
    figure = fabric.figures.switch_latency
    if figure is None:
        return levels
    least = min(figure.value, levels[-1].latency_s)
    shorter = (2 * figure.value * (len(levels) - 1 - k) for k in range(len(levels)))
    return tuple(
        dataclasses.replace(level, latency_s=max(level.latency_s - saved, least))
        for level, saved in zip(levels, shorter, strict=True)
    )


def _whole_domains(hosts: int, what: str, below: int, outer: Level, host: Host, origin: str) -> int:
    """Scale-up domains of a group of hosts. Raises ``BadInput`` where they or the groups are not whole."""
    domains, rest = divmod(hosts * host.devices, host.scale_up_devices)
    if rest or domains % below or outer.fanout % max(domains, 1):
        raise BadInput(
            f"{origin}: {what} of {hosts} hosts divides neither {outer.fanout} scale-up "
            f"domains nor groups of {below} evenly; give whole ones, from the inside out, or leave the level out"
        )
    return domains


def _dragonfly(outer: Level, it: Dragonfly, host: Host, fabric: Fabric, origin: str) -> tuple[Level, ...]:
    """Groups and what joins them. Raises ``BadInput`` for more groups than global links reach."""
    hosts, rest = divmod(it.routers_per_group * it.ports_per_router, host.nics)
    if rest or not hosts:
        raise BadInput(
            f"{origin}: a group of {it.routers_per_group} routers x {it.ports_per_router} ports does not hold whole "
            f"hosts of {host.nics} NICs; make the product a multiple of them"
        )
    domains = _whole_domains(hosts, "a dragonfly group", 1, outer, host, origin)
    groups, links = outer.fanout // domains, it.routers_per_group * it.global_links
    if groups - 1 > links:
        raise BadInput(
            f"{origin}: {groups} groups need {groups - 1} global links each to reach every other, but "
            f"{it.routers_per_group} routers x {it.global_links} = {links}; give more, or larger groups"
        )
    share, port = outer.bandwidth_bytes_per_s, fabric.figures.port_bandwidth.value
    link = _given(it.link_bandwidth, "link_bandwidth", f"{origin}: the dragonfly", port)
    local = min(1.0, (it.routers_per_group - 1) / (2 * it.ports_per_router)) if it.routers_per_group > 1 else 1.0
    between = min(share, links * link / (2 * hosts * host.devices))
    both = _two_levels(outer, ("group", domains, share * local), ("global", groups, min(share * local, between)))
    return _nearer(fabric, both)


def _optical(outer: Level, it: Optical, host: Host, fabric: Fabric, origin: str) -> tuple[Level, ...]:
    """Pods and the circuits between them."""
    domains = _whole_domains(it.hosts, "a pod", 1, outer, host, origin)
    pods, share = outer.fanout // domains, outer.bandwidth_bytes_per_s
    if pods - 1 > it.circuits:
        raise BadInput(f"{origin}: {it.circuits} circuits of a pod do not reach {pods - 1} others; give it more")
    link = _given(it.bandwidth, "bandwidth", f"{origin}: optical", fabric.figures.port_bandwidth.value)
    between = min(share, it.circuits * link / (it.hosts * host.devices))
    return _two_levels(outer, ("pod", domains, share), ("circuits", pods, between))


def _given(bytes_per_s: float | None, field: str, what: str, usual: float) -> float:
    """What a file gives of a link, or the usual. Raises ``BadInput`` for a link that carries nothing."""
    if bytes_per_s is not None and bytes_per_s <= 0:
        raise BadInput(
            f"{what}: {field} is above 0 B/s; got {bytes_per_s:g}: give what one link sends one way, or leave it out "
            "for the usual one"
        )
    return usual if bytes_per_s is None else bytes_per_s


def _two_levels(outer: Level, *each: tuple[str, int, float]) -> tuple[Level, ...]:
    """Levels of that name, fanout and bandwidth; one that joins nothing is left out."""
    found = [
        dataclasses.replace(outer, name=name, fanout=fanout, bandwidth_bytes_per_s=bytes_per_s, several_switches=True)
        for name, fanout, bytes_per_s in each
        if fanout > 1
    ]
    return tuple(found)
