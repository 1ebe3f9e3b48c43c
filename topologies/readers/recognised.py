"""Which accelerator of the catalogue a tool means by a name or a PCI id."""

from __future__ import annotations

import re
from functools import lru_cache

from topologies import catalogue
from topologies.catalogue import Accelerator, Host, SeenAs
from topologies.readers.seen import Device, HostSeen

_BRANDS = re.compile(r"nvidia|tesla|amd|instinct|radeon|geforce|[^a-z0-9]")


_MAKERS = {"NV": "NVIDIA", "XG": "AMD"}
"""Who makes devices with links of a kind: NV18 and XGMI are no one else's."""


@lru_cache(maxsize=1)
def _known() -> dict[str, str]:
    """Accelerators by PCI id and by plain name."""
    known = {}
    for name in catalogue.names("accelerators"):
        seen = seen_as(name)
        if seen is not None:
            known.update(dict.fromkeys(seen.pci, name))
            known.update({plain(text): name for text in seen.names})
        known[plain(f"catalogue {name}")] = name
    return known


def plain(text: str) -> str:
    """A product's name without brand, blanks, dashes and case: what different tools agree on."""
    return _BRANDS.sub("", text.lower())


def seen_as(accelerator: str) -> SeenAs | None:
    """How tools name that accelerator of the catalogue."""
    part = catalogue.load("accelerators", accelerator)
    return part.seen_as if isinstance(part, Accelerator) else None


def accelerator_of(device: Device) -> str:
    """The accelerator's name in the catalogue, empty where neither PCI id nor product tells."""
    known = _known()
    return known.get(device.pci.lower(), "") or known.get(plain(device.product) or "?", "")


@lru_cache(maxsize=1)
def _machines() -> dict[str, str]:
    """Accelerators by the plain names of hosts and of instance types."""
    known = {}
    for name in catalogue.names("hosts"):
        host = catalogue.load("hosts", name)
        if isinstance(host, Host):
            names = (name, *(host.seen_as.names if host.seen_as is not None else ()))
            known.update(dict.fromkeys(map(plain, names), host.accelerator))
    return known


def machine_accelerator(machine: str) -> str:
    """The accelerator of a machine that is known by name, empty otherwise."""
    return _machines().get(plain(machine) or "?", "")


def with_links(links: int, kind: str) -> list[str]:
    """Accelerators whose scale-up bandwidth is that of so many links of a kind: what a matrix of counts can mean."""
    maker, found = _MAKERS.get(kind[:2].upper(), ""), []
    for name in catalogue.names("accelerators"):
        part, seen = catalogue.load("accelerators", name), seen_as(name)
        if seen is not None and seen.link_bandwidth and isinstance(part, Accelerator):
            full = part.figures.scale_up_bandwidth.value / seen.link_bandwidth
            if abs(full - links) < 0.5 and maker in part.vendor:
                found.append(name)
    return found


def host_as_seen(name: str) -> HostSeen:
    """A host of the catalogue as a file would show it, its links left to the catalogue."""
    host = catalogue.load("hosts", name)
    source = f"--like {name}"
    if not isinstance(host, Host):
        raise catalogue.unknown("host", name, catalogue.names("hosts"))
    part = catalogue.load("accelerators", host.accelerator)
    devices = tuple(Device(f"GPU{k}", source, product=f"catalogue {part.name}") for k in range(host.devices))
    return HostSeen("", source, devices)
