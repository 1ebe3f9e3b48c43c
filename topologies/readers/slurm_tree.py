"""Slurm's switches and blocks as groups of hosts, from either of its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from topologies.errors import BadInput
from topologies.readers.hostlist import MOST_NAMES
from topologies.readers.seen import Group

DEEPEST = 16
MOST_SWITCHES = 50_000


@dataclass(frozen=True, slots=True)
class Switch:
    """A switch as the file names it: hosts below it, or switches."""

    name: str
    nodes: tuple[str, ...]
    children: tuple[str, ...]


def tree_groups(switches: Sequence[Switch], origin: str) -> tuple[Group, ...]:
    """A group a switch, level 1 for those with hosts. Raises ``BadInput`` for unknown children, loops and doubles."""
    by_name = {switch.name: switch for switch in switches}
    if len(by_name) != len(switches) or len(switches) > MOST_SWITCHES:
        raise BadInput(f"{origin}: {len(switches)} switches with {len(by_name)} names; every switch has its own name")
    hosts = {switch.name: dict.fromkeys(switch.nodes) for switch in switches}
    levels = {switch.name: 1 for switch in switches if not switch.children}
    open_ = [switch for switch in switches if switch.children]
    for _ in range(DEEPEST):
        ready = [
            switch
            for switch in open_
            if all(_known(child, by_name, switch, origin) in levels for child in switch.children)
        ]
        for switch in ready:
            levels[switch.name] = 1 + max(levels[child] for child in switch.children)
            for child in switch.children:
                hosts[switch.name] |= hosts[child]
        open_ = [switch for switch in open_ if switch.name not in levels]
        if not open_:
            break
    if open_:
        raise BadInput(f"{origin}: switch {open_[0].name[:60]!r} is below itself, or the tree is deeper than {DEEPEST}")
    _check(hosts, levels, origin)
    return tuple(Group(name, "switch", levels[name], tuple(hosts[name]), origin) for name in hosts if hosts[name])


def _known(child: str, by_name: dict[str, Switch], parent: Switch, origin: str) -> str:
    if child not in by_name:
        raise BadInput(f"{origin}: switch {parent.name[:60]!r} names {child[:60]!r}, which the file does not describe")
    return child


def _check(hosts: dict[str, dict[str, None]], levels: dict[str, int], origin: str) -> None:
    total = sum(len(each) for name, each in hosts.items() if levels[name] == 1)
    if total > MOST_NAMES:
        raise BadInput(f"{origin}: more than {MOST_NAMES} hosts below switches")
    if total == 0:
        raise BadInput(f"{origin}: no switch has hosts; was the file broken off?")


def block_groups(blocks: Sequence[tuple[str, tuple[str, ...]]], sizes: Sequence[int], origin: str) -> tuple[Group, ...]:
    """A group a block, and one for as many neighbouring blocks as each larger size of ``BlockSizes`` holds.

    Source: topology.conf(5): blocks are joined in the order of the file, to multiples of the first.
    """
    if not any(nodes for _, nodes in blocks):
        raise BadInput(f"{origin}: no block has hosts; was the file broken off?")
    groups = [Group(name, "block", 1, nodes, origin) for name, nodes in blocks if nodes]
    for level, size in enumerate(sorted(set(sizes))[1:], start=2):
        joined = max(1, size // max(1, min(sizes)))
        for first in range(0, len(blocks), joined):
            nodes = tuple(node for _, each in blocks[first : first + joined] for node in each)
            groups.append(Group(blocks[first][0], "block", level, nodes, origin))
    return tuple(groups)


def joined_groups(joined: Sequence[tuple[str, tuple[str, ...], int]], origin: str) -> tuple[Group, ...]:
    """A group for each set of blocks that are listed as joined, a level for each size, the smallest next to blocks.

    The size is the one listed, as a block may have fewer hosts (one is drained); 0 where none is, and hosts count.
    """
    sized = [(name, nodes, size or len(nodes)) for name, nodes, size in joined if nodes]
    sizes = sorted({size for *_, size in sized})
    return tuple(Group(name, "block", 2 + sizes.index(size), nodes, origin) for name, nodes, size in sized)
