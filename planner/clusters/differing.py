"""Hosts of a cluster that have less than the others, kind by kind: as lines of text and for programs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from topologies.cluster import Cluster
from topologies.irregular import Irregular

MOST_NAMES = 4


@dataclass(frozen=True, slots=True)
class Differing:
    """Hosts by number in the whole cluster and by name, and what they have; ``None`` for what is as of the others.

    ``network_share`` is the part of a regular host's bandwidth, ``uplink_share`` what the switch above them leaves
    each; both are ``None`` and ``devices`` 0 of dead hosts, which have no names.
    """

    numbers: tuple[int, ...]
    names: tuple[str, ...]
    devices: int | None = None
    network_share: float | None = None
    uplink_share: float | None = None

    def text(self) -> str:
        """Who they are and what they have, on one line."""
        called = self.names or tuple(f"host {number}" for number in self.numbers)
        more = f" and {len(called) - MOST_NAMES} more" if len(called) > MOST_NAMES else ""
        return f"{', '.join(called[:MOST_NAMES])}{more}: {', '.join(self._told())}"

    def _told(self) -> list[str]:
        if self.devices == 0:
            return ["dead, or without devices"]
        told = [] if self.devices is None else [f"{self.devices} devices"]
        told += [] if self.network_share is None else [f"{self.network_share:.3g} of a regular host's bandwidth"]
        above = f"below a switch whose uplinks leave each {self.uplink_share or 0:.3g} of a regular host's bandwidth"
        return told if self.uplink_share is None else [*told, above]


def differing_hosts(cluster: Cluster) -> list[Differing]:
    """What the cluster's file says is less than regular: hosts by what they have, then switches, then dead hosts."""
    it = cluster.irregular
    if it is None:
        return []
    regular = (cluster.host.devices, 1.0)
    found: dict[tuple[int, float], list[int]] = {}
    for position, kind in enumerate(zip(it.devices, it.nic, strict=True)):
        found.setdefault(kind, []).append(position)
    hosts = [
        _of(it, places, devices=None if kind[0] == regular[0] else kind[0],
            network_share=None if kind[1] == regular[1] else kind[1])
        for kind, places in found.items() if kind != regular
    ]  # fmt: skip
    switches = [_of(it, list(switch.hosts), uplink_share=switch.uplink) for switch in it.switches if switch.uplink < 1]
    return [*hosts, *switches, *([Differing(it.dead, (), devices=0)] if it.dead else [])]


def _of(it: Irregular, places: list[int], **has: Any) -> Differing:
    return Differing(tuple(it.numbers[p] for p in places), tuple(it.name(p) for p in places), **has)


def differing_lines(cluster: Cluster) -> list[str]:
    """One line for each, and one for hosts that stay spare."""
    spare = cluster.irregular.spare_hosts if cluster.irregular else 0
    lines = [f"exception: {each.text()}" for each in differing_hosts(cluster)]
    return lines + ([f"spare: {spare} of {cluster.hosts} hosts, the planner says which"] if spare else [])


def differing_json(cluster: Cluster) -> dict[str, Any]:
    """The same for programs."""
    return {
        "exceptions": [dataclasses.asdict(each) for each in differing_hosts(cluster)],
        "spare_hosts": cluster.irregular.spare_hosts if cluster.irregular else 0,
    }
