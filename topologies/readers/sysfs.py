"""Linux's /sys: accelerators, NICs and memory of this machine where no other tool is installed.

    bus/pci/devices/*           class, vendor, device, numa_node, current_link_speed, current_link_width
    class/infiniband/*          ports/1/rate "400 Gb/sec (4X NDR)", ports/1/link_layer
    devices/system/node/node*   meminfo, cpulist; a node without CPUs is memory alone: CXL, HBM or persistent
    bus/cxl/devices/mem*        ram/size

Source: kernel documentation, ABI/stable: sysfs-devices-node, sysfs-class-infiniband; ABI/testing: sysfs-bus-cxl.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from topologies.readers.recognised import accelerator_of
from topologies.readers.seen import Device, HostSeen, Memory, Nic, Seen

TITLE = "/sys"
_BUS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_RATE = re.compile(r"([0-9]{1,5}(?:\.[0-9]{1,3})?) Gb/sec.{0,40}")
_SPEED = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?) GT/s.{0,20}")
_TOTAL = re.compile(r"MemTotal:\s+([0-9]{1,15}) kB")
_COMPUTE, _DISPLAY = ("0x0302", "0x0380", "0x1200", "0x0b40"), "0x0300"


def read_sys(root: Path) -> Seen:
    """The machine whose /sys stands at ``root``; what is missing there is missing in the answer."""
    functions = {path.name: path for path in _folder(root / "bus/pci/devices") if _BUS.fullmatch(path.name)}
    devices = tuple(_devices(functions))
    nics = tuple(_nics(root, [functions[device.bus] for device in devices]))
    memories = tuple(_memories(root))
    vendor = f"{_word(root / 'class/dmi/id/sys_vendor')} {_word(root / 'class/dmi/id/product_name')}"
    virtual = re.search(r"QEMU|KVM|VMware|Xen|Virtual|OpenStack|Google Compute|Amazon EC2", vendor)
    odd = [f"{TITLE}: a virtual machine ({virtual[0]}): NUMA nodes, slots and nearness are invented"] if virtual else []
    host = HostSeen("", TITLE, devices, None, nics or None, memories, _word(root / "class/dmi/id/product_name"))
    return Seen(TITLE, (host,), oddities=tuple(odd))


def _folder(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())[:4096]
    except OSError:
        return []


def _word(path: Path) -> str:
    """The file's first line, empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(4096).decode("utf-8", "replace").strip().split("\n")[0]
    except OSError:
        return ""


def _devices(functions: dict[str, Path]) -> Iterator[Device]:
    count = 0
    for bus, path in functions.items():
        kind = _word(path / "class")[:6]
        vendor, device = (_word(path / name).removeprefix("0x") for name in ("vendor", "device"))
        numa = _word(path / "numa_node")
        found = Device(
            f"GPU{count}",
            TITLE,
            pci=f"{vendor}:{device}",
            bus=bus,
            numa=int(numa) if re.fullmatch(r"-?[0-9]{1,5}", numa) else None,
            pcie_bytes_per_s=_slot_bytes_per_s(path),
        )
        if accelerator_of(found) or (kind in _COMPUTE and vendor in ("10de", "1002", "1da3", "1d0f")):
            count += 1
            yield found


def _slot_bytes_per_s(path: Path) -> float | None:
    speed, lanes = _SPEED.fullmatch(_word(path / "max_link_speed")), _word(path / "max_link_width")
    if speed is None or not re.fullmatch(r"[0-9]{1,2}", lanes):
        return None
    return float(speed[1]) * 1e9 * int(lanes) / 8 * (0.8 if float(speed[1]) < 8 else 1.0) or None


def _nics(root: Path, devices: list[Path]) -> Iterator[Nic]:
    """RDMA ports, near where they share a bridge with a device."""
    bridges = {bridge for device in devices for bridge in _bridges(device)}
    for path in _folder(root / "class/infiniband"):
        rate = _RATE.fullmatch(_word(path / "ports/1/rate"))
        layer = _word(path / "ports/1/link_layer").lower()
        vendor = _word(path / "device/vendor")
        kind = "efa" if vendor == "0x1d0f" else layer if layer in ("infiniband", "ethernet") else ""
        speed = float(rate[1]) * 1e9 / 8 if rate else None
        yield Nic(path.name, TITLE, speed, kind, bool(bridges.intersection(_bridges(path / "device"))))


def _bridges(path: Path) -> list[str]:
    """Buses of the bridges above a function, the root port left out."""
    try:
        return [part for part in path.resolve().parts if _BUS.fullmatch(part)][1:-1]
    except (OSError, RuntimeError):
        return []


def _memories(root: Path) -> Iterator[Memory]:
    nodes = [path for path in _folder(root / "devices/system/node") if re.fullmatch(r"node[0-9]{1,4}", path.name)]
    for path in nodes:
        match = _total(path / "meminfo")
        if match:
            kind = "DRAM" if _word(path / "cpulist") else "memory without CPUs"
            yield Memory(kind, match * 1024.0, TITLE, int(path.name[4:]))
    for path in _folder(root / "bus/cxl/devices"):
        size = _word(path / "ram/size")
        if path.name.startswith("mem") and re.fullmatch(r"0x[0-9a-f]{1,15}", size) and int(size, 16):
            yield Memory("CXL-DRAM, as plugged in", float(int(size, 16)), TITLE)


def _total(path: Path) -> int:
    try:
        with path.open("rb") as file:
            match = _TOTAL.search(file.read(8192).decode("utf-8", "replace"))
    except OSError:
        return 0
    return int(match[1]) if match else 0
