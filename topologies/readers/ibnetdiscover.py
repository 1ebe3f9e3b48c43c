"""``ibnetdiscover``: switches and adapters of an InfiniBand fabric, and what is plugged into what at which speed.

    Switch  65 "S-2c5e..."   # "MF0;leaf1:MQM9701/U1" ...          Ca  1 "H-e09d..."   # "node1 mlx5_0"
    [1]  "H-e09d..."[1](...)   # "node1 mlx5_0" lid 647 4xNDR

Leaves are switches with hosts; a level above is made of the switches next to the one below, and what hangs together
through it is one group.

Source: rdma-core infiniband-diags, ibnetdiscover(8); lane rates: InfiniBand Architecture, volume 1.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from topologies.errors import BadInput
from topologies.readers.seen import Group, HostSeen, Nic, Seen

TITLE = "ibnetdiscover"
MOST_NODES = 200_000
LONGEST = 2000
_NODE = re.compile(r'(Switch|Ca|Rt)\t ?([0-9]{1,4}) "([^"]{1,64})"\s*# "([^"]{0,200})".{0,200}')
_PORT = re.compile(r'\[([0-9]{1,4})\](?:\([0-9a-f]{1,32}\))?\s+"([^"]{1,64})"\[[0-9]{1,4}\](.{0,600})')
_QUOTED = re.compile(r'#[^"]{0,60}"([^"]{0,200})"')
_SPEED = re.compile(r"([0-9]{1,2})x([A-Z]{2,4}[0-9]{0,3})\s*$")
_LANES = {"SDR": 2.0, "DDR": 4.0, "QDR": 8.0, "FDR10": 10.0, "FDR": 13.64, "EDR": 25.0, "HDR": 50.0, "NDR": 100.0,
          "XDR": 200.0}  # fmt: skip
"""Gb/s of data on a lane."""
_HOST = re.compile(r"(\S{1,100})\s+(?:HCA-[0-9]{1,3}|mlx[0-9]_\S{1,20}|ib\S{1,20}|hfi1_[0-9]{1,3}|bnxt\S{1,20})")


@dataclass
class _Node:
    kind: str
    name: str
    title: str
    ports: list[tuple[str, float | None]] = field(default_factory=list)
    peers: dict[str, str] = field(default_factory=dict)


def recognises(text: str) -> bool:
    """Whether a line of the text describes a switch or an adapter as ``ibnetdiscover`` does."""
    return any(_NODE.fullmatch(line) for line in text[:200_000].splitlines())


def read(text: str, origin: str) -> Seen:
    """Hosts with their ports, and switches. Raises ``BadInput`` for a text without hosts or one that was cut."""
    nodes = _nodes(text, origin)
    hosts, oddities = _hosts(nodes, origin)
    if not hosts:
        raise BadInput(f"{origin}: no adapter in it names its host; give the output of ibnetdiscover, run as root")
    if not any(node.ports for node in nodes.values()):
        raise BadInput(f"{origin}: no cable in it; run ibnetdiscover on a host whose port is up, as root")
    oddities += _cut(nodes, origin)
    levels = _levels(nodes, hosts)
    seen = [
        HostSeen(name, origin, nics=tuple(Nic(port, origin, speed, "infiniband") for port, speed in ports))
        for name, ports in _ports(nodes, hosts).items()
    ]
    return Seen(origin, tuple(seen), tuple(_groups(nodes, hosts, levels, origin)), oddities=tuple(oddities))


def _nodes(text: str, origin: str) -> dict[str, _Node]:
    nodes: dict[str, _Node] = {}
    last: _Node | None = None
    for line in text.splitlines():
        if len(line) > LONGEST:
            raise BadInput(f"{origin} has a line of {len(line)} letters; ibnetdiscover writes at most {LONGEST}")
        if match := _NODE.fullmatch(line):
            last = nodes.setdefault(match[3], _Node(match[1], match[3], match[4]))
            if len(nodes) > MOST_NODES:
                raise BadInput(f"{origin} has more than {MOST_NODES} switches and adapters")
        elif last is not None and (match := _PORT.fullmatch(line.rstrip())):
            last.ports.append((match[2], _bytes_per_s(match[3], origin)))
            if title := _QUOTED.search(match[3]):
                last.peers[match[2]] = title[1]
        elif line.startswith("[") and last is not None:
            raise BadInput(f"{origin}: {line[:60]!r} is no port of ibnetdiscover; was the text cut or wrapped?")
    return nodes


def _bytes_per_s(rest: str, origin: str) -> float | None:
    match = _SPEED.search(rest)
    if match is None:
        return None
    lane = _LANES.get(match[2]) or _LANES.get(match[2].rstrip("0123456789"))
    if lane is None:
        raise BadInput(f"{origin}: the speed {match[0].strip()!r} is of no known InfiniBand rate ({', '.join(_LANES)})")
    return int(match[1]) * lane * 1e9 / 8


def _hosts(nodes: dict[str, _Node], origin: str) -> tuple[dict[str, str], list[str]]:
    """Host's name by adapter, as the adapter or the port that it is plugged into says.

    SHARP's own adapters are in switches and are no hosts.
    """
    titles = {peer: title for node in nodes.values() if node.kind == "Switch" for peer, title in node.peers.items()}
    titles |= {node.name: node.title for node in nodes.values()}
    others = {node.name for node in nodes.values() if node.kind != "Ca"}
    hosts, unnamed = {}, 0
    for name, title in titles.items():
        if name in others or name.startswith("S-") or "aggregation node" in title.lower():
            continue
        match = _HOST.fullmatch(title.strip())
        unnamed += match is None
        if match is not None:
            hosts[name] = match[1]
    odd = [f"{origin}: {unnamed} adapters do not name their host and are left out"] if unnamed else []
    return hosts, odd


def _cut(nodes: dict[str, _Node], origin: str) -> list[str]:
    """Peers that a port names and no block describes: what a text that was broken off leaves behind."""
    missing = {peer for node in nodes.values() for peer, _ in node.ports if peer not in nodes}
    if not missing:
        return []
    return [f"{origin}: {len(missing)} switches or adapters are named but not described; was the text broken off?"]


def _ports(nodes: dict[str, _Node], hosts: dict[str, str]) -> dict[str, list[tuple[str, float | None]]]:
    """Adapters and speeds of every host's ports."""
    found: dict[str, list[tuple[str, float | None]]] = {name: [] for name in hosts.values()}
    described = {name for name in hosts if name in nodes and nodes[name].ports}
    for name in described:
        found[hosts[name]] += [(name, speed) for _, speed in nodes[name].ports]
    for node in nodes.values():
        found_here = [(peer, speed) for peer, speed in node.ports if peer in hosts and peer not in described]
        for peer, speed in found_here:
            found[hosts[peer]].append((peer, speed))
    return found


def _levels(nodes: dict[str, _Node], hosts: dict[str, str]) -> dict[str, int]:
    """Level of every switch: 1 where hosts are plugged in, one more than the nearest below otherwise."""
    levels = {n: 1 for n, node in nodes.items() if node.kind == "Switch" and any(p in hosts for p, _ in node.ports)}
    fresh, level = list(levels), 1
    while fresh:
        above = {peer for name in fresh for peer, _ in nodes[name].ports}
        fresh = [peer for peer in above if peer in nodes and nodes[peer].kind == "Switch" and peer not in levels]
        level += 1
        levels |= dict.fromkeys(fresh, level)
    return levels


def _groups(nodes: dict[str, _Node], hosts: dict[str, str], levels: dict[str, int], origin: str) -> Iterator[Group]:
    """A group a leaf, and above that one for all that hangs together through the switches of a level."""
    below: dict[str, dict[str, None]] = {}
    for name, level in levels.items():
        if level == 1:
            below[name] = dict.fromkeys(hosts[peer] for peer, _ in nodes[name].ports if peer in hosts)
            down = _sum(speed for peer, speed in nodes[name].ports if peer in hosts)
            up = _sum(speed for peer, speed in nodes[name].ports if levels.get(peer, 0) > 1)
            yield Group(nodes[name].title, "switch", 1, tuple(below[name]), origin, down, up)
    for level in range(2, max(levels.values(), default=1) + 1):
        found = dict(_joined(nodes, levels, below, level))
        for name, (members, switches) in found.items():
            down = _sum(s for switch in switches for peer, s in nodes[switch].ports if levels.get(peer) == level - 1)
            up = _sum(s for switch in switches for peer, s in nodes[switch].ports if levels.get(peer, 0) > level)
            yield Group(nodes[name].title, "switch", level, members, origin, down, up)
        below = {switch: dict.fromkeys(members) for members, switches in found.values() for switch in switches}


def _joined(
    nodes: dict[str, _Node], levels: dict[str, int], below: dict[str, dict[str, None]], level: int
) -> Iterator[tuple[str, tuple[tuple[str, ...], list[str]]]]:
    """Hosts and switches of each part of the fabric that the switches of ``level`` hold together."""
    left = {name for name, each in levels.items() if each == level}
    owners: dict[str, list[str]] = defaultdict(list)
    for name in left:
        for peer, _ in nodes[name].ports:
            if levels.get(peer) == level - 1:
                owners[peer].append(name)
    for first in sorted(left):
        if first not in left:
            continue
        open_, switches, members = [first], [], {}
        left.discard(first)
        while open_:
            switch = open_.pop()
            switches.append(switch)
            for peer, _ in nodes[switch].ports:
                if levels.get(peer) == level - 1:
                    members |= below.get(peer, {})
                    fresh = [other for other in owners[peer] if other in left]
                    left.difference_update(fresh)
                    open_ += fresh
        yield first, (tuple(members), switches)


def _sum(speeds: Iterator[float | None]) -> float | None:
    """The sum, or nothing where one is not told."""
    every = list(speeds)
    return None if any(speed is None for speed in every) else sum(speed for speed in every if speed is not None)
