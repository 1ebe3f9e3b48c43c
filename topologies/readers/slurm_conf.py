"""Slurm's ``topology.conf``: a tree of switches, or blocks; also what ``scontrol show topology`` prints of them.

    SwitchName=leaf1 Nodes=tux[0-15]      SwitchName=spine Switches=leaf[1-4]      BlockName=b1 Nodes=tux[0-17]

Source: topology.conf(5). ``LinkSpeed`` has no unit, Slurm does not use it, and neither do we.
"""

from __future__ import annotations

import re

from topologies.errors import BadInput
from topologies.readers.hostlist import expand
from topologies.readers.seen import Seen
from topologies.readers.slurm_tree import Switch, block_groups, tree_groups

TITLE = "Slurm topology.conf"
_KEY = re.compile(r"([A-Za-z]{2,24})[ \t]{0,64}=[ \t]{0,64}([^\s=]{1,20000})(?=\s|$)")
_FIRST = re.compile(r"^[ \t]{0,64}(switchname|blockname|blocksizes)[ \t]{0,64}=", re.IGNORECASE | re.MULTILINE)


def recognises(text: str) -> bool:
    """Whether a line of the text begins like one of ``topology.conf``."""
    return _FIRST.search(text[:200_000]) is not None


def read(text: str, origin: str) -> Seen:
    """The groups of hosts of the file. Raises ``BadInput`` naming the line that is wrong."""
    switches: list[Switch] = []
    blocks: list[tuple[str, tuple[str, ...]]] = []
    sizes: list[int] = []
    speeds = False
    for number, line in enumerate(text.replace("\\\n", " ").splitlines(), start=1):
        fields = _fields(line.split("#")[0], f"{origin}, line {number}")
        speeds |= "linkspeed" in fields
        nodes = expand(fields.get("nodes", ""), f"{origin}, line {number}")
        if "switchname" in fields:
            children = expand(fields.get("switches", ""), f"{origin}, line {number}")
            switches.append(Switch(fields["switchname"], nodes, () if nodes else children))
        elif "blockname" in fields:
            blocks.append((fields["blockname"], nodes))
        elif "blocksizes" in fields:
            sizes = _sizes(fields["blocksizes"], f"{origin}, line {number}")
    if bool(switches) == bool(blocks):
        raise BadInput(f"{origin}: a topology.conf has lines with SwitchName= or with BlockName=, and not both")
    groups = tree_groups(switches, origin) if switches else block_groups(blocks, sizes, origin)
    odd = (f"{origin}: LinkSpeed has no unit and is not used",) if speeds else ()
    return Seen(origin, groups=groups, oddities=odd)


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
