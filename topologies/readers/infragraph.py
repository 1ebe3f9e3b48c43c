"""InfraGraph: devices made of components, instances of them, and edges inside and between (YAML or JSON).

    devices:   - name, components: [{name, count, choice: xpu | nic | switch | cpu ...}], links, edges
    instances: - {name, device, count}       edges: - {ep1: {instance, component}, ep2, link, scheme}

A device with ``xpu`` components is a host; a switch with hosts next to it is a leaf. Edges expand by their slices:
``many2many`` joins all with all, ``one2one`` in order, ``ring`` each with the next. The older ``connections:
[a.0.link.b.0]`` is read too.

Source: Keysight/infragraph schema and docs/src/examples.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import Annotated

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from topologies.errors import BadInput
from topologies.readers.bounded import json_root, yaml_root
from topologies.readers.seen import SWITCH, Device, Group, HostSeen, Nic, Seen, Wire
from topologies.records import validation_text

TITLE = "InfraGraph"
MOST_EDGES = 400_000
MOST_HOSTS = 20_000
_SLICED = re.compile(r"([A-Za-z0-9_.\-]{1,80})(?:\[(-?[0-9]{0,7})(:?)(-?[0-9]{0,7})\])?")
Name = Annotated[str, Field(max_length=200)]
Names = Annotated[str, Field(max_length=400)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)


class _End(_Record):
    component: Names
    instance: Names = ""
    device: Names = ""


class _Edge(_Record):
    ep1: _End
    ep2: _End
    link: Name = ""
    scheme: Name = "many2many"


class _Bandwidth(_Record):
    gigabits_per_second: float | None = None
    gigabytes_per_second: float | None = Field(
        default=None, validation_alias=AliasChoices("gigabytes_per_second", "giga_bytes_per_second")
    )


class _Physical(_Record):
    bandwidth: _Bandwidth | None = None


class _Link(_Record):
    name: Name
    bandwidth: _Bandwidth | None = None
    physical: _Physical | None = None

    def bytes_per_s(self) -> float | None:
        """Bytes a second of the link, where it says."""
        told = self.bandwidth or (self.physical.bandwidth if self.physical else None)
        if told is None:
            return None
        if told.gigabytes_per_second is not None:
            return told.gigabytes_per_second * 1e9
        return None if told.gigabits_per_second is None else told.gigabits_per_second * 1e9 / 8


class _Component(_Record):
    name: Name
    count: Annotated[int, Field(ge=0, le=100_000)] | None = None
    choice: Name = Field(default="", validation_alias=AliasChoices("choice", "type"))


class _Device(_Record):
    name: Name
    components: Annotated[list[_Component], Field(max_length=1000)] = []
    links: Annotated[list[_Link], Field(max_length=1000)] = []
    edges: Annotated[list[_Edge], Field(max_length=20_000)] = []
    connections: Annotated[list[Names], Field(max_length=100_000)] = []

    def count(self, name: str) -> int:
        """Components of that name: as many as the device says, or as its connections number."""
        told = next((c.count for c in self.components if c.name == name), None)
        return self.numbered.get(name, 1) if told is None else told

    @cached_property
    def numbered(self) -> dict[str, int]:
        """How many of each component the connections number."""
        return _numbered(self.connections)


def _numbered(connections: list[str]) -> dict[str, int]:
    """One more than the highest number behind each name."""
    found: dict[str, int] = {}
    for text in connections:
        words = text.split(".")
        for name, number in pairwise(words):
            if number.isascii() and number.isdecimal() and len(number) < 7:
                found[name] = max(found.get(name, 1), int(number) + 1)
    return found


class _Instance(_Record):
    name: Name
    device: Name
    count: Annotated[int, Field(ge=1, le=100_000)] | None = None


class _Graph(_Record):
    name: Name = ""
    devices: Annotated[list[_Device], Field(min_length=1, max_length=2000)]
    links: Annotated[list[_Link], Field(max_length=1000)] = []
    instances: Annotated[list[_Instance], Field(max_length=2000)] = []
    edges: Annotated[list[_Edge], Field(max_length=20_000)] = []
    connections: Annotated[list[Names], Field(max_length=MOST_EDGES)] = []

    @cached_property
    def numbered(self) -> dict[str, int]:
        """How many of each instance the connections number."""
        return _numbered(self.connections)

    @cached_property
    def used(self) -> dict[str, set[str]]:
        """Names of the links that leave each instance."""
        links, instances = {link.name for link in self.links}, {instance.name for instance in self.instances}
        found: dict[str, set[str]] = defaultdict(set)
        for edge in self.edges:
            for end in (edge.ep1, edge.ep2):
                found[_base(end.instance)].add(edge.link)
        for text in self.connections:
            words = set(text.split("."))
            for name in words & instances:
                found[name] |= words & links
        return found


def recognises(text: str) -> bool:
    """Whether the text looks like an InfraGraph."""
    head = text[:400_000]
    return re.search(r'"?devices"?\s*:', head) is not None and re.search(r'"?components"?\s*:', head) is not None


def read(text: str, origin: str) -> Seen:
    """Hosts, their links and leaf switches. Raises ``BadInput`` naming every field that is wrong."""
    root = json_root(text, origin) if text.lstrip().startswith("{") else yaml_root(text, origin)
    if isinstance(root, dict) and isinstance(root.get("infrastructure"), dict):
        root = root["infrastructure"]
    try:
        graph = _Graph.model_validate(root)
    except ValidationError as error:
        raise BadInput(f"{origin}: {validation_text(error)[:400]}; see the schema of InfraGraph") from error
    devices = {device.name: device for device in graph.devices}
    kinds = {name: device for name, device in devices.items() if _components(device, "xpu")}
    if not kinds:
        raise BadInput(f"{origin}: no device has components of the choice xpu; a host holds some")
    hosts, owners = _hosts(graph, devices, kinds, origin)
    return Seen(origin, tuple(hosts), tuple(_leaves(graph, owners, origin)))


def _components(device: _Device, choice: str) -> list[str]:
    return [component.name for component in device.components if component.choice == choice]


def _hosts(
    graph: _Graph, devices: dict[str, _Device], kinds: dict[str, _Device], origin: str
) -> tuple[list[HostSeen], dict[str, int]]:
    """Every host, and how many there are by the instance's name; one nameless host where there is no instance."""
    owners = {instance.name: _instances(graph, instance) for instance in graph.instances if instance.device in kinds}
    if sum(owners.values()) > MOST_HOSTS:
        raise BadInput(f"{origin}: {sum(owners.values())} hosts in one graph; the limit is {MOST_HOSTS}")
    wanted = {instance.device for instance in graph.instances if instance.device in kinds} or set(kinds)
    shapes = {name: _host(device, graph, devices, origin) for name, device in kinds.items() if name in wanted}
    if not owners:
        return [next(iter(shapes.values()))], {}
    found = []
    for instance in graph.instances:
        for k in range(owners.get(instance.name, 0)):
            one = shapes[instance.device]
            found.append(
                HostSeen(f"{instance.name}-{k}", origin, one.devices, one.wires, one.nics, machine=one.machine)
            )
    return found, owners


def _instances(graph: _Graph, instance: _Instance) -> int:
    return graph.numbered.get(instance.name, 1) if instance.count is None else instance.count


def _host(device: _Device, graph: _Graph, devices: dict[str, _Device], origin: str) -> HostSeen:
    xpus = _components(device, "xpu")
    names = [f"{name}.{k}" for name in xpus for k in range(min(device.count(name), 1025))]
    if len(names) > 1024:
        raise BadInput(f"{origin}: device {device.name!r} has more than 1024 xpu components; a host holds fewer")
    nics = [name for name in _components(device, "nic") if name not in xpus]
    nics += [c.name for c in device.components if c.choice == "device" and _is_nic(devices.get(c.name))]
    ports = [f"{name}.{k}" for name in nics for k in range(min(device.count(name), 1024))]
    speed = _outside(graph, device.name)
    return HostSeen(
        "",
        origin,
        tuple(Device(name, origin) for name in names),
        _told_wires(tuple(_wires(device, set(names), origin)), bool(device.edges or device.connections)),
        tuple(Nic(port, origin, speed) for port in ports) or None,
        machine=device.name,
    )


def _is_nic(device: _Device | None) -> bool:
    return (
        device is not None
        and not _components(device, "xpu")
        and bool(_components(device, "nic") or _components(device, "port"))
    )


def _outside(graph: _Graph, device: str) -> float | None:
    """Bytes a second of the slowest link that leaves a host of that kind."""
    links = {link.name: link.bytes_per_s() for link in graph.links}
    used = {name for each in graph.instances if each.device == device for name in graph.used.get(each.name, ())}
    speeds = [speed for name in used if (speed := links.get(name))]
    return min(speeds, default=None)


def _base(text: str) -> str:
    return text.split("[")[0]


def _told_wires(wires: tuple[Wire, ...], edges: bool) -> tuple[Wire, ...] | None:
    """The links, or ``None`` where the graph does not say how fast they are: an edge may stand for several."""
    return wires if edges and all(wire.bytes_per_s for wire in wires) else None


def _wires(device: _Device, names: set[str], origin: str) -> Iterator[Wire]:
    """Links between xpus, or from one to a component that is a switch and no CPU, NIC or PCIe switch."""
    speeds = {link.name: link.bytes_per_s() for link in device.links}
    kinds = {c.name: c.choice for c in device.components}
    for a, b, link in _pairs(device, origin):
        if "pci" in link.lower() or "fabric" in link.lower():
            continue
        near, far = (a, b) if a in names else (b, a)
        if near in names:
            end = far if far in names else SWITCH
            if end == SWITCH and kinds.get(far.rpartition(".")[0]) in ("cpu", "nic", "memory", "device"):
                continue
            yield Wire((near, end), link[:40] or "link", 1, origin, speeds.get(link))


def _pairs(device: _Device, origin: str) -> Iterator[tuple[str, str, str]]:
    """Both ends and the link of every edge inside a device."""
    count = 0
    for edge in device.edges:
        a, b = _slice(edge.ep1.component, device, origin), _slice(edge.ep2.component, device, origin)
        for pair in _joined(a, b, edge.scheme, origin):
            count += 1
            if count > MOST_EDGES:
                raise BadInput(f"{origin}: device {device.name!r} has more than {MOST_EDGES} edges")
            yield (*pair, edge.link)
    for text in device.connections:
        words = text.split(".")
        if len(words) == 5:
            yield f"{words[0]}.{words[1]}", f"{words[3]}.{words[4]}", words[2]


def _joined(a: list[str], b: list[str], scheme: str, origin: str) -> Iterator[tuple[str, str]]:
    if scheme == "one2one":
        yield from zip(a, b, strict=False)
    elif scheme == "ring":
        yield from zip(a, b[1:] + b[:1], strict=False)
    elif scheme == "many2many":
        if len(a) * len(b) > MOST_EDGES:
            raise BadInput(f"{origin}: an edge joins {len(a)} x {len(b)} components; the limit is {MOST_EDGES}")
        yield from ((x, y) for x in a for y in b)
    else:
        raise BadInput(f"{origin}: the scheme of an edge is one2one, many2many or ring; got {scheme[:40]!r}")


def _slice(text: str, device: _Device, origin: str) -> list[str]:
    """Components that ``xpu[0:4]`` means, as ``xpu.0`` to ``xpu.3``; all of them without a slice."""
    name = _base(text)
    return [f"{name}.{k}" for k in _numbers(text, device.count(name), origin)]


def _numbers(text: str, count: int, origin: str) -> range:
    match = _SLICED.fullmatch(text)
    if match is None:
        raise BadInput(f"{origin}: {text[:60]!r} is no component with a slice like xpu[0:4]")
    if match[3] is None or not (match[2] or match[3]):
        return range(count)
    first, last = (int(part) if part not in ("", "-") else None for part in (match[2], match[4]))
    if not match[3]:
        return range(count)[first : (first or 0) + 1]
    return range(count)[first:last]


def _leaves(graph: _Graph, owners: dict[str, int], origin: str) -> Iterator[Group]:
    """A group a switch that hosts are plugged into, with what goes down; what goes up, other switches' edges tell."""
    links = {link.name: link.bytes_per_s() for link in graph.links}
    down: dict[str, float | None] = defaultdict(float)
    up: dict[str, float | None] = defaultdict(float)
    members: dict[str, dict[str, None]] = defaultdict(dict)
    for a, b, link in _ends(graph, origin):
        for near, far in ((a, b), (b, a)):
            if _base_of(near) in owners and _base_of(far) not in owners:
                members[far][near] = None
                down[far] = _plus(down[far], links.get(link))
            elif _base_of(near) not in owners and _base_of(far) not in owners:
                up[near] = _plus(up[near], links.get(link))
    for switch, hosts in members.items():
        yield Group(switch, "switch", 1, tuple(hosts), origin, down[switch], up.get(switch, 0.0))


def _base_of(node: str) -> str:
    return node.rpartition("-")[0]


def _plus(total: float | None, speed: float | None) -> float | None:
    return None if total is None or speed is None else total + speed


def _ends(graph: _Graph, origin: str) -> Iterator[tuple[str, str, str]]:
    """Instances at both ends, ``server-0`` and ``leaf-1``, and the link of every edge between instances."""
    counts = {instance.name: _instances(graph, instance) for instance in graph.instances}
    devices = {instance.name: instance.device for instance in graph.instances}
    kinds = {device.name: device for device in graph.devices}
    total = 0
    for edge in graph.edges:
        a, b = (_nodes(end, counts, devices, kinds, origin) for end in (edge.ep1, edge.ep2))
        for near, far in _joined(a, b, edge.scheme, origin):
            total += 1
            if total > MOST_EDGES:
                raise BadInput(f"{origin}: more than {MOST_EDGES} edges between instances")
            yield near, far, edge.link
    links = {each.name for each in graph.links}
    for text in graph.connections:
        words = text.split(".")
        at = [k for k, word in enumerate(words[:-1]) if word in counts and words[k + 1].isdecimal()]
        link = next((word for word in words if word in links), "")
        if len(at) >= 2:
            yield f"{words[at[0]]}-{int(words[at[0] + 1][:7])}", f"{words[at[1]]}-{int(words[at[1] + 1][:7])}", link


def _nodes(
    end: _End, counts: dict[str, int], devices: dict[str, str], kinds: dict[str, _Device], origin: str
) -> list[str]:
    """The instance of every component that an end means, each as often as it has such components."""
    name = _base(end.instance)
    if name not in counts:
        raise BadInput(f"{origin}: an edge names the instance {name[:60]!r}, which the graph does not list")
    device = kinds.get(devices[name])
    part = _base(end.component).split(".")[0]
    inside = len(_numbers(end.component, device.count(part) if device is not None else 1, origin))
    numbers = _numbers(end.instance, counts[name], origin)
    if inside * len(numbers) > MOST_EDGES:
        raise BadInput(f"{origin}: an end of an edge has {inside * len(numbers)} components; the limit is {MOST_EDGES}")
    return [f"{name}-{k}" for k in numbers for _ in range(inside)]
