"""Slurm's ``topology.yaml``: several topologies, of which the cluster's default counts, else the first.

Source: topology.yaml(5); where the file exists, Slurm ignores ``topology.conf``.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from topologies.errors import BadInput
from topologies.readers.bounded import yaml_root
from topologies.readers.hostlist import expand
from topologies.readers.seen import Seen
from topologies.readers.slurm_tree import Switch, block_groups, tree_groups
from topologies.records import validation_text

TITLE = "Slurm topology.yaml"
_FIRST = re.compile(r"^[ \t]{0,64}-?[ \t]{0,64}topology[ \t]{0,64}:", re.MULTILINE)
Name = Annotated[str, Field(min_length=1, max_length=256)]
Hosts = Annotated[str, Field(max_length=100_000)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)


class _Switch(_Record):
    switch: Name
    nodes: Hosts = ""
    children: Hosts = ""


class _Tree(_Record):
    switches: list[_Switch]


class _Block(_Record):
    block: Name
    nodes: Hosts = ""


class _Blocks(_Record):
    block_sizes: Annotated[list[Annotated[int, Field(ge=1, le=10**6)]], Field(max_length=16)] = []
    blocks: list[_Block]


class _Topology(_Record):
    topology: Name
    cluster_default: bool = False
    tree: _Tree | None = None
    block: _Blocks | None = None
    flat: bool = False


class _File(_Record):
    topologies: Annotated[list[_Topology], Field(min_length=1, max_length=1000)]


def recognises(text: str) -> bool:
    """Whether the text begins like a list of topologies."""
    return _FIRST.search(text[:20_000]) is not None


def read(text: str, origin: str) -> Seen:
    """The groups of hosts of the topology that counts. Raises ``BadInput`` naming every field that is wrong."""
    try:
        every = _File.model_validate({"topologies": yaml_root(text, origin)}).topologies
    except ValidationError as error:
        raise BadInput(f"{origin}: {validation_text(error)[:400]}; see topology.yaml(5)") from error
    chosen = next((each for each in every if each.cluster_default), every[0])
    kinds = [each for each in (chosen.tree, chosen.block, chosen.flat or None) if each is not None]
    if len(kinds) != 1:
        raise BadInput(f"{origin}: topology {chosen.topology[:60]!r} has one of tree, block and flat; got {len(kinds)}")
    others = [each.topology[:60] for each in every if each is not chosen]
    odd = (f"{origin}: the topology {chosen.topology[:60]!r} counts, not {', '.join(others[:4])}",) if others else ()
    if chosen.tree is not None:
        return Seen(origin, groups=tree_groups(_switches(chosen.tree, origin), origin), oddities=odd)
    if chosen.block is not None:
        blocks = [
            (each.block, expand(each.nodes, f"{origin}, block {each.block[:60]}")) for each in chosen.block.blocks
        ]
        return Seen(origin, groups=block_groups(blocks, chosen.block.block_sizes, origin), oddities=odd)
    return Seen(origin, oddities=(*odd, f"{origin}: the topology is flat: it names no switches"))


def _switches(tree: _Tree, origin: str) -> list[Switch]:
    found = []
    for each in tree.switches:
        place = f"{origin}, switch {each.switch[:60]}"
        nodes = expand(each.nodes, place)
        found.append(Switch(each.switch, nodes, () if nodes else expand(each.children, place)))
    return found
