"""Slurm's ``topology.conf``: a tree of switches, or blocks; also what ``scontrol show topology`` prints of them.

    SwitchName=leaf1 Nodes=tux[0-15]      SwitchName=spine Switches=leaf[1-4]      BlockName=b1 Nodes=tux[0-17]
    SwitchName=spine Level=1 Nodes=tux[0-63] Switches=leaf[1-4]      AggregatedBlock=b[1-2] Nodes=... BlockSize=36

What is printed names the hosts below every switch beside the switches, and its ``Level``, 0 next to hosts. In a file, a
switch with hosts is next to them whatever else it names, as Slurm takes it.

Source: topology.conf(5), scontrol(1). ``LinkSpeed`` has no unit, Slurm does not use it, and neither do we.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from topologies.errors import BadInput
from topologies.readers.hostlist import expand
from topologies.readers.seen import Group, Seen
from topologies.readers.slurm_tree import Switch, block_groups, joined_groups, tree_groups

TITLE = "Slurm topology.conf"
_KEY = re.compile(r"([A-Za-z]{2,24})[ \t]{0,64}=[ \t]{0,64}([^\s=]{1,20000})(?=\s|$)")
_FIRST = re.compile(
    r"^[ \t]{0,64}(switchname|blockname|blocksizes|aggregatedblock)[ \t]{0,64}=", re.IGNORECASE | re.MULTILINE
)


def recognises(text: str) -> bool:
    """Whether a line of the text begins like one of ``topology.conf``."""
    return _FIRST.search(text[:200_000]) is not None


def read(text: str, origin: str) -> Seen:
    """The groups of hosts of the file. Raises ``BadInput`` naming the line that is wrong."""
    lines = _lines(text, origin)
    switches = [_switch(fields, place) for place, fields in lines if "switchname" in fields]
    blocks = [(fields["blockname"], _nodes(fields, place)) for place, fields in lines if "blockname" in fields]
    if bool(switches) == bool(blocks):
        raise BadInput(f"{origin}: a topology.conf has lines with SwitchName= or with BlockName=, and not both")
    groups = tree_groups(switches, origin) if switches else _blocks(blocks, lines, origin)
    odd = (f"{origin}: LinkSpeed has no unit and is not used",) if any("linkspeed" in each for _, each in lines) else ()
    return Seen(origin, groups=groups, oddities=odd)


def _lines(text: str, origin: str) -> list[tuple[str, dict[str, str]]]:
    """Where each line begins, and its fields."""
    told = ((f"{origin}, line {number}", line) for number, line in _joined(text))
    return [(place, _fields(line, place)) for place, line in told if line.strip()]


def _joined(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments, those that end in a backslash with the next; as Slurm reads them, comments first."""
    first, parts = 1, []
    for number, line in enumerate(text.splitlines(), start=1):
        first = first if parts else number
        bare = line.split("#")[0]
        more = bare.rstrip().endswith("\\")
        parts.append(bare.rstrip()[:-1] if more else bare)
        if not more:
            yield first, "".join(parts)
            parts = []
    if parts:
        yield first, "".join(parts)


def _nodes(fields: dict[str, str], place: str) -> tuple[str, ...]:
    return expand(fields.get("nodes", ""), place)


def _switch(fields: dict[str, str], place: str) -> Switch:
    children, above = expand(fields.get("switches", ""), place), fields.get("level", "0") != "0"
    nodes = () if children and above else _nodes(fields, place)
    return Switch(fields["switchname"], nodes, () if nodes else children)


def _blocks(
    blocks: list[tuple[str, tuple[str, ...]]], lines: list[tuple[str, dict[str, str]]], origin: str
) -> tuple[Group, ...]:
    """Blocks, and those that are joined: as ``scontrol`` lists them, else as ``BlockSizes`` says."""
    joined = [
        (
            each["aggregatedblock"],
            _nodes(each, place),
            _sizes(each["blocksize"], place)[0] if "blocksize" in each else 0,
        )
        for place, each in lines
        if "aggregatedblock" in each
    ]
    sizes = next((_sizes(each["blocksizes"], place) for place, each in reversed(lines) if "blocksizes" in each), [])
    return (*block_groups(blocks, () if joined else sizes, origin), *joined_groups(joined, origin))


def _fields(line: str, place: str) -> dict[str, str]:
    """Keys in small letters, and values. Raises ``BadInput`` for anything between them."""
    rest = _KEY.sub("", line).strip()
    if rest:
        raise BadInput(f"{place}: {rest[:60]!r} is no key=value of a topology.conf")
    return {key.lower(): value for key, value in _KEY.findall(line)}


def _sizes(text: str, place: str) -> list[int]:
    if not re.fullmatch(r"[1-9][0-9]{0,6}(,[1-9][0-9]{0,6}){0,15}", text):
        raise BadInput(f"{place}: BlockSizes are numbers from 1 with commas between; got {text[:40]!r}")
    return [int(part) for part in text.split(",")]
