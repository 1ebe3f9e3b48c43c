"""Ports and NUMA nodes of a host, from the first file that tells the NUMA node of every device.

Devices and NICs of one port share it. A device whose port no file tells has one of its own, so that nothing is charged
which nobody saw. Of a switch's port 80 % of its line rate are taken, as for the catalogue's hosts.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from topologies.inside import MOST_NUMBER
from topologies.readers.facts import CLOSE
from topologies.readers.seen import Device, HostSeen, Nic

SWITCHED, UNSEEN = "PCIe switch", "not shown"
CARRIED = 0.8
"""Of a port's line rate after encoding: 12.6 of 15.75 GB/s of PCIe 3; 83 and 87 % were measured of PCIe 4 and 5."""


@dataclass(frozen=True, slots=True)
class PortSeen:
    """A PCIe port: numbers of devices and NICs below it, the line rate of a switch's where it is told."""

    numa: int
    devices: tuple[int, ...]
    nics: tuple[int, ...]
    through: str
    line_bytes_per_s: float | None
    source: str

    def bytes_per_s(self, link: float) -> float | None:
        """What the port carries where a device's own link does ``link``; ``None`` for as much as that.

        Generations and widths are factors of two apart, so a link between 80 and 100 % of the line rate is of the same.
        """
        line = link if self.line_bytes_per_s is None else self.line_bytes_per_s
        slower, wider = line < link, line * CARRIED > link * (1 + CLOSE)
        return line * CARRIED if slower or wider else None


def ports_of(seen: Sequence[HostSeen], devices: int, nics: Sequence[Nic], parts: int = 1) -> tuple[PortSeen, ...]:
    """The ports of a host of so many devices and of the NICs that count; nothing where no file tells NUMA nodes.

    NICs of one name are told apart by their order.

    Of packages that are shown as ``parts`` devices each, the first of each stands for its package.
    """
    host = next((host for host in seen if len(host.devices) == devices and _tells(host)), None)
    if host is None:
        return ()
    nics_of = _nics_by_port(host, nics)
    found: dict[str, PortSeen] = {}
    for n, device in enumerate(sorted(host.devices, key=_number)[::parts]):
        key = device.port or f"port of {device.name}"
        mine = found.get(key) or _port(device, nics_of)
        found[key] = replace(mine, devices=(*mine.devices, n))
    return tuple(found.values())


def _port(device: Device, nics_of: dict[str, tuple[int, ...]]) -> PortSeen:
    """The port above a device, with no device yet; the line rate of a switch's alone, as no other link need be PCIe."""
    line = device.port_bytes_per_s if device.switched else None
    return PortSeen(device.numa or 0, (), nics_of.get(device.port, ()), _through(device), line, device.source)


def _nics_by_port(host: HostSeen, nics: Sequence[Nic]) -> dict[str, tuple[int, ...]]:
    """Numbers among ``nics`` of those below each port of the host."""
    left, found = defaultdict[str, deque[int]](deque), dict[str, tuple[int, ...]]()
    for n, nic in enumerate(nics):
        left[nic.name].append(n)
    for nic in host.nics or ():
        if nic.port and left[nic.name]:
            found[nic.port] = (*found.get(nic.port, ()), left[nic.name].popleft())
    return found


def _tells(host: HostSeen) -> bool:
    """Whether every device has a NUMA node, by a number that can be one."""
    return all(device.numa is not None and 0 <= device.numa <= MOST_NUMBER for device in host.devices)


def _number(device: Device) -> tuple[int, str]:
    digits = re.search(r"[0-9]{1,6}$", device.name)
    return (int(digits[0]) if digits else 0, device.name)


def _through(device: Device) -> str:
    return (SWITCHED if device.switched else "") if device.port else UNSEEN
