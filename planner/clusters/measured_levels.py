"""Links that give a measured collective the time it took: what a measurement says beside what a file claims.

    seconds(B) = start + what volume takes over a part of B       falls with B, so B is found by halving

A collective inside one host tells the scale-up link, one across hosts the NICs; as many hosts as a scale-up domain
joins are taken to be of one, and more of them to fill whole domains. Of every kind (operation, devices, hosts) the
largest size counts, from 8 MB; of several kinds the middle one. What it gives is the bandwidth that the models here
need to predict what was measured, which is more than a bus bandwidth: they take a part of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from topologies.cluster import Cluster, Level
from topologies.readers import read_drawn
from topologies.readers.drawn import Asked, Drawn
from topologies.readers.facts import Fact
from topologies.readers.seen import Measured
from topologies.readers.tables import cluster_of_text, cluster_text
from topologies.units import quantity_text

LEAST_BYTES = 8e6
"""Sizes below tell of latency, not of bandwidth."""
STRANGE = 0.25
"""A measurement that is this far from what a file claims is said."""


def text_of_files(paths: Sequence[str | Path], asked: Asked) -> tuple[Drawn, str]:
    """What files show, measurements applied, and the cluster's TOML text, which reads back.

    Raises what :func:`cluster_of_files` raises.
    """
    drawn, text, _ = _read(paths, asked)
    return drawn, text


def cluster_of_files(paths: Sequence[str | Path], asked: Asked) -> tuple[Drawn, Cluster]:
    """What files show, measurements applied, and the cluster.

    Raises ``BadInput`` for files that do not tell enough, and for options of which no cluster can be made.
    """
    drawn, _, cluster = _read(paths, asked)
    return drawn, cluster


def _read(paths: Sequence[str | Path], asked: Asked) -> tuple[Drawn, str, Cluster]:
    drawn = read_drawn(paths, asked)
    text, cluster = _parsed(drawn, asked)
    if not drawn.measured:
        return drawn, text, cluster
    drawn = with_measured(drawn, cluster)
    return drawn, *_parsed(drawn, dataclasses.replace(asked, fabric=cluster.fabric.name))


def _parsed(drawn: Drawn, asked: Asked) -> tuple[str, Cluster]:
    text = cluster_text(drawn, asked)
    return text, cluster_of_text(text, ", ".join(drawn.sources))


def with_measured(drawn: Drawn, cluster: Cluster) -> Drawn:
    """``drawn`` with the scale-up link and the NICs that its measurements need, each said beside the claim."""
    shape, oddities = drawn.shape, list(drawn.oddities)
    rows = [of for row in drawn.measured if (of := _of_domains(row, cluster)) is not None]
    inside = _link([row for row in rows if row.hosts == 1], cluster, 0)
    outside = _link([row for row in rows if row.hosts > 1], cluster, 1)
    if inside is not None:
        shape = dataclasses.replace(shape, scale_up_bytes_per_s=inside)
        oddities += _strange(inside, cluster.levels[0].bandwidth_bytes_per_s, "a scale-up link")
    if outside is not None and cluster.host.nics:
        nic = outside.value * cluster.fabric.oversubscription * cluster.host.devices / cluster.host.nics
        port = cluster.fabric.figures.port_bandwidth.value
        fact = dataclasses.replace(outside, value=min(nic, port))
        shape = dataclasses.replace(shape, nic_bytes_per_s=fact)
        oddities += _strange(fact, min(cluster.host.figures.nic_bandwidth.value, port), "a NIC")
    if partly := sorted({row.hosts for row in drawn.measured if _of_domains(row, cluster) is None}):
        oddities.append(
            f"{drawn.measured[0].source}: {', '.join(map(str, partly[:4]))} hosts are no whole scale-up domains of "
            f"{_domain_hosts(cluster)}; what was measured on them is not used"
        )
    unused = sum(row.buffer_bytes < LEAST_BYTES for row in drawn.measured)
    if unused and inside is None and outside is None:
        oddities.append(f"{drawn.measured[0].source}: no size from 8 MB that tells a bandwidth; nothing is overridden")
    return dataclasses.replace(drawn, shape=shape, oddities=tuple(oddities))


def _domain_hosts(cluster: Cluster) -> int:
    """Hosts that one scale-up domain joins, at most all."""
    return max(1, min(cluster.host.scale_up_devices // cluster.host.devices, cluster.hosts))


def _of_domains(row: Measured, cluster: Cluster) -> Measured | None:
    """The row with ``hosts`` counting scale-up domains; ``None`` where they would not be filled."""
    domain = _domain_hosts(cluster)
    if row.hosts > domain and row.hosts % domain:
        return None
    return dataclasses.replace(row, hosts=max(1, row.hosts // domain))


def _strange(fact: Fact[float], claim: float, what: str) -> list[str]:
    if abs(fact.value / claim - 1) <= STRANGE:
        return []
    return [f"{fact.source}: {what} of {quantity_text(fact.value, 'B/s')} is measured, where "
            f"{quantity_text(claim, 'B/s')} is claimed; the measurement counts"]  # fmt: skip


def _link(rows: Sequence[Measured], cluster: Cluster, level: int) -> Fact[float] | None:
    """Bytes a second of the level that the rows need: the middle one of every kind's largest size."""
    largest: dict[tuple, Measured] = {}
    for row in rows:
        key = (row.operation, row.devices, row.hosts)
        if row.buffer_bytes >= max(LEAST_BYTES, largest[key].buffer_bytes if key in largest else 0):
            largest[key] = row
    needed = [(speed, row) for row in largest.values() if (speed := needed_bytes_per_s(row, cluster, level))]
    if not needed:
        return None
    speed, row = sorted(needed, key=lambda pair: pair[0])[(len(needed) - 1) // 2]
    what = "host" if _domain_hosts(cluster) == 1 else "scale-up domain"
    where = f"in one {what}" if row.hosts == 1 else f"of {row.hosts} {what}s"
    note = (f"gives the {row.seconds * 1e3:.4g} ms of {row.operation}, {quantity_text(row.buffer_bytes, 'B')}, on "
            f"{row.devices} devices {where}")  # fmt: skip
    return Fact(speed, row.source, "measured", note)


def needed_bytes_per_s(row: Measured, cluster: Cluster, level: int) -> float | None:
    """The level's bandwidth at which the models predict the measured seconds.

    ``None`` where the rest of the collective already takes as long, or where the cluster has no such level, or the
    row's devices do not fit it.
    """
    from cost_models.calibration import calibrate

    inside = row.devices // row.hosts
    if level >= len(cluster.levels) or inside * row.hosts != row.devices or inside > cluster.levels[0].fanout:
        return None
    levels, fits = cluster.levels[: max(level + 1, 1)], calibrate(cluster)
    claim = levels[level].bandwidth_bytes_per_s
    low, high = claim / 1e4, claim * 1e4
    if not _seconds(row, levels, level, high, fits) < row.seconds < _seconds(row, levels, level, low, fits):
        return None
    for _ in range(50):
        middle = (low * high) ** 0.5
        slower = _seconds(row, levels, level, middle, fits) > row.seconds
        low, high = (middle, high) if slower else (low, middle)
    return float(f"{(low * high) ** 0.5:.4g}")


def _seconds(row: Measured, levels: tuple[Level, ...], level: int, bytes_per_s: float, fits) -> float:
    """What the models predict for the row with that bandwidth of the level."""
    import numpy as np

    from cost_models.communication import all_to_all_s, collective_s

    changed = list(levels)
    changed[level] = dataclasses.replace(levels[level], bandwidth_bytes_per_s=bytes_per_s)
    factors = np.array([row.devices // row.hosts, row.hosts][: len(levels)])
    if row.operation == "all_to_all":
        return float(all_to_all_s(row.buffer_bytes, factors, tuple(changed), fits))
    return float(collective_s(row.operation, row.buffer_bytes, factors, tuple(changed), fits))
