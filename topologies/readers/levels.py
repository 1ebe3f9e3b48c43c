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
    """``groups`` groups of ``hosts`` hosts each; ``switches`` of them serve the same hosts, as rails do."""

    name: str
    kind: str
    hosts: int
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
        if one is not None and (not found or _divides(found[-1], one, odd)):
            found.append(one)
    return tuple(found), odd


def _level(groups: list[Group], kept: set[str], short: Callable[[str], str], odd: list[str]) -> LevelSeen | None:
    same: dict[frozenset[str], list[Group]] = defaultdict(list)
    for group in groups:
        hosts = frozenset(map(short, group.hosts)) & kept
        if hosts:
            same[hosts].append(group)
    if not same:
        return None
    what, source = groups[0].kind, groups[0].source
    named = Counter(host for hosts in same for host in hosts)
    if any(count > 1 for count in named.values()):
        host = next(host for host, count in named.items() if count > 1)
        odd.append(f"{source}: {host} is below several {what}es that serve different hosts; that level is left out")
        return None
    if len(named) < len(kept):
        odd.append(f"{source}: {len(kept) - len(named)} hosts are below no {what} of a level; it is left out")
        return None
    sizes = Counter(map(len, same))
    size, _ = sizes.most_common(1)[0]
    if len(sizes) > 1:
        spread = ", ".join(f"{count} of {hosts} hosts" for hosts, count in sorted(sizes.items()))
        odd.append(f"{source}: {what}es of different sizes ({spread}); levels are even, so this one is left out")
        return None
    ratio = max((r for each in same.values() if (r := _ratio(each)) is not None), default=None)
    return LevelSeen(groups[0].name, what, size, len(same), max(map(len, same.values())), ratio, source)


def _ratio(groups: list[Group]) -> float | None:
    """Down over up of switches that serve the same hosts; ``None`` where nothing goes up or no speed is told."""
    if any(group.down_bytes_per_s is None or group.up_bytes_per_s is None for group in groups):
        return None
    down, up = sum(g.down_bytes_per_s or 0 for g in groups), sum(g.up_bytes_per_s or 0 for g in groups)
    return max(1.0, down / up) if up else None


def _divides(inner: LevelSeen, outer: LevelSeen, odd: list[str]) -> bool:
    if outer.hosts % inner.hosts:
        odd.append(
            f"{outer.source}: {outer.hosts} hosts a {outer.kind} are no multiple of the {inner.hosts} below one; "
            "the outer level is left out"
        )
        return False
    return outer.hosts > inner.hosts
