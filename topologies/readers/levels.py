"""Switches and blocks as levels above hosts: sets of hosts that divide them evenly, with what goes down and up.

oversubscription = bytes that the hosts below can send / bytes that the switches send up
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from topologies.readers.seen import Group


@dataclass(frozen=True, slots=True)
class LevelSeen:
    """``groups`` groups of ``hosts`` hosts each; ``switches`` of them serve the same hosts, as rails do.

    Where the groups are not equally large, ``hosts`` is ``None``.
    """

    name: str
    kind: str
    hosts: int | None
    groups: int
    switches: int
    oversubscription: float | None
    source: str


def levels_of(
    groups: Sequence[Group], kept: set[str], short: Callable[[str], str]
) -> tuple[tuple[LevelSeen, ...], list[str]]:
    """Levels from the inside out that hold all ``kept`` hosts evenly, and what is odd about those that do not."""
    by_level: dict[int, list[Group]] = defaultdict(list)
    for group in groups:
        by_level[group.level].append(group)
    found, odd = [], []
    for level in sorted(by_level):
        one = _level(by_level[level], kept, short, odd)
        inner = next((each for each in reversed(found) if each.hosts is not None), None)
        if one is not None and (inner is None or _divides(inner, one, odd)):
            found.append(one)
    return tuple(found), odd


def _level(groups: list[Group], kept: set[str], short: Callable[[str], str], odd: list[str]) -> LevelSeen | None:
    """The level that these switches or blocks make, switches that share a host counted as one."""
    kind, source = groups[0].kind, groups[0].source
    shared = _sharing([(frozenset(map(short, group.hosts)) & kept, group) for group in groups])
    if not shared:
        return None
    uneven = sum(any(hosts != every for hosts, _ in members) for every, members in shared)
    if uneven:
        odd.append(f"{source}: {uneven} groups of {kind}es with hosts in common do not all serve the same hosts")
    if missing := len(kept) - sum(len(hosts) for hosts, _ in shared):
        odd.append(f"{source}: {missing} hosts are below no {kind} of a level; it is left out")
        return None
    sizes = Counter(len(hosts) for hosts, _ in shared)
    ratios = [_ratio([group for _, group in members]) for _, members in shared]
    ratio = max((each for each in ratios if each is not None), default=None)
    rails = max(len(members) for _, members in shared)
    size = next(iter(sizes)) if len(sizes) == 1 else None
    if size is None:
        spread = ", ".join(f"{count} of {hosts} hosts" for hosts, count in sorted(sizes.items()))
        odd.append(
            f"{source}: {kind}es of different sizes ({spread}); levels are even, so that of this one only what its "
            "uplinks take is kept, as if all traffic between hosts crossed them"
        )
    return LevelSeen(groups[0].name, kind, size, len(shared), rails, ratio, source)


def _sharing(
    groups: list[tuple[frozenset[str], Group]],
) -> list[tuple[frozenset[str], list[tuple[frozenset[str], Group]]]]:
    """Groups that have hosts in common, directly or over others, and all hosts of them."""
    parent = list(range(len(groups)))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    first: dict[str, int] = {}
    for k, (hosts, _) in enumerate(groups):
        for host in hosts:
            parent[root(k)] = root(first.setdefault(host, k))
    found: dict[int, list[tuple[frozenset[str], Group]]] = defaultdict(list)
    for k, each in enumerate(groups):
        if each[0]:
            found[root(k)].append(each)
    return [(frozenset().union(*(hosts for hosts, _ in members)), members) for members in found.values()]


def _ratio(groups: list[Group]) -> float | None:
    """Down over up of switches that serve the same hosts; ``None`` where nothing goes up or no speed is told."""
    if any(group.down_bytes_per_s is None or group.up_bytes_per_s is None for group in groups):
        return None
    down, up = sum(g.down_bytes_per_s or 0 for g in groups), sum(g.up_bytes_per_s or 0 for g in groups)
    return max(1.0, down / up) if up else None


def _divides(inner: LevelSeen, outer: LevelSeen, odd: list[str]) -> bool:
    if outer.hosts is None or inner.hosts is None:
        return True
    if outer.hosts % inner.hosts:
        odd.append(
            f"{outer.source}: {outer.hosts} hosts a {outer.kind} are no multiple of the {inner.hosts} below one; "
            "the outer level is left out"
        )
        return False
    return outer.hosts > inner.hosts
