"""A cluster that was read, as tables and as JSON: levels, bandwidths, memory, sources, and what is odd."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from planner.clusters.differing import differing_json, differing_lines
from planner.clusters.inside_report import PORTS, TIERS, inside_json, port_rows, tier_rows
from topologies.cluster import Cluster
from topologies.readers.drawn import Drawn
from topologies.readers.facts import Fact
from topologies.units import quantity_text

if TYPE_CHECKING:
    from topologies.readers.detect import Answer
    from topologies.readers.levels import LevelSeen
    from topologies.readers.seen import Memory


def ready_view(cluster: Cluster) -> Group:
    """A cluster of the catalogue or of a TOML file: its parts and levels, and hosts that have less."""
    parts = [*_parts(cluster, [""] * len(cluster.levels)), *_insides(cluster)]
    return Group(*parts, *map(Text, differing_lines(cluster)))


def ready_json(cluster: Cluster) -> dict[str, Any]:
    """The same for programs; bandwidths in bytes a second, one direction."""
    parts = {kind: getattr(cluster, kind).name for kind in ("accelerator", "fabric", "facility")}
    sizes = {"devices": cluster.devices, "hosts": cluster.hosts, "devices_per_host": cluster.devices_per_host}
    inside = {"inside": inside_json(cluster)}
    return {
        "name": cluster.name,
        **sizes,
        **parts,
        "levels": _levels_json(cluster),
        **inside,
        **differing_json(cluster),
    }


def cluster_view(drawn: Drawn, cluster: Cluster) -> Group:
    """What was read: the cluster, what each figure rests on, memory, switches, oddities and what is left out."""
    told = [(what, value, fact.source + (f": {fact.note}" if fact.note else "")) for what, value, fact in _facts(drawn)]
    views: list[Any] = [*_parts(cluster, level_sources(drawn, cluster)), *_insides(cluster)]
    views.append(_table(("read", "value", "from"), told))
    if drawn.shape.memories:
        views.append(memories_view(drawn.shape.memories))
    if drawn.levels:
        views.append(_table(("switches", "groups", "hosts each", "rails", "oversubscription", "from"),
                            list(map(_level, drawn.levels))))  # fmt: skip
    views += [Text(f"exception: {it.text()}") for it in drawn.slower]
    views += [Text(f"odd: {text}") for text in (*drawn.oddities, *slow_ports(cluster))] + [
        Text(f"left out: {text}") for text in drawn.lost
    ]
    return Group(*views)


def answers_view(answers: Sequence[Answer]) -> Table:
    """Which tools are there, and what came of asking them."""
    rows = [(answer.tool, "yes" if answer.there else "no", answer.words) for answer in answers]
    return _table(("tool", "there", "says"), rows)


def memories_view(memories: Sequence[Memory]) -> Table:
    """The memory of a host, node by node."""
    return _table(("host memory", "capacity", "tier", "NUMA", "bandwidth"), list(map(_memory, memories)))


def cluster_json(drawn: Drawn, cluster: Cluster) -> dict[str, Any]:
    """The same for programs; bandwidths in bytes a second, one direction."""
    facts = {what: {"value": fact.value, "source": fact.source, "kind": fact.kind, "note": fact.note}
             for what, _, fact in _facts(drawn)}  # fmt: skip
    levels = [
        level | {"source": source}
        for level, source in zip(_levels_json(cluster), level_sources(drawn, cluster), strict=True)
    ]
    memories = [{"kind": m.kind, "capacity_bytes": m.capacity_bytes, "tier": m.tier, "numa": m.numa, "source": m.source,
                 "bandwidth_bytes_per_s": m.bytes_per_s} for m in drawn.shape.memories]  # fmt: skip
    return {
        "name": cluster.name, "devices": cluster.devices, "hosts": cluster.hosts, "levels": levels, "read": facts,
        "memories": memories, "oddities": [*drawn.oddities, *slow_ports(cluster)], "left_out": list(drawn.lost),
        "exceptions": [dataclasses.asdict(it) for it in drawn.slower], "inside": inside_json(cluster),
    }  # fmt: skip


def _levels_json(cluster: Cluster) -> list[dict[str, Any]]:
    return [
        {"name": level.name, "fanout": level.fanout, "bandwidth_bytes_per_s": level.bandwidth_bytes_per_s,
         "latency_s": level.latency_s, "link": level.link}
        for level in cluster.levels
    ]  # fmt: skip


def _facts(drawn: Drawn) -> list[tuple[str, str, Fact]]:
    shape = drawn.shape
    every: list[tuple[str, Fact | None, str]] = [
        ("accelerator", shape.accelerator, ""), ("partition", shape.partition, ""),
        ("packages a host" if shape.partition else "devices a host", shape.devices, ""), ("hosts", drawn.hosts, ""),
        ("NICs a host", shape.nics, ""), ("NIC", shape.nic_bytes_per_s, "B/s"),
        ("scale-up a device", shape.scale_up_bytes_per_s, "B/s"), ("hosts a domain", drawn.domain_hosts, ""),
        ("host memory", shape.memory_bytes, "B"),
    ]  # fmt: skip
    return [(what, quantity_text(fact.value, unit) if unit else str(fact.value), fact)
            for what, fact, unit in every if fact is not None]  # fmt: skip


def slow_ports(cluster: Cluster) -> list[str]:
    """A word where the fabric that was chosen has slower ports than the NICs."""
    nic, port = cluster.host.figures.nic_bandwidth.value, cluster.fabric.figures.port_bandwidth.value
    if nic <= port * 1.02 or len(cluster.levels) <= cluster.domain_levels:
        return []
    return [
        f"NICs of {nic * 8 / 1e9:g} Gb/s on ports of {port * 8 / 1e9:g} Gb/s of {cluster.fabric.name}, which count; "
        "name another with --fabric"
    ]


def level_sources(drawn: Drawn, cluster: Cluster) -> list[str]:
    """Where the bandwidth of every level comes from: files, or the catalogue where none tells."""
    shape, ratios = drawn.shape, {level.source for level in drawn.levels if level.oversubscription is not None}
    inside = (
        shape.scale_up_bytes_per_s.source if shape.scale_up_bytes_per_s else f"catalogue: {cluster.accelerator.whole}"
    )
    outside = shape.nic_bytes_per_s.source if shape.nic_bytes_per_s else f"catalogue: {cluster.host.name}"
    above = ", ".join(dict.fromkeys([outside, *sorted(ratios)]))
    package = [f"catalogue: {cluster.accelerator.whole}"] if shape.partition is not None else []
    return [*package, inside, outside, *[above] * len(cluster.levels)][: len(cluster.levels)]


def _parts(cluster: Cluster, sources: Sequence[str]) -> list[Any]:
    levels = [
        (level.name, str(level.fanout), quantity_text(level.bandwidth_bytes_per_s, "B/s"),
         quantity_text(level.latency_s, "s"), level.link, source)
        for level, source in zip(cluster.levels, sources, strict=True)
    ]  # fmt: skip
    hosts = f"{cluster.hosts} host{'s' * (cluster.hosts != 1)} of {cluster.devices_per_host} devices"
    named = f"{cluster.accelerator.name}, {cluster.fabric.name}, {cluster.facility.name}"
    return [
        Text(f"{cluster.name}: {hosts} ({named})", style="bold"),
        _table(("level", "members", "bandwidth a device", "latency", "link", "bandwidth from"), levels),
    ]


def _insides(cluster: Cluster) -> list[Any]:
    """PCIe ports and memory tiers of a host, where there are some."""
    tables = [(PORTS, port_rows(cluster)), (TIERS, tier_rows(cluster))]
    return [_table(heads, rows) for heads, rows in tables if rows]


def _memory(memory: Memory) -> tuple[str, ...]:
    speed = "" if memory.bytes_per_s is None else quantity_text(memory.bytes_per_s, "B/s")
    where = ["" if number is None else str(number) for number in (memory.tier, memory.numa)]
    return (memory.kind, quantity_text(memory.capacity_bytes, "B"), *where, speed)


def _level(level: LevelSeen) -> tuple[str, ...]:
    ratio = "" if level.oversubscription is None else f"{level.oversubscription:.3g}"
    hosts = "uneven" if level.hosts is None else str(level.hosts)
    return (level.kind, str(level.groups), hosts, str(level.switches), ratio, level.source)


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for k, head in enumerate(heads):
        table.add_column(head, no_wrap=k == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
