"""Several files merged into the one cluster that they show: how many hosts of which kind, below which switches.

Descriptions without a host's name hold for every host; those with one for that host. The commonest kind of host makes
the cluster. Hosts that a file shows by name with fewer devices, or fewer or slower NICs, are its exceptions where no
file shows switches; others that differ are said and left out, and so are machines on the fabric that are no such hosts.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from topologies.errors import BadInput
from topologies.readers.facts import Fact
from topologies.readers.hostlist import expand
from topologies.readers.levels import LevelSeen, levels_of
from topologies.readers.nearest import holds_tiers, nics_unlike
from topologies.readers.recognised import host_as_seen
from topologies.readers.seen import HostSeen, Measured, Seen
from topologies.readers.shape import Shape, shape_of
from topologies.readers.slower import Slower, host_is_a_domain, less_of, slower_hosts
from topologies.units import quantity_text

MOST_HOSTS = 2**21
MOST_TEXTS = 50
_ADDRESS = re.compile(r"[0-9.]+|.*:.*")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user says beside the files; it goes before what they tell. Names are those of the catalogue.

    ``only`` is a list of hosts as Slurm writes it, ``gpu[01-16]``: others are left out.
    """

    accelerator: str | None = None
    like: str | None = None
    fabric: str | None = None
    facility: str | None = None
    hosts: int | None = None
    nics: int | None = None
    scale_up_bytes_per_s: float | None = None
    name: str | None = None
    only: str | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """The cluster that files show; ``lost`` is what it does not hold, ``oddities`` what is strange.

    ``slower`` are hosts among ``names`` that have less than the others.
    """

    shape: Shape
    hosts: Fact[int]
    names: tuple[str, ...]
    domain_hosts: Fact[int] | None
    levels: tuple[LevelSeen, ...]
    measured: tuple[Measured, ...]
    sources: tuple[str, ...]
    oddities: tuple[str, ...]
    lost: tuple[str, ...]
    slower: tuple[Slower, ...] = ()


def draw(seen: Sequence[Seen], asked: Asked) -> Drawn:
    """The cluster of all files. Raises ``BadInput`` where they do not tell enough, naming the option that would."""
    seen = _narrowed(seen, asked.only)
    every = _described([host for each in seen for host in each.hosts], asked)
    anywhere = [host for host in every if not host.name] + _like_hosts(asked, every)
    groups = [group for each in seen for group in each.groups]
    named, lost = _by_name(every), list[str]()
    shapes = {
        name: shape_of([*told, *anywhere], asked.accelerator, asked.nics)
        for name, told in named.items()
        if any(host.devices for host in (*told, *anywhere))
    }
    grouped = {host: None for group in groups for host in map(short, group.hosts)}
    oddities = [text for each in seen for text in each.oddities]
    slower: list[Slower] = []
    if shapes:
        shape, kept, others = _commonest(shapes, grouped, lost, oddities)
        if not groups and asked.hosts is None and not any(each.measured for each in seen):
            shown = [name for name, told in named.items() if any(host.devices for host in told)]
            slower, kept = _exceptions(shape, kept, others, shown, asked)
        lost += _differing(others, slower, len(shapes))
    else:
        shape, kept = shape_of(anywhere, asked.accelerator, asked.nics), tuple(grouped)
    levels, odd = levels_of(groups, set(kept), short)
    if asked.hosts is not None and kept and asked.hosts != len(kept):
        levels = ()
        lost.append(f"--hosts {asked.hosts} beside {len(kept)} hosts in files: their switches are left out")
    lost += _tiers(shape, asked)
    domain = _domain(named, kept, oddities)
    oddities += [*shape.oddities, *odd, *nics_unlike(shape, asked.like)]
    return Drawn(
        shape=shape,
        hosts=_hosts(asked, kept, anywhere, [each.source for each in seen]),
        names=tuple(kept),
        domain_hosts=domain,
        levels=levels,
        measured=_measured(seen, shape, lost),
        sources=tuple(dict.fromkeys(each.source for each in seen)),
        oddities=_few(dict.fromkeys(oddities)),
        lost=_few(lost),
        slower=tuple(slower),
    )


def _measured(seen: Sequence[Seen], shape: Shape, lost: list[str]) -> tuple[Measured, ...]:
    """What was measured; among partitions nothing that tells of a whole package."""
    measured = tuple(row for each in seen for row in each.measured)
    if shape.partition is None or not measured:
        return measured
    lost.append(f"{measured[0].source}: what was measured among partitions tells no link of the whole package")
    return ()


def _few(texts: Iterable[str]) -> tuple[str, ...]:
    """The first of them, and how many more there are: a broken table gives a complaint a cell."""
    every = list(texts)
    more = (f"and {len(every) - MOST_TEXTS} more like these",) if len(every) > MOST_TEXTS else ()
    return (*every[:MOST_TEXTS], *more)


def _tiers(shape: Shape, asked: Asked) -> list[str]:
    """Memory that a cluster's file has no place for."""
    held = {"DRAM", "CXL-DRAM"} if holds_tiers(shape, asked.like) else {"DRAM"}
    other = Counter[str]()
    for memory in shape.memories:
        if memory.kind not in held:
            other[memory.kind] += round(memory.capacity_bytes)
    return [f"{quantity_text(size, 'B')} of {kind} a host: a cluster's file has no place for it"
            for kind, size in other.items()]  # fmt: skip


def _narrowed(seen: Sequence[Seen], only: str | None) -> Sequence[Seen]:
    """What the files show of the hosts in the list alone. Raises ``BadInput`` where that is none of theirs."""
    if only is None:
        return seen
    wanted = frozenset(map(short, expand(only, "--only")))
    named = [host.name for each in seen for host in each.hosts if host.name]
    named += [host for each in seen for group in each.groups for host in group.hosts]
    if not wanted & {short(name) for name in named}:
        told = _listed(list(dict.fromkeys(named))) or "none"
        raise BadInput(f"--only {only[:80]!r} names no host of the files; they name {told}")
    return [
        replace(
            each,
            hosts=tuple(host for host in each.hosts if not host.name or short(host.name) in wanted),
            groups=tuple(replace(g, hosts=tuple(h for h in g.hosts if short(h) in wanted)) for g in each.groups),
        )
        for each in seen
    ]


def short(name: str) -> str:
    """A host's name without its domain, in small letters; addresses stay as they are."""
    lower = name.strip().lower()
    return lower if _ADDRESS.fullmatch(lower) else lower.split(".")[0]


def _by_name(every: Sequence[HostSeen]) -> dict[str, list[HostSeen]]:
    named: dict[str, list[HostSeen]] = defaultdict(list)
    for host in every:
        if host.name:
            named[short(host.name)].append(host)
    if len(named) > MOST_HOSTS:
        raise BadInput(f"{len(named)} hosts in the files; the limit is {MOST_HOSTS}")
    return named


def _described(every: list[HostSeen], asked: Asked) -> list[HostSeen]:
    """Hosts as files describe them; what jobs used of them counts where no file and no user tells more."""
    told = asked.like is not None or any(host.devices and not host.used for host in every)
    return [host for host in every if not (told and host.used)]


def _like_hosts(asked: Asked, every: Sequence[HostSeen]) -> list[HostSeen]:
    """A host of the catalogue as if a file had shown it, where the user names one and no file shows devices."""
    if asked.like is None or any(host.devices for host in every):
        return []
    return [host_as_seen(asked.like)]


def _commonest(
    shapes: dict[str, Shape], grouped: dict[str, None], lost: list[str], oddities: list[str]
) -> tuple[Shape, tuple[str, ...], list[tuple[Shape, list[str]]]]:
    """The kind of host that most are, the hosts of that kind, and the other kinds with theirs.

    Hosts only named count as of that kind.
    """
    kinds = Counter(shape.key for shape in shapes.values())
    (key, count), *others = kinds.most_common()
    if others and others[0][1] == count:
        examples = [next(n for n, s in shapes.items() if s.key == k) for k, c in kinds.most_common(2)]
        raise BadInput(
            f"two kinds of hosts are equally many ({count} each): {examples[0]} has {shapes[examples[0]].text()}, "
            f"{examples[1]} has {shapes[examples[1]].text()}; read them apart and join them with '+' in --cluster"
            + "".join(f"; odd: {text}" for text in oddities[:2])
        )
    shape = next(s for s in shapes.values() if s.key == key)
    apart = []
    for other, _ in others:
        names = [name for name, each in shapes.items() if each.key == other]
        apart.append((shapes[names[0]], names))
    described = {name for name, each in shapes.items() if each.key == key}
    only_named = [name for name in grouped if name not in shapes]
    if only_named and len(shapes) < len(grouped) / 2:
        lost.append(f"{len(only_named)} hosts are only named ({_listed(only_named)}) and taken to be like the others")
        return shape, tuple(name for name in [*shapes, *only_named] if name in described or name not in shapes), apart
    if only_named:
        lost.append(f"{len(only_named)} machines on the fabric show no device and are left out: {_listed(only_named)}")
    return shape, tuple(name for name in shapes if name in described), apart


def _exceptions(
    shape: Shape, kept: tuple[str, ...], others: list[tuple[Shape, list[str]]], shown: list[str], asked: Asked
) -> tuple[list[Slower], tuple[str, ...]]:
    """Hosts that are shown by name and have less than regular ones, and all hosts with them, in the files' order."""
    if not host_is_a_domain(shape, asked.like) or shape.partition is not None:
        return [], kept
    by_name, regular = set(shown), set(kept)
    fewer = [(other, names) for other, names in others if by_name.issuperset(names) and less_of(shape, other)]
    mine = {name for _, names in fewer for name in names}
    in_order = regular <= by_name
    together = tuple(name for name in shown if name in mine or name in regular) if in_order else (*kept, *sorted(mine))
    return slower_hosts(shape, fewer, together), together


def _differing(others: list[tuple[Shape, list[str]]], slower: list[Slower], hosts: int) -> list[str]:
    """What is said of hosts that the cluster does not hold."""
    held = {name for each in slower for name in each.names}
    return [
        f"{len(names)} of {hosts} hosts differ and are left out: {_listed(names)} with {other.text()}"
        for other, names in others if not set(names) <= held
    ]  # fmt: skip


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _hosts(asked: Asked, kept: Sequence[str], anywhere: Sequence[HostSeen], sources: Sequence[str]) -> Fact[int]:
    if asked.hosts is not None:
        if not 1 <= asked.hosts <= MOST_HOSTS:
            raise BadInput(f"--hosts {asked.hosts} is outside 1 to {MOST_HOSTS}")
        return Fact(asked.hosts, "--hosts")
    if kept:
        alike = f", all as {anywhere[0].source} shows" if anywhere and any(host.devices for host in anywhere) else ""
        return Fact(len(kept), ", ".join(dict.fromkeys(sources)), note=_listed(kept) + alike)
    return Fact(1, anywhere[0].source if anywhere else sources[0], "assumed", "no file names hosts; --hosts N")


def _domain(named: dict[str, list[HostSeen]], kept: Sequence[str], oddities: list[str]) -> Fact[int] | None:
    """Hosts of a scale-up domain, where cliques are named: the commonest size."""
    told = {name: host for name in kept for host in named.get(name, ()) if host.domain}
    if not told:
        return None
    source = next(iter(told.values())).source
    sizes = Counter(Counter(host.domain for host in told.values()).values())
    (size, count), *others = sizes.most_common()
    if others or len(told) < len(kept):
        spread = ", ".join(f"{n} of {hosts} hosts" for hosts, n in sorted(sizes.items()))
        oddities.append(
            f"{source}: scale-up domains are {spread}, and {len(kept) - len(told)} hosts name none; all are taken to "
            f"have {size} hosts"
        )
    return Fact(size, source, note=f"{count} of that size")
