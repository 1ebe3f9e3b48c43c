"""Watts of a mixed pipeline added up again: stages put down device by device, joules layer by layer.

A group is a device, a host or a rack in use; how many of its devices run each stage, and what it draws idle, tell its
mean watts and how long a step waits under a limit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.mixed import Machine, MixedStage, MixedStrategy
from cost_models.mixed_power import idle_host_w
from cost_models.mixed_power_levels import idle_w
from cost_models.power_levels import PowerLimits
from planner.checks.mixed_ways import place, reserved
from topologies.cluster import Cluster
from topologies.mixed import MixedCluster

Floats = NDArray[np.float64]
ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Standing:
    """A stage's part, its devices in each of ``far`` scale-up domains, and those that it reserves in all."""

    part: int
    near: int
    far: int
    reserved: int

    @staticmethod
    def of(cluster: MixedCluster, k: int, degrees: tuple[int, int, int, int]) -> Standing:
        """That of a stage of such tp, cp, dp and ep on part ``k``, where it has a place."""
        near, far = place(cluster.parts[k], *degrees)
        return Standing(k, near, far, reserved(cluster.parts[k], near, far))

    @property
    def devices(self) -> int:
        """Devices in use."""
        return self.near * self.far


def groups_again(cluster: MixedCluster, stages: Sequence[Standing]) -> Iterator[tuple[str, list[int], float]]:
    """The level of every group in use, its devices by stage and its idle watts."""
    for k, part in enumerate(cluster.parts):
        mine = sorted((s for s, it in enumerate(stages) if it.part == k), key=lambda s: -stages[s].reserved)
        places: list[int | None] = []
        for s in mine:
            domain, near = stages[s].reserved // stages[s].far, stages[s].near
            places += ([s] * near + [None] * (domain - near)) * stages[s].far
        for s in mine:
            yield "device", _counted([s], len(stages)), idle_w("device", part)
        each = part.devices_per_host
        hosts = [places[at : at + each] for at in range(0, len(places), each)]
        for host in hosts:
            yield "host", _counted(host, len(stages)), idle_w("host", part)
        for _, several in itertools.groupby(range(len(hosts)), key=lambda h: _rack(part, h)):
            rack = [hosts[h] for h in several]
            devices = _counted([s for host in rack for s in host], len(stages))
            yield "rack", devices, len(rack) * idle_w("rack", part)


def _counted(devices: list[int | None], stages: int) -> list[int]:
    return [devices.count(s) for s in range(stages)]


def _rack(part: Cluster, host: int) -> tuple[int, int]:
    """The rack of a host: of whole scale-up domains, or one of several of its domain."""
    together, domain = part.hosts_per_rack or 1, max(1, part.levels[0].fanout // part.devices_per_host)
    if together <= domain:
        return host // domain, host % domain // together
    return host // domain // (together // domain), 0


def waits_again(cluster: MixedCluster, stages: Sequence[Standing], power: PowerLimits, joules: Floats) -> Floats:
    """Seconds that steps wait for the watts of devices, hosts and racks, ``[...]``; ``joules`` is ``[stages, ...]``, of
    one device of each. Infinite where idling is too much."""
    waits = np.zeros(joules.shape[1:])
    for level, devices, idle in groups_again(cluster, stages):
        if (limit_w := power.given.get(level)) is not None:
            spare, drawn = limit_w - idle, np.tensordot(np.array(devices, dtype=float), joules, axes=1)
            waits = np.maximum(waits, drawn / spare if spare > 0 else np.inf)
    return waits


def site_spare_w(cluster: MixedCluster, hosts: Sequence[int], power: PowerLimits) -> float:
    """What stages may draw at the meters of all sites beside idle hosts; infinite without a limit."""
    if power.site_w is None:
        return np.inf
    return power.site_w - sum(count * idle_host_w(part) for count, part in zip(hosts, cluster.parts, strict=True))


def within_watts(
    machine: Machine, strategy: MixedStrategy, hosts: Sequence[int], power: PowerLimits, step: int
) -> tuple[float, dict[str, float]]:
    """Seconds of a step of ``step`` ticks that waits for its watts, and the mean watts of the fullest of every level.

    Racks are told where every part in use says what stands in one.
    """
    cluster, tick, joules = machine.cluster, machine.ticks.second, np.array(joules_again(machine, strategy))
    stages = [Standing.of(cluster, it.part, (it.tp, it.cp, it.dp, it.ep)) for it in strategy.stages]
    metered = [
        n * it.devices * cluster.parts[it.part].facility.figures.pue.value
        for n, it in zip(joules.tolist(), strategy.stages, strict=True)
    ]
    spare = site_spare_w(cluster, hosts, power)
    waits = [float(waits_again(cluster, stages, power, joules)), sum(metered) / spare if spare > 0 else np.inf]
    step_s = max(step, float(np.ceil(max(waits) / tick * (1 - ROUNDING)))) * tick
    known = all(cluster.parts[it.part].hosts_per_rack is not None for it in stages)
    drawn: dict[str, float] = {}
    for level, devices, idle in groups_again(cluster, stages):
        if level != "rack" or known:
            watts = idle + float(np.dot(devices, joules)) / step_s
            drawn[level] = max(drawn.get(level, 0.0), watts)
    idle = sum(count * idle_host_w(part) for count, part in zip(hosts, cluster.parts, strict=True))
    return step_s, {**drawn, "site": idle + sum(metered) / step_s}


def joules_again(machine: Machine, strategy: MixedStrategy) -> list[float]:
    """Dynamic joules of a step on one device of every stage, layer by layer."""
    begins = itertools.accumulate((stage.layers for stage in strategy.stages), initial=0)
    return [
        _joules(machine, stage, at, strategy.micro_batches) for stage, at in zip(strategy.stages, begins, strict=False)
    ]


def _joules(machine: Machine, stage: MixedStage, at: int, m: int) -> float:
    prices, model, end = machine.chain(stage).prices, machine.model, at + stage.layers
    chosen = [run.choice.recompute for run in stage.runs for _ in range(run.count)]
    kinds = [*model.order[at:end], *[-2] * (at == 0), *[-1] * (end == model.layers)]
    once = sum(float(prices.joules_pass[0, kind]) for kind in kinds)
    again = zip(chosen, model.order[at:end], strict=True)
    once += sum(float(prices.joules_extra[choice][0, kind]) for choice, kind in again)
    return m * once + sum(float(prices.joules_step[0, kind]) for kind in kinds)
