"""Mean watts of the fullest device, host, rack and of the sites of a pipeline over several kinds of devices; how long
its step lasts under limits on them.

As on one kind of device (:mod:`cost_models.power_levels`) limits are met by waiting, or with clocks by running slower
too. With ``J_s`` the dynamic joules of a step on one device of stage ``s``, ``n_gs`` its devices in group ``g`` and
``P_g`` what the group draws idle,

    T >= sum_s n_gs J_s / (limit - P_g)                          every device, host and rack g in use
    T >= sum_s PUE_s n_s J_s / (limit - sum_h PUE_h P_h)         the meters of all sites together, hosts h in use

A part's stages stand on its hosts the largest first, equal ones in the pipeline's order, each where the one before
ends: what they reserve is a chain of divisors of a scale-up domain, or whole domains, so that none is torn. Racks are
filled with hosts in that order and hold those of one part. All NICs are up, and their switch ports count in the racks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.mixed import Machine, MixedStage, MixedStrategy
from cost_models.mixed_power import idle_host_w, stage_joules
from cost_models.power_levels import LEVELS, PowerLimits
from cost_models.power_levels import idle_w as idle_w_of_one_kind
from topologies.cluster import Cluster

Floats = NDArray[np.float64]
ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Held:
    """What a stage has of its part: ``near`` devices in each of ``far`` scale-up domains, ``reserved`` in all."""

    near: int
    far: int
    reserved: int


def idle_w(level: str, part: Cluster) -> float:
    """Watts of an idle device, or of one idle host of a part: by itself, with its ports, or at its site's meter."""
    if level in ("device", "host"):
        return idle_w_of_one_kind(level, part)
    return idle_host_w(part) / (part.facility.figures.pue.value if level == "rack" else 1.0)


def on_hosts(part: Cluster, held: Sequence[Held]) -> Floats:
    """Devices of every stage on each host in use of a part, ``[hosts, stages]``; ``held`` in the pipeline's order."""
    each, room = part.devices_per_host, part.levels[0].fanout
    device = np.zeros((-(-sum(it.reserved for it in held) // each) * each, len(held)))
    at = 0
    for s in sorted(range(len(held)), key=lambda s: -held[s].reserved):
        for domain in range(held[s].far):
            first = at + domain * room
            device[first : first + held[s].near, s] = 1.0
        at += held[s].reserved
    return device.reshape(-1, each, len(held)).sum(axis=1)


def rack_of(part: Cluster, hosts: int) -> NDArray[np.int64]:
    """The rack of each of so many hosts, ``[hosts]``: racks hold whole scale-up domains, or parts of one."""
    per_rack, per_domain = part.hosts_per_rack or 1, hosts_per_domain(part)
    domain, inside = np.divmod(np.arange(hosts), per_domain)
    if per_rack <= per_domain:
        return domain * -(-per_domain // per_rack) + inside // per_rack
    return domain // (per_rack // per_domain)


def hosts_per_domain(part: Cluster) -> int:
    """Hosts of a scale-up domain; 1 where it is part of one."""
    return max(1, part.levels[0].fanout // part.devices_per_host)


def groups(level: str, part: Cluster, held: Sequence[Held]) -> tuple[Floats, Floats]:
    """Devices of every stage in each group of a part in use, ``[groups, stages]``, and the groups' idle watts."""
    if level == "device":
        return np.eye(len(held)), np.full(len(held), idle_w("device", part))
    hosts = on_hosts(part, held)
    if level == "host":
        return hosts, np.full(len(hosts), idle_w("host", part))
    rack = rack_of(part, len(hosts))
    devices = np.zeros((int(rack[-1]) + 1, len(held)))
    np.add.at(devices, rack, hosts)
    return devices, np.bincount(rack) * idle_w("rack", part)


def _by_part(machine: Machine, strategy: MixedStrategy, held: Sequence[Held]) -> Iterator[tuple[Cluster, list[int]]]:
    """Parts in use with the positions of their stages."""
    for k, part in enumerate(machine.cluster.parts):
        if mine := [s for s, stage in enumerate(strategy.stages) if stage.part == k]:
            yield part, mine


def _meter(machine: Machine, stage: MixedStage) -> float:
    """Joules at the meter for one of every device of a stage."""
    return stage.devices * machine.cluster.parts[stage.part].facility.figures.pue.value


def mixed_level_watts(
    machine: Machine, strategy: MixedStrategy, held: Sequence[Held], hosts: tuple[int, ...], step_s: float
) -> dict[str, float]:
    """Mean watts of the fullest device, host and rack in use, and at the meters of all sites, of such a step.

    Racks are told where every part in use says how many hosts stand in one.
    """
    joules, found = stage_joules(machine, strategy), {}
    used = list(_by_part(machine, strategy, held))
    for level in LEVELS[:-1]:
        if level == "rack" and any(part.hosts_per_rack is None for part, _ in used):
            continue
        each = ((*groups(level, part, [held[s] for s in mine]), joules[mine]) for part, mine in used)
        found[level] = max(float((idle + devices @ some / step_s).max()) for devices, idle, some in each)
    dynamic = sum(_meter(machine, it) * j for it, j in zip(strategy.stages, joules.tolist(), strict=True))
    return {**found, "site": site_idle_w(machine, hosts) + dynamic / step_s}


def site_idle_w(machine: Machine, hosts: Sequence[int]) -> float:
    """Watts at the meters of so many idle hosts of every part."""
    return math.fsum(count * idle_host_w(part) for part, count in zip(machine.cluster.parts, hosts, strict=True))


def mixed_wait_s(
    machine: Machine, strategy: MixedStrategy, held: Sequence[Held], hosts: tuple[int, ...], limits: PowerLimits
) -> float:
    """Seconds that a step lasts at least under limits on mean watts; infinite where idling is too much, 0 without."""
    if not limits.given:
        return 0.0
    joules, waits = stage_joules(machine, strategy), [0.0]
    for level, limit_w in limits.given.items():
        if level == "site":
            dynamic = sum(_meter(machine, it) * j for it, j in zip(strategy.stages, joules.tolist(), strict=True))
            waits.append(_wait_s(dynamic, limit_w - site_idle_w(machine, hosts)))
            continue
        for part, mine in _by_part(machine, strategy, held):
            devices, idle = groups(level, part, [held[s] for s in mine])
            waits += map(_wait_s, (devices @ joules[mine]).tolist(), (limit_w - idle).tolist())
    return max(waits)


def _wait_s(joules: float, spare_w: float) -> float:
    return joules / spare_w if spare_w > 0 else math.inf


def step_within(step: int, wait_s: float, tick_s: float) -> float:
    """Ticks of a step of so many that waits for so long: whole ones, no fewer than the wait; infinite if that is."""
    return max(step, np.ceil(wait_s / tick_s * (1 - ROUNDING)))
