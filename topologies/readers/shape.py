"""One host out of all that files show of it: the first file that tells a thing is believed, others may be odd.

NICs are those that share a PCIe switch with a device, or all of the host where none does, and of these the fastest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from topologies import catalogue
from topologies.errors import BadInput
from topologies.readers.facts import CLOSE, Fact
from topologies.readers.inside import PortSeen, ports_of
from topologies.readers.partition import devices_a_package, partition_of
from topologies.readers.recognised import accelerator_of, machine_accelerator, with_links
from topologies.readers.scale_up import scale_up
from topologies.readers.seen import SWITCH, Device, HostSeen, Memory, Nic, Wire
from topologies.units import quantity_text


@dataclass(frozen=True, slots=True)
class Shape:
    """What a planner needs of a host; ``None`` where no file tells."""

    accelerator: Fact[str]
    devices: Fact[int]
    nics: Fact[int] | None
    nic_bytes_per_s: Fact[float] | None
    nic_kind: str
    scale_up_bytes_per_s: Fact[float] | None
    scale_up_link: str
    memory_bytes: Fact[float] | None
    memories: tuple[Memory, ...]
    machine: str
    oddities: tuple[str, ...]
    inside: tuple[PortSeen, ...] = ()
    partition: Fact[str] | None = None
    """The mode in which packages are shown as several devices; ``devices`` are packages then."""

    @property
    def key(self) -> tuple:
        """What must be equal for two hosts to be alike."""
        parts = (self.accelerator, self.devices, self.nics, self.nic_bytes_per_s, self.scale_up_bytes_per_s,
                 self.partition)  # fmt: skip
        return tuple(None if part is None else part.value for part in parts)

    def text(self) -> str:
        """The host on one line."""
        nics = "" if self.nics is None else f", {self.nics.value} {'NIC' if self.nics.value == 1 else 'NICs'}"
        speed = "" if self.nic_bytes_per_s is None else f" of {self.nic_bytes_per_s.value * 8 / 1e9:g} Gb/s"
        inside = self.scale_up_bytes_per_s
        link = "" if inside is None else f", {self.scale_up_link} {quantity_text(inside.value, 'B/s')} a device"
        mode = "" if self.partition is None else f" in {self.partition.value}"
        return f"{self.devices.value} x {self.accelerator.value}{mode}{link}{nics}{speed}"


def shape_of(seen: Sequence[HostSeen], accelerator: str | None, nics: int | None) -> Shape:
    """The host that all of ``seen`` describe; ``accelerator`` and ``nics`` are the user's words.

    Raises ``BadInput`` where no file or option tells what the devices are, or which part of one they are.
    """
    oddities: list[str] = []
    owner = _owner(seen, oddities)
    name = _accelerator(owner.devices, accelerator, seen, oddities)
    everyone = [device for host in seen for device in host.devices]
    mode = partition_of(name.value, owner.devices, everyone, accelerator is not None)
    parts = devices_a_package(name.value, mode)
    wires = _first(seen, "wires", oddities) if mode is None else None
    inside, link = scale_up(owner.devices, name.value, wires, oddities)
    every = _with_speeds(_first(seen, "nics", oddities), seen)
    counted = tuple(_compute_nics(every or (), oddities))
    ports, speed, kind = _nics(every, counted, nics, len(owner.devices))
    memories = next((host.memories for host in seen if host.memories), ())
    local = [memory for memory in memories if memory.kind in ("DRAM", "")]
    memory = Fact(sum(m.capacity_bytes for m in local), local[0].source) if local else None
    return Shape(
        name, Fact(len(owner.devices) // parts, owner.source), ports, speed, kind, inside, link,
        memory, memories,
        next((host.machine for host in seen if host.machine), ""), tuple(dict.fromkeys(oddities)),
        ports_of(seen, len(owner.devices), counted if nics is None else (), parts), mode,
    )  # fmt: skip


def _owner(seen: Sequence[HostSeen], oddities: list[str]) -> HostSeen:
    """The description whose devices count: the first that has any."""
    with_devices = [host for host in seen if host.devices]
    if not with_devices:
        sources = ", ".join(dict.fromkeys(host.source for host in seen)) or "what was given"
        raise BadInput(
            f"{sources} shows no accelerator; add a file that does (NCCL_TOPO_DUMP_FILE, nvidia-smi topo -m, "
            "rocm-smi --showtopo, kubectl get nodes -o json), or name a host of the catalogue with --like"
        )
    owner = with_devices[0]
    for other in with_devices[1:]:
        if len(other.devices) != len(owner.devices):
            oddities.append(f"{other.source} shows {len(other.devices)} devices, {owner.source} {len(owner.devices)}; "
                            f"the latter is taken, as it was given first")  # fmt: skip
    return owner


def _first(seen: Sequence[HostSeen], what: str, oddities: list[str]) -> tuple[Any, ...] | None:
    """The first description's wires or NICs; a later one that counts otherwise is odd."""
    told = [host for host in seen if getattr(host, what) is not None]
    for other in told[1:]:
        a, b = _weight(getattr(told[0], what)), _weight(getattr(other, what))
        if a != b:
            oddities.append(f"{told[0].source} shows {a} {_words(what)}, {other.source} {b}; the former are taken")
    return getattr(told[0], what) if told else None


def _with_speeds(nics: tuple[Nic, ...] | None, seen: Sequence[HostSeen]) -> tuple[Nic, ...] | None:
    """NICs with the speed and kind that another description gives the one of the same name."""
    told = {nic.name: nic for host in reversed(seen) for nic in host.nics or () if nic.bytes_per_s}
    return nics and tuple(
        replace(nic, bytes_per_s=nic.bytes_per_s or told[nic.name].bytes_per_s, kind=nic.kind or told[nic.name].kind)
        if nic.name in told
        else nic
        for nic in nics
    )


def _weight(records: tuple[Any, ...]) -> int:
    """Ends of links, or NICs: what two descriptions of one host must agree on."""
    return sum(r.links * (1 if r.ends[1] == SWITCH else 2) if isinstance(r, Wire) else 1 for r in records)


def _words(what: str) -> str:
    return "ends of scale-up links" if what == "wires" else "NICs"


def _accelerator(
    devices: tuple[Device, ...], asked: str | None, seen: Sequence[HostSeen], oddities: list[str]
) -> Fact[str]:
    every = [device for host in seen for device in host.devices]
    found = {name: device for device in reversed(every) if (name := accelerator_of(device))}
    if asked is not None:
        catalogue.load("accelerators", asked)
        if found and asked not in found:
            oddities.append(f"--accelerator {asked} is taken, where files show {', '.join(sorted(found))}")
        return Fact(asked, "--accelerator")
    if not found:
        machine = next((host for host in seen if machine_accelerator(host.machine)), None)
        if machine is None:
            raise BadInput(_unrecognised(devices, seen))
        return Fact(
            machine_accelerator(machine.machine), machine.source, "derived", f"of the machine {machine.machine[:60]}"
        )
    if len(found) > 1:
        raise BadInput(
            f"one host has {' and '.join(sorted(found))} ({', '.join(d.source for d in found.values())}): hosts of one "
            "kind are planned; describe two hosts, or name the one to plan with --accelerator"
        )
    ((name, device),) = found.items()
    told = f"PCI {device.pci}" if device.pci else device.product
    return Fact(name, device.source, note=f"recognised by {told}")


def _unrecognised(devices: tuple[Device, ...], seen: Sequence[HostSeen]) -> str:
    names = sorted({device.product or f"PCI {device.pci}" for device in devices if device.product or device.pci})
    source = ", ".join(dict.fromkeys(host.source for host in seen if host.devices))
    if names:
        return f"{source}: the catalogue has no {', '.join(names)[:200]}; name the nearest with --accelerator NAME"
    links = [[w.links for w in host.wires or () if devices[0].name in w.ends] for host in seen]
    counts = {sum(each) for each in links} | {max(each, default=0) for each in links}
    kind = next((wire.kind for host in seen for wire in host.wires or ()), "")
    fits = sorted({name for count in counts if count for name in with_links(count, kind)})
    hint = f" (its links fit {', '.join(fits)})" if fits else ""
    return (
        f"{source} does not say what its devices are{hint}; name it with --accelerator NAME, or add the output of "
        "nvidia-smi -L or an NCCL dump of the same host"
    )


def _nics(
    nics: tuple[Nic, ...] | None, counted: tuple[Nic, ...], asked: int | None, devices: int
) -> tuple[Fact[int] | None, Fact[float] | None, str]:
    if nics is None and asked is None:
        return None, None, ""
    source = counted[0].source if counted else (nics[0].source if nics else "--nics")
    number = Fact(len(counted), source) if asked is None else Fact(asked, "--nics")
    if asked is None and len(counted) > 4 * max(devices, 1):
        raise BadInput(
            f"{source} shows {len(counted)} NICs for {devices} devices, as virtual functions do; say how many real "
            "ports the devices use with --nics N"
        )
    speeds = [nic.bytes_per_s for nic in counted if nic.bytes_per_s]
    speed = Fact(min(speeds), source) if speeds else None
    kinds = [nic.kind for nic in counted if nic.kind]
    return number, speed, kinds[0] if kinds else ""


def _compute_nics(nics: tuple[Nic, ...], oddities: list[str]) -> Iterator[Nic]:
    """The NICs that devices use between hosts; the others are for storage and management."""
    near = [nic for nic in nics if nic.near] or list(nics)
    top = max((nic.bytes_per_s or 0.0 for nic in near), default=0.0)
    fast = [nic for nic in near if nic.bytes_per_s is None or nic.bytes_per_s >= top * (1 - CLOSE)]
    if len(fast) < len(near):
        slow = sorted({f"{nic.name} {(nic.bytes_per_s or 0) * 8 / 1e9:g} Gb/s" for nic in near if nic not in fast})
        oddities.append(f"{near[0].source}: NICs of mixed speeds; {', '.join(slow[:4])} beside {top * 8 / 1e9:g} Gb/s "
                        "are not counted (--nics counts them)")  # fmt: skip
    if any(nic.virtual for nic in fast):
        oddities.append(f"{fast[0].source}: {fast[0].name} is a virtual NIC, as in virtual machines; "
                        "its speed is what the driver claims")  # fmt: skip
    yield from fast
