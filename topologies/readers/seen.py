"""What one file shows, and no more: hosts, devices, wires, NICs, memory, switches, measured times.

A reader turns a text into a :class:`Seen`; what its format does not tell is ``None`` or empty, and every record says
where it was read. Bandwidths are one direction, in bytes a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SWITCH = "switch"
"""The far end of a wire that goes to a scale-up switch."""


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator of a host; ``partition`` names what part of one it is where it is not whole.

    ``port`` is the PCIe port of a socket below which it hangs, ``switched`` behind a switch, and
    ``port_bytes_per_s`` that port's line rate, one direction, after encoding.
    """

    name: str
    source: str
    product: str = ""
    pci: str = ""
    bus: str = ""
    numa: int | None = None
    units: int | None = None
    partition: str = ""
    pcie_bytes_per_s: float | None = None
    port: str = ""
    switched: bool = False
    port_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Wire:
    """``links`` scale-up links between two devices of a host, or from one to a switch."""

    ends: tuple[str, str]
    kind: str
    links: int
    source: str
    bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Nic:
    """A network port; ``near`` says whether a device shares a PCIe switch with it, ``port`` is as of a device."""

    name: str
    source: str
    bytes_per_s: float | None = None
    kind: str = ""
    near: bool | None = None
    virtual: bool = False
    port: str = ""


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of the host: ``DRAM``, ``HBM``, ``CXL-DRAM``, ``NVM``; ``tier`` 0 is the fastest."""

    kind: str
    capacity_bytes: float
    source: str
    numa: int | None = None
    tier: int | None = None
    bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class HostSeen:
    """A host, or any host where ``name`` is empty. ``wires`` and ``nics`` are ``None`` where the format tells none.

    ``used`` says that the devices are those of a job, which may be fewer than the host has.
    """

    name: str
    source: str
    devices: tuple[Device, ...] = ()
    wires: tuple[Wire, ...] | None = None
    nics: tuple[Nic, ...] | None = None
    memories: tuple[Memory, ...] = ()
    machine: str = ""
    domain: str = ""
    used: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Hosts below one switch, or in one block, ``level`` 1 next to the hosts; what it sends down and up."""

    name: str
    kind: str
    level: int
    hosts: tuple[str, ...]
    source: str
    down_bytes_per_s: float | None = None
    up_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds that a collective of ``buffer_bytes`` took on ``devices`` of ``hosts`` hosts.

    ``buffer_bytes`` is the whole buffer, as :func:`cost_models.communication.collective_s` takes it.
    """

    operation: Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
    devices: int
    hosts: int
    buffer_bytes: float
    seconds: float
    source: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What one file shows; ``oddities`` are what the file itself gives away."""

    source: str
    hosts: tuple[HostSeen, ...] = ()
    groups: tuple[Group, ...] = ()
    measured: tuple[Measured, ...] = ()
    oddities: tuple[str, ...] = ()
