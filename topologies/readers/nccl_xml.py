"""NCCL's and RCCL's topology of a host: what ``NCCL_TOPO_DUMP_FILE`` writes and ``NCCL_TOPO_FILE`` reads.

    system > cpu > pci (> pci ...) > gpu > nvlink | xgmi,  nic > net

``nvlink target`` is a device's bus, or a switch's (class 0x0680, also with the invented bus ffff that stands for a
switch a virtual machine hides), or a CPU's (0x068001). ``speed`` of a ``net`` is in Mb/s, one direction.

Source: NVIDIA/nccl src/graph/xml.cc and topo.cc, ROCm/rccl tools/topo_expl/models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from topologies.errors import BadInput
from topologies.readers.bounded import Element, real, whole, xml_root
from topologies.readers.seen import SWITCH, Device, HostSeen, Nic, Seen, Wire

TITLE = "NCCL topology"
MOST_CPUS = 2048
FASTEST = 400e9
"""Bytes a second of a NIC; more is a number in another unit."""
ENCODED = 128 / 130
"""Bits that stay of those sent from 8 GT/s on."""
MANY_HOSTS = "the hosts of one NVLink domain"
"""NCCL writes several hosts to one topology only where NVLink joins them."""
_GPU_CLASSES, _NIC_CLASS, _BRIDGE = ("0x03", "0x12", "0x0b40"), "0x02", "0x06"
_CPU_CLASS = "0x068001"
_NIC_KINDS = {"0x0207": "infiniband", "0x0200": "ethernet"}
_VIRTUAL_FUNCTIONS = {"15b3:1018", "15b3:101a", "15b3:101c", "15b3:101e"}
_SPEED = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?) ?GT/s(?: PCIe)?")
_KIND_BY_NAME = {"rdmap": "efa", "efa": "efa", "eth": "ethernet", "ens": "ethernet", "enp": "ethernet"}
_AMAZON = "1d0f"
_SOFTWARE = re.compile(r"(veth|docker|br-|virbr|cni|cali|flannel|cilium|lxc|tailscale|wg|tun|tap|dummy|wl).*")
"""Interfaces of containers, tunnels and radios: NCCL lists them where it has no other, at a speed of its own making."""


def recognises(text: str) -> bool:
    """Whether the text looks like a topology of NCCL."""
    return re.search(r"<system[\s>/]", text[:4000]) is not None


def read(text: str, origin: str) -> Seen:
    """The hosts of the file, one for each ``host_hash``. Raises ``BadInput`` naming the element that is wrong."""
    root = xml_root(text, origin)
    if root.tag != "system":
        raise BadInput(f"{origin}: the root of a topology of NCCL is <system>; got <{root.tag[:40]}>")
    cpus = [child for child in root.children if child.tag == "cpu"]
    if not cpus:
        raise BadInput(f"{origin}: <system> holds no <cpu>; dump it with all devices visible to one process")
    if len(cpus) > MOST_CPUS:
        raise BadInput(f"{origin}: <system> holds {len(cpus)} <cpu>; a host has at most {MOST_CPUS} NUMA nodes")
    hashes = list(dict.fromkeys(cpu.get("host_hash") for cpu in cpus))
    hosts = [_host([cpu for cpu in cpus if cpu.get("host_hash") == each], origin) for each in hashes]
    if len(hosts) > 1:
        hosts = [replace(host, name=f"host-{k}", domain=MANY_HOSTS) for k, host in enumerate(hosts)]
    return Seen(origin, tuple(hosts), oddities=tuple(_oddities(root, cpus, origin)))


def _host(cpus: list[Element], origin: str) -> HostSeen:
    places = [place for cpu in cpus for place in _places(cpu)]
    template = not any(element.tag == "gpu" for _, elements in places for element in elements.children)
    roots = {child.get("busid"): (cpu, child) for cpu in cpus for child in cpu.children if child.tag == "pci"}
    devices = [_below(device, places, roots, origin) for device in _devices(places, template, origin)]
    buses = {device.bus: device.name for device in devices}
    wires = None if template else tuple(_wires(places, buses, origin))
    switches = {bus for (parents, pci) in places if _is_gpu(pci) for bus in parents}
    nics = [nic for parents, pci in places for nic in _nics(parents, pci, switches, template, origin)]
    nics += [_net(net, None, "", "", origin) for cpu in cpus for net in _nets(cpu)]
    _check_names(devices, origin)
    return HostSeen("", origin, tuple(devices), wires, tuple(nic for nic in nics if not _SOFTWARE.fullmatch(nic.name)))


def _places(cpu: Element) -> Iterator[tuple[tuple[str, ...], Element]]:
    """Every ``pci`` below a CPU with the buses of the bridges above it."""
    open_: list[tuple[tuple[str, ...], Element]] = [((), child) for child in reversed(cpu.children)]
    while open_:
        parents, element = open_.pop()
        if element.tag == "pci":
            yield parents, element
            below = (*parents, element.get("busid"))
            open_ += [(below, child) for child in reversed(element.children)]


def _is_gpu(pci: Element) -> bool:
    return any(child.tag == "gpu" for child in pci.children) or pci.get("class").startswith(_GPU_CLASSES)


def _devices(places: list[tuple[tuple[str, ...], Element]], template: bool, origin: str) -> list[Device]:
    found = []
    for _, pci in places:
        gpus = [child for child in pci.children if child.tag == "gpu"]
        if not gpus and template and _is_gpu(pci):
            found.append(_device(pci, str(len(found)), None, origin))
        for gpu in gpus:
            number = whole(gpu.get("dev"), f"dev of the gpu at {pci.get('busid')[:20]}", origin, 4096)
            found.append(_device(pci, str(number), gpu, origin))
    return found


def _device(pci: Element, number: str, gpu: Element | None, origin: str) -> Device:
    vendor, device = pci.get("vendor").removeprefix("0x"), pci.get("device").removeprefix("0x")
    known = len(vendor) == len(device) == 4 and vendor != "0000"
    amd = gpu is not None and bool(gpu.get("gcn"))
    return Device(
        f"GPU{number}",
        origin,
        product=f"gcn {gpu.get('gcn')[:20]}" if amd and gpu is not None else "",
        pci=f"{vendor}:{device}" if known else "",
        bus=pci.get("busid"),
        units=whole(gpu.get("sm"), f"sm of gpu {number}", origin, 4096) if amd and gpu is not None else None,
        pcie_bytes_per_s=_pcie_bytes_per_s(pci, origin),
    )


def _below(
    device: Device,
    places: list[tuple[tuple[str, ...], Element]],
    roots: dict[str, tuple[Element, Element]],
    origin: str,
) -> Device:
    """The device with its NUMA node and the outermost bridge above it; NUMA node -1 tells nothing.

    A device with links to its processor (``c2c``) reaches memory by these, whatever PCIe bridge it also hangs below.
    """
    parents, pci = next((place for place in places if place[1].get("busid") == device.bus), ((), None))
    cpu, port = roots[parents[0] if parents else device.bus]
    if pci is not None and any(link.tag == "c2c" for gpu in pci.children for link in gpu.children):
        parents, port = (), pci
    number, before = cpu.get("numaid"), _pcie_bytes_per_s(port, origin)
    return replace(
        device,
        numa=int(number) if re.fullmatch(r"[0-9]{1,4}", number) else None,
        port=port.get("busid"),
        switched=bool(parents),
        port_bytes_per_s=before and before * ENCODED,
    )


def _pcie_bytes_per_s(pci: Element, origin: str) -> float | None:
    """Bytes a second of the device's slot, one direction, before encoding: transfers times lanes."""
    match = _SPEED.fullmatch(pci.get("link_speed").strip())
    if match is None:
        return None
    lanes = whole(pci.get("link_width"), f"link_width of {pci.get('busid')[:20]}", origin, 64)
    rate = float(match[1])
    return rate * 1e9 * max(lanes, 0) / 8 * (0.8 if rate < 8 else 1.0) or None


def _wires(places: list[tuple[tuple[str, ...], Element]], buses: dict[str, str], origin: str) -> Iterator[Wire]:
    for _, pci in places:
        for gpu in (child for child in pci.children if child.tag == "gpu"):
            for link in gpu.children:
                if link.tag in ("nvlink", "xgmi") and link.get("tclass") != _CPU_CLASS:
                    count = whole(
                        link.get("count"), f"count of the {link.tag} at {pci.get('busid')[:20]}", origin, 1024
                    )
                    far = buses.get(link.get("target"), SWITCH)
                    kind = "NVLink" if link.tag == "nvlink" else "XGMI"
                    yield Wire((f"GPU{gpu.get('dev')}", far), kind, max(count, 0), origin)


def _nics(parents: tuple[str, ...], pci: Element, switches: set[str], template: bool, origin: str) -> Iterator[Nic]:
    kind = _NIC_KINDS.get(pci.get("class")[:6], "")
    kind = "efa" if pci.get("vendor").endswith(_AMAZON) else kind
    near = bool(switches.intersection(parents))
    function = f"{pci.get('vendor').removeprefix('0x')}:{pci.get('device').removeprefix('0x')}"
    port = parents[0] if parents else pci.get("busid")
    for net in _nets(pci):
        yield replace(_net(net, near, kind, function, origin), port=port)
    if template and pci.get("class").startswith(_NIC_CLASS):
        yield Nic(pci.get("busid"), origin, kind=kind, near=near, port=port)


def _nets(element: Element) -> list[Element]:
    return [net for nic in element.children if nic.tag == "nic" for net in nic.children if net.tag == "net"]


def _net(net: Element, near: bool | None, kind: str, function: str, origin: str) -> Nic:
    name = net.get("name")[:40]
    speed = real(net.get("speed"), f"speed of the net {name!r}", origin) * 1e6 / 8
    told = [kind for start, kind in _KIND_BY_NAME.items() if name.startswith(start)]
    kind = told[0] if told else kind
    return Nic(
        name,
        origin,
        speed if 0 < speed <= FASTEST else None,
        kind,
        near,
        function in _VIRTUAL_FUNCTIONS or near is None,
    )


def _check_names(devices: list[Device], origin: str) -> None:
    names = [device.name for device in devices]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(names) < 512 else ["512 and more"]
    if twice:
        raise BadInput(f"{origin}: a host has every dev once; given again: {', '.join(twice[:4])}; is it two files?")


def _oddities(root: Element, cpus: list[Element], origin: str) -> Iterator[str]:
    if all(cpu.get("numaid") == "-1" for cpu in cpus):
        yield f"{origin}: numaid is -1, as virtual machines report; nearness of NICs and memory is unknown"
    links = [link for cpu in cpus for _, pci in _places(cpu) for gpu in pci.children for link in gpu.children]
    if any(link.get("target").lower().startswith("ffff") for link in links):
        yield f"{origin}: NVLinks end at a switch that cannot be seen (bus ffff), as in virtual machines"
    nets = [net for cpu in cpus for _, pci in _places(cpu) for net in _nets(pci)]
    named = [net.get("name")[:40] for net in nets] + [net.get("name")[:40] for cpu in cpus for net in _nets(cpu)]
    if software := [name for name in named if _SOFTWARE.fullmatch(name)]:
        are = "is no NIC" if len(software) == 1 else "are no NICs"
        yield f"{origin}: {', '.join(software[:4])} {are} between hosts and not counted"
    fast = [net for net in nets if _net(net, True, "", "", origin).bytes_per_s is None]
    if fast:
        name, speed = fast[0].get("name")[:40], fast[0].get("speed")[:20]
        yield f"{origin}: {name} has the speed {speed}, no Mb/s of a NIC: taken as unknown"
    speeds = [pci.get("link_speed") for cpu in cpus for _, pci in _places(cpu) if _is_gpu(pci)]
    if speeds and not any(speeds):
        yield f"{origin}: no PCIe speed of any device, as in virtual machines"
    if not any(child.tag == "gpu" for cpu in cpus for _, pci in _places(cpu) for child in pci.children):
        yield f"{origin}: no <gpu> in it: a template for NCCL_TOPO_FILE, not a dump; links and speeds are not in it"
