"""Inside a host: NUMA nodes, the PCIe ports of each, and which devices and NICs hang below one port.

    NUMA node --- port --- (PCIe switch) --- devices, NICs

A port carries ``bandwidth`` one way, or as much as one device's own link where nothing says more. With ``k`` of the
first ``n`` devices of the host below a port, all of them sending at once, a device gets

    rate(n) = min over ports with k > 0 of min(device_link, bandwidth / k)

What goes between a device and a NIC below the same switch does not pass the port.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from topologies.records import Record
from topologies.units import BytesPerSecond

if TYPE_CHECKING:
    from topologies.catalogue import Host

MOST_NUMBER = 4096
Number = Annotated[int, Field(strict=True, ge=0, le=MOST_NUMBER)]


class RootPort(Record):
    """One PCIe port of NUMA node ``numa``, and numbers of the host's devices and NICs below it.

    ``through`` is what stands between, a switch above all; empty where devices are at the port itself.
    """

    numa: Number
    devices: Annotated[tuple[Number, ...], Field(max_length=4096)] = ()
    nics: Annotated[tuple[Number, ...], Field(max_length=4096)] = ()
    through: Annotated[str, Field(max_length=80)] = ""
    bandwidth: BytesPerSecond | None = None


class Inside(Record):
    """The ports of a host below which devices hang, in any order, and the source that shows them."""

    source: str
    ports: Annotated[tuple[RootPort, ...], Field(min_length=1, max_length=4096)]

    @property
    def numa_nodes(self) -> tuple[int, ...]:
        """Numbers of the NUMA nodes that have a port here, sorted."""
        return tuple(sorted({port.numa for port in self.ports}))


def wrong_ports(inside: Inside, devices: int, nics: int) -> str:
    """What is wrong with the ports of a host of so many devices and NICs; empty where nothing is."""
    for what, count in (("devices", devices), ("nics", nics)):
        numbers = [number for port in inside.ports for number in getattr(port, what)]
        if twice := sorted(number for number, times in Counter(numbers).items() if times > 1):
            return f"{what} {twice[:4]} are named twice; each hangs below one port"
        if beyond := sorted(number for number in numbers if number >= count):
            return f"{what} {beyond[:4]} are not among the host's {count}, which are numbered from 0"
        if what == "devices" and len(numbers) < count:
            return f"{len(numbers)} of {count} devices are below a port; name the port of every device"
    slow = [port.bandwidth for port in inside.ports if port.bandwidth is not None and not 0 < port.bandwidth < 1e15]
    return f"a port's bandwidth is above 0 and finite; got {slow[0]} B/s" if slow else ""


def device_rates(host: Host) -> tuple[float, ...]:
    """Bytes a second between each of the first 1, 2, ... devices and memory outside them: ``rate(n)`` of the module.

    Empty where no source shows the ports or no port is shared.
    """
    inside, link = host.inside, host.figures.device_link
    if inside is None or link is None:
        return ()
    port_of = {device: port for port in inside.ports for device in port.devices}
    sending, rates, slowest = Counter[int](), [], link.value
    for device in range(host.devices):
        if (port := port_of.get(device)) is not None:
            sending[id(port)] += 1
            slowest = min(slowest, (link.value if port.bandwidth is None else port.bandwidth) / sending[id(port)])
        rates.append(slowest)
    return tuple(rates) if slowest < link.value else ()


def divided(inside: Inside, parts: int, link: float | None) -> Inside:
    """The ports where every device is ``parts`` of them, which a port serves as it served the whole one."""
    ports = tuple(
        port.model_copy(
            update={
                "devices": tuple(device * parts + part for device in port.devices for part in range(parts)),
                "bandwidth": link if port.bandwidth is None else port.bandwidth,
            }
        )
        for port in inside.ports
    )
    return inside.model_copy(update={"ports": ports})
