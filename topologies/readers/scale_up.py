"""Bytes a second of a device inside its host, from links, slots and what the catalogue knows of both.

= least over devices of the sum of its links      where links and switches join all devices
= the slot's                                       where they do not, or there are none
"""

from __future__ import annotations

from topologies import catalogue
from topologies.catalogue import Accelerator
from topologies.readers.facts import CLOSE, Fact
from topologies.readers.recognised import seen_as
from topologies.readers.seen import SWITCH, Device, Wire
from topologies.units import quantity_text


def scale_up(
    devices: tuple[Device, ...], name: str, wires: tuple[Wire, ...] | None, oddities: list[str]
) -> tuple[Fact[float] | None, str]:
    """The bandwidth where it is not the catalogue's, and over what; what is odd is added to ``oddities``."""
    part, seen = catalogue.load("accelerators", name), seen_as(name)
    if wires is None or seen is None or not isinstance(part, Accelerator):
        return None, ""
    full = part.figures.scale_up_bandwidth.value
    if not any(wire.links for wire in wires):
        return _by_slot(devices, name, full, oddities)
    source, kind = wires[0].source, wires[0].kind
    if len(devices) > 1 and not _joined(devices, wires):
        oddities.append(
            f"{source}: {kind} joins some devices only; others are reached over PCIe, which prices the host"
        )
        return _by_slot(devices, name, full, [])
    speeds = _speeds(devices, wires, full, seen.link_bandwidth)
    if speeds is None:
        return None, kind
    slow, fast = min(speeds.values()), max(speeds.values())
    if slow < fast * (1 - CLOSE):
        few = [device for device, speed in speeds.items() if speed < fast * (1 - CLOSE)]
        oddities.append(
            f"{source}: {', '.join(few[:4])} has links for {quantity_text(slow, 'B/s')}, others for "
            f"{quantity_text(fast, 'B/s')}; the host is as fast as its slowest device"
        )
    if abs(slow / full - 1) <= CLOSE:
        return None, kind
    if slow > full:
        oddities.append(
            f"{source}: links for {quantity_text(slow, 'B/s')} a device, more than {name} has; the catalogue's "
            f"{quantity_text(full, 'B/s')} stay"
        )
        return None, kind
    if slow >= fast * (1 - CLOSE):
        oddities.append(
            f"{source}: every device has links for {quantity_text(slow, 'B/s')}, and {name} could have "
            f"{quantity_text(full, 'B/s')}"
        )
    return Fact(slow, source, "derived", f"the sum of a device's {kind} links"), kind


def _speeds(
    devices: tuple[Device, ...], wires: tuple[Wire, ...], full: float, link: float | None
) -> dict[str, float] | None:
    """Bytes a second that leave each device; ``None`` where neither file nor catalogue tells a link's.

    A format that lists a wire at both ends gives each end its own. A matrix of pairs counts a device's links to a
    switch again for every peer, which shows when they are more than a device has.
    """
    sums = dict.fromkeys((device.name for device in devices), 0.0)
    best = dict(sums)
    both = {wire.ends for wire in wires}
    for wire in wires:
        speed = wire.bytes_per_s or (wire.links * link if link is not None else None)
        if speed is None:
            return None
        near, far = wire.ends
        for end in (near, far) if (far, near) not in both else (near,):
            if end in sums:
                sums[end] += speed
                best[end] = max(best[end], speed)
    pairs = not any(SWITCH in wire.ends for wire in wires)
    return best if pairs and max(sums.values()) > full * (1 + CLOSE) >= max(best.values()) else sums


def _joined(devices: tuple[Device, ...], wires: tuple[Wire, ...]) -> bool:
    """Whether links and switches reach from any device to any other."""
    near: dict[str, set[str]] = {device.name: set() for device in devices} | {SWITCH: set()}
    for wire in wires:
        if wire.links and wire.ends[0] in near and wire.ends[1] in near:
            near[wire.ends[0]].add(wire.ends[1])
            near[wire.ends[1]].add(wire.ends[0])
    reached, open_ = {devices[0].name}, [devices[0].name]
    while open_:
        fresh = near[open_.pop()] - reached
        reached |= fresh
        open_ += fresh
    return reached >= {device.name for device in devices}


def _by_slot(
    devices: tuple[Device, ...], name: str, full: float, oddities: list[str]
) -> tuple[Fact[float] | None, str]:
    """The slowest slot's bandwidth, and a word where links are missing that the accelerator has."""
    seen = seen_as(name)
    slots = [device.pcie_bytes_per_s for device in devices if device.pcie_bytes_per_s]
    slot = min(slots) if slots else (seen.pcie_bandwidth if seen is not None else None)
    if len(set(slots)) > 1:
        oddities.append(
            f"{devices[0].source}: slots of {quantity_text(min(slots), 'B/s')} and "
            f"{quantity_text(max(slots), 'B/s')}; the slower counts"
        )
    if slot is None or len(devices) < 2 or slot >= full * (1 - CLOSE):
        return None, "PCIe"
    if slot < full / 2 and seen is not None and seen.link_bandwidth:
        oddities.append(
            f"{devices[0].source}: no NVLink or XGMI between {name}, which has {full / seen.link_bandwidth:.0f} links: "
            "switched off, hidden by a virtual machine, or left out as by topo -mp; priced at PCIe's "
            f"{quantity_text(slot, 'B/s')} (--scale-up-bandwidth '{quantity_text(full, 'B/s')}' if the links are there)"
        )
    return Fact(slot, devices[0].source, "derived", "the slot, before encoding"), "PCIe"
