"""hwloc's ``lstopo --of xml``: memory with its tiers, accelerators, NICs and links as far as hwloc's plugins saw them.

    topology > object[NUMANode] local_memory, subtype DRAM | HBM | CXL-DRAM | NVM, info MemoryTier (0 the fastest)
    object[PCIDev] pci_type "0302 [10de:2330] ...", object[OSDev];  distances2hetero NVLinkBandwidth in MB/s

Source: open-mpi/hwloc tests/hwloc/xml and doc, versions 2 and 3 of the format.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from topologies.errors import BadInput
from topologies.readers.bounded import Element, real, whole, xml_root
from topologies.readers.recognised import accelerator_of
from topologies.readers.seen import SWITCH, Device, HostSeen, Memory, Nic, Seen, Wire
from topologies.units import quantity_text

TITLE = "lstopo"
MOST_ENDS = 1024
_PCI = re.compile(r"([0-9a-f]{4}) \[([0-9a-f]{4}):([0-9a-f]{4})\].{0,40}")
_RDMA = re.compile(r"(mlx[0-9]_|bnxt_re|rdmap|irdma|hfi1_|efa_|hns_).{0,30}")
_SIZE = re.compile(r"([0-9]{1,15})KiB")
_LINKS = {"NVLinkBandwidth": "NVLink", "XGMIBandwidth": "XGMI"}
_VIRTUAL = re.compile(r"qemu|kvm|vmware|xen|virtual|bochs|openstack|google compute|amazon ec2", re.IGNORECASE)
_GPU_CLASSES = ("0302", "0380", "1200", "0300", "0b40")


@dataclass(frozen=True, slots=True)
class _Place:
    """An object, the PCI bridges above it with the host's own left out, and the NUMA nodes of what holds it."""

    element: Element
    bridges: tuple[Element, ...]
    nodeset: str = ""

    def info(self, name: str) -> str:
        """The value of an info of that name."""
        return next((i.get("value") for i in self.element.children if i.tag == "info" and i.get("name") == name), "")


def recognises(text: str) -> bool:
    """Whether the text looks like a topology of hwloc."""
    return re.search(r"<topology[\s>/]", text[:4000]) is not None


def read(text: str, origin: str) -> Seen:
    """The host. Raises ``BadInput`` naming the object that is wrong."""
    root = xml_root(text, origin)
    if root.tag != "topology":
        raise BadInput(f"{origin}: the root of lstopo's XML is <topology>; got <{root.tag[:40]}>")
    places = list(_places(root))
    machine = next((place for place in places if place.element.get("type") in ("Machine", "System")), None)
    if machine is None:
        raise BadInput(f"{origin}: no object of type Machine; was the file broken off?")
    devices = tuple(_devices(places, origin))
    wires = _wires(root, places, devices, origin)
    nics = tuple(_nics(places, devices, root.get("version"), origin))
    memories = tuple(_memories(root, places, origin))
    host = HostSeen("", origin, devices, wires, nics or None, memories, machine.info("DMIProductName"))
    return Seen(origin, (host,), oddities=tuple(_oddities(places, memories, origin)))


def _places(root: Element) -> Iterator[_Place]:
    open_ = [_Place(child, ()) for child in reversed(root.children)]
    while open_:
        place = open_.pop()
        element = place.element
        if element.tag != "object":
            continue
        yield place
        bridges, nodeset = place.bridges, element.get("nodeset") or place.nodeset
        if element.get("type") == "Bridge" and element.get("bridge_type").startswith("1-"):
            bridges = (*bridges, element)
        open_ += [_Place(child, bridges, nodeset) for child in reversed(element.children)]


def _identity(bridge: Element) -> str:
    return bridge.get("gp_index") or bridge.get("pci_busid")


def _port(place: _Place) -> str:
    """The port of a socket below which it hangs; its own where no bridge is above it."""
    return _identity(place.bridges[0]) if place.bridges else place.element.get("pci_busid")


def _numa(place: _Place) -> int | None:
    """The one NUMA node of what holds it, bit by bit in ``nodeset``; ``None`` where that is none or several."""
    if not re.fullmatch(r"0x[0-9a-f]{1,8}(,0x[0-9a-f]{1,8}){0,127}", place.nodeset):
        return None
    bits = int("".join(f"{int(word, 16):08x}" for word in place.nodeset.split(",")), 16)
    return bits.bit_length() - 1 if bits and bits & (bits - 1) == 0 else None


def _port_bytes_per_s(place: _Place, origin: str) -> float | None:
    """Line rate of the port of a socket, after encoding; hwloc's unit is GB/s."""
    speed = (*place.bridges, place.element)[0].get("pci_link_speed")
    return real(speed or "0", "a pci_link_speed", origin, 1e6) * 1e9 or None


def _devices(places: list[_Place], origin: str) -> Iterator[Device]:
    """Accelerators: by their class, and plain display adapters only where the catalogue knows them."""
    count = 0
    for place in places:
        match = _PCI.fullmatch(place.element.get("pci_type").lower())
        if match is None or match[1] not in _GPU_CLASSES:
            continue
        systems = [_Place(child, ()) for child in place.element.children if child.get("type") == "OSDev"]
        product = next((text for each in systems if (text := each.info("GPUModel"))), "")
        device = Device(
            f"GPU{count}", origin, product=product, pci=f"{match[2]}:{match[3]}", bus=place.element.get("pci_busid"),
            numa=_numa(place), port=_port(place), switched=len(place.bridges) > 1,
            port_bytes_per_s=_port_bytes_per_s(place, origin),
        )  # fmt: skip
        if product or match[1] in ("0302", "1200") or accelerator_of(device):
            count += 1
            yield device


def _is_rdma(system: Element, version: str) -> bool:
    """Whether an OS device is an RDMA port: OpenFabrics is type 3 of format 2 and bit 5 of the types of format 3."""
    kind = system.get("osdev_type")
    told = kind.isascii() and kind.isdecimal() and len(kind) < 10
    openfabrics = told and (int(kind) & 32 != 0 if version.startswith("3") else int(kind) == 3)
    return openfabrics or _RDMA.fullmatch(system.get("name")) is not None


def _nics(places: list[_Place], devices: tuple[Device, ...], version: str, origin: str) -> Iterator[Nic]:
    buses = {device.bus for device in devices}
    above = [place.bridges for place in places if place.element.get("pci_busid") in buses]
    shared = {_identity(bridge) for bridges in above for bridge in bridges}
    for place in places:
        match = _PCI.fullmatch(place.element.get("pci_type").lower())
        systems = [child for child in place.element.children if child.get("type") == "OSDev"]
        ports = [child.get("name") for child in systems if _is_rdma(child, version)]
        if match is not None and match[1].startswith("02") and ports:
            kind = "infiniband" if match[1] == "0207" else "efa" if match[2] == "1d0f" else "ethernet"
            near = bool(shared.intersection(map(_identity, place.bridges)))
            yield Nic(ports[0], origin, kind=kind, near=near, port=_port(place))


def _memories(root: Element, places: list[_Place], origin: str) -> Iterator[Memory]:
    """NUMA nodes with their tiers, and CXL memory that is plugged in but no NUMA node."""
    speeds = _bandwidths(root, origin)
    nodes = [place for place in places if place.element.get("type") == "NUMANode"]
    for place in nodes:
        element = place.element
        size = real(element.get("local_memory") or "0", "local_memory of a NUMANode", origin)
        tier, numa = place.info("MemoryTier"), element.get("os_index")
        if size:
            yield Memory(
                element.get("subtype")[:40] or "DRAM",
                size,
                origin,
                whole(numa, "os_index of a NUMANode", origin) if numa else None,
                whole(tier, "MemoryTier", origin) if tier else None,
                speeds.get(element.get("gp_index")),
            )
    if not any("CXL" in place.element.get("subtype") for place in nodes):
        for place in places:
            for name, kind in (("CXLRAMSize", "CXL-DRAM, offline"), ("CXLPMEMSize", "CXL-NVM, offline")):
                match = _SIZE.fullmatch(place.info(name))
                if match and int(match[1]):
                    yield Memory(kind, int(match[1]) * 1024.0, origin)


def _bandwidths(root: Element, origin: str) -> dict[str, float]:
    """Bytes a second of memory by ``gp_index``, the best that any initiator reaches; hwloc's unit is MiB/s."""
    found: dict[str, float] = {}
    for attribute in root.children:
        if attribute.tag == "memattr" and attribute.get("name") in ("Bandwidth", "ReadBandwidth"):
            for value in attribute.children:
                target = value.get("target_obj_gp_index")
                speed = real(value.get("value"), "a memory bandwidth", origin, 1e12) * 2**20
                found[target] = max(speed, found.get(target, 0.0))
    return found


def _wires(root: Element, places: list[_Place], devices: tuple[Device, ...], origin: str) -> tuple[Wire, ...] | None:
    """Links with their bandwidths as the matrix of distances tells them; nothing where hwloc saw none."""
    names = _ends(places, devices)
    found: list[Wire] = []
    told = False
    for matrix in root.children:
        kind = _LINKS.get(matrix.get("name"))
        if matrix.tag not in ("distances2hetero", "distances2") or kind is None:
            continue
        told = True
        ends, values = _matrix(matrix, names, origin)
        for i, a in enumerate(ends):
            for j, b in enumerate(ends):
                speed = values[i * len(ends) + j]
                if speed and a in names.values() and i != j and (a != SWITCH):
                    found.append(Wire((a, b), kind, 1, origin, speed * 1e6))
    return tuple(found) if told else None


def _ends(places: list[_Place], devices: tuple[Device, ...]) -> dict[str, str]:
    """What an index of a matrix means: a device by its OS or PCI object, or a switch."""
    by_bus = {device.bus: device.name for device in devices}
    names: dict[str, str] = {}
    for place in places:
        element = place.element
        name = by_bus.get(element.get("pci_busid"), SWITCH if element.get("subtype") == "NVSwitch" else "")
        if element.get("type") == "PCIDev" and name:
            names[f"PCIDev:{element.get('gp_index')}"] = name
            names |= {f"OSDev:{c.get('gp_index')}": name for c in element.children if c.get("type") == "OSDev"}
    return names


def _matrix(matrix: Element, names: dict[str, str], origin: str) -> tuple[list[str], list[float]]:
    """Ends in order and values row by row. Raises ``BadInput`` where they do not belong together."""
    size = whole(matrix.get("nbobjs"), "nbobjs of a distances matrix", origin, MOST_ENDS)
    words = [word for each in matrix.children if each.tag == "indexes" for word in each.text.split()]
    texts = [word for each in matrix.children if each.tag == "u64values" for word in each.text.split()]
    if len(words) != size or len(texts) != size * size:
        raise BadInput(
            f"{origin}: the matrix {matrix.get('name')!r} of {size} objects has {len(words)} indexes and "
            f"{len(texts)} values; was the file broken off?"
        )
    prefix = "" if matrix.tag == "distances2hetero" else f"{matrix.get('type')}:"
    ends = [names.get(prefix + word, "") for word in words]
    return ends, [real(text, "a bandwidth between devices", origin, 1e12) for text in texts]


def _oddities(places: list[_Place], memories: tuple[Memory, ...], origin: str) -> Iterator[str]:
    told = " ".join(
        place.info(name) for place in places[:64] for name in ("DMISysVendor", "DMIProductName", "CPUModel")
    )
    if _VIRTUAL.search(told):
        yield f"{origin}: a virtual machine ({_VIRTUAL.search(told)[0]}): NUMA nodes, slots and nearness are invented"  # type: ignore[index]
    sockets = [place for place in places if place.element.get("type") == "Package"]
    if len(sockets) > 1 and len(memories) == 1:
        yield f"{origin}: {len(sockets)} sockets but one NUMA node: nearness of memory is unknown"
    offline = sum(memory.capacity_bytes for memory in memories if memory.kind.endswith("offline"))
    if offline:
        yield f"{origin}: {quantity_text(offline, 'B')} of CXL memory are plugged in but no NUMA node"
