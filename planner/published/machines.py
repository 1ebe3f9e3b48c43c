"""The machine that a published row names: a ready cluster, cut to the row's devices and with its network.

domain     devices that a job uses of one scale-up network; it divides the devices in all
scale-out  n_gpus / domain groups; bandwidth = what the row says a host has / devices of the host,
           or else the ready cluster's own
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path

from topologies.catalogue import read_toml
from topologies.cluster import Cluster, Level
from topologies.errors import BadInput
from topologies.ready import read_cluster
from topologies.shapes import nic_share_bytes_per_s

MACHINES = Path(__file__).with_name("machines.toml")
LEAST_NETWORK_GBPS = 100.0
"""A slower network beside eight GPUs is for management, not for training."""
GBPS = 1e9 / 8
GIB = 2**30
MOST_MEMORY = 2.0
"""Factor by which a device's memory may differ from that of the one that stands in for it."""
_MEMORY = re.compile(r"(?<![\w.])(\d{1,4}) ?Gi?B(?![\w/])", re.IGNORECASE)
_NOT_THE_NETWORK = re.compile(r"PCIe|GPU-|management|storage|\bNS\b|\b10G|10GBASE", re.IGNORECASE)
_THE_NETWORK = re.compile(r"compute|\bEW\b", re.IGNORECASE)
_RATE = re.compile(r"(?P<rate>\d+(?:\.\d+)?)\s*(?P<unit>Gb/s|Gbps|Gbit/s|Gb/Sec|Gb|GB/s)(?![a-zA-Z])")
_COUNT = re.compile(r"(\d+)\s*x(?![a-z])")
_GENERATIONS = {"EDR": 100.0, "HDR": 200.0, "NDR": 400.0, "XDR": 800.0, "Omni-Path": 100.0}


def ready_cluster(accelerator: str, source: str) -> Cluster:
    """The ready cluster that an accelerator's published name means. Raises ``BadInput`` for an unknown one.

    Where it only stands in, its devices have the memory that the name states, ``"H100 NVL 94GB"``, or its entry.
    """
    entry = _named(accelerator, source)
    cluster, stated = _read(entry["cluster"]), _MEMORY.search(accelerator)
    gib = int(stated[1]) if stated else entry.get("memory_gib")
    return _with_memory(cluster, gib * GIB) if gib and entry.get("stands_in") else cluster


def _with_memory(cluster: Cluster, capacity_bytes: float) -> Cluster:
    """``cluster`` with devices of that memory, the driver's share as before; unchanged where no such device has it."""
    figures = cluster.accelerator.figures
    ratio = capacity_bytes / figures.memory_capacity.value
    if not 1 / MOST_MEMORY <= ratio <= MOST_MEMORY:
        return cluster
    sizes = {name: getattr(figures, name) for name in ("memory_capacity", "memory_usable")}
    scaled = {
        name: one.model_copy(update={"value": one.value * ratio}) for name, one in sizes.items() if one is not None
    }
    part = cluster.accelerator.model_copy(update={"figures": figures.model_copy(update=scaled)})
    return replace(cluster, accelerator=part)


def with_smaller_hosts(cluster: Cluster, devices: int | None) -> Cluster:
    """``cluster`` of hosts with that many devices and as many NICs a device, where its own have more.

    Unchanged where a scale-up network joins several hosts: those of a rack differ in no way that counts.
    """
    host = cluster.host
    if devices is None or devices >= host.devices or host.scale_up_devices > host.devices or host.torus is not None:
        return cluster
    nics, joined = max(1, round(host.nics * devices / host.devices)), min(host.scale_up_devices, devices)
    smaller = {"devices": devices, "nics": nics, "scale_up_devices": joined, "inside": None}
    return replace(cluster, host=host.model_copy(update=smaller))


def stands_in(accelerator: str, source: str) -> bool:
    """Whether that cluster's devices are not the ones named, only the nearest that are known."""
    return _named(accelerator, source).get("stands_in", False)


@cache
def _named(accelerator: str, source: str) -> dict:
    for entry in _accelerators():
        if source in entry.get("sources", [source]) and re.search(entry["text"], accelerator, re.IGNORECASE):
            return entry
    raise BadInput(f"no machine is known for accelerator {accelerator[:60]!r}; add it to {MACHINES.name}")


def domains(cluster: Cluster, devices: int) -> tuple[int, ...]:
    """Devices that a job of ``devices`` may use of every scale-up network, most first."""
    most = min(cluster.host.scale_up_devices, devices)
    return tuple(size for size in range(most, 0, -1) if devices % size == 0)


def cut(cluster: Cluster, devices: int, domain: int, host_bytes_per_s: float | None) -> Cluster:
    """``devices`` of that kind of cluster, ``domain`` in each scale-up network.

    ``host_bytes_per_s`` is what a host sends in all; ``None`` for the ready cluster's own.
    """
    host, fabric = cluster.host, cluster.fabric
    hosts = devices // domain * math.ceil(domain / host.devices)
    inner = replace(cluster.levels[0], fanout=domain)
    if domain == devices:
        return replace(cluster, hosts=hosts, levels=(inner,))
    share = nic_share_bytes_per_s(host, fabric) if host_bytes_per_s is None else host_bytes_per_s / host.devices
    outer = Level(
        name="scale-out",
        fanout=devices // domain,
        bandwidth_bytes_per_s=share / fabric.oversubscription,
        latency_s=fabric.figures.latency.value,
        link=fabric.name,
    )
    return replace(cluster, hosts=hosts, levels=(inner, outer))


def host_bytes_per_s(text: str, host_devices: int) -> float | None:
    """Bytes a second that a host sends into the network described by ``text``; ``None`` where it does not say.

    Of several networks that for compute counts, else the fastest; "per GPU" is multiplied by the host's devices.
    """
    clauses = [part for part in re.split(r"[,;]|\+(?! ?Management)|\band\b", text) if part.strip()]
    named = [part for part in clauses if _THE_NETWORK.search(part)]
    rates = [_clause_gbps(part, host_devices) for part in named or clauses if named or _network(part)]
    fastest = max((rate for rate in rates if rate is not None), default=0.0)
    return fastest * GBPS if fastest >= LEAST_NETWORK_GBPS else None


def _network(clause: str) -> bool:
    return _NOT_THE_NETWORK.search(clause) is None


def _clause_gbps(clause: str, host_devices: int) -> float | None:
    found = _RATE.search(clause)
    if found is None:
        return _generation_gbps(clause)
    count = _COUNT.search(clause[: found.start()])
    rate = float(found["rate"]) * (8.0 if found["unit"] == "GB/s" else 1.0)
    devices = host_devices if re.search(r"per GPU|/GPU|a GPU", clause) else 1
    return rate * int(count[1] if count else 1) * devices


def _generation_gbps(clause: str) -> float | None:
    """Gb/s of "4x Omni-Path" or "8x HDR"; ``None`` where no number of ports is given."""
    count = _COUNT.search(clause)
    for name, rate in _GENERATIONS.items():
        if count and name.lower() in clause[count.end() :].lower():
            return rate * int(count[1])
    return None


@lru_cache(maxsize=1)
def _accelerators() -> tuple[dict, ...]:
    return tuple(read_toml(MACHINES)["accelerator"])


@lru_cache(maxsize=64)
def _read(name: str) -> Cluster:
    return read_cluster(name)
