"""What plans of one row take, from their ticks and joules: seconds, money and energy, waits for power limits included.

Part of :mod:`oracle`: own formulas over devices one by one, prices from the cost models.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from failures_oracle import longer

from cost_models.money import rental_usd_per_s
from cost_models.power import static_power
from cost_models.rows import AXIS_FACTORS, Rows
from topologies.cluster import Cluster

if TYPE_CHECKING:
    from oracle import Instance


def objective_values(
    it: Instance, rows: Rows, steps: np.ndarray, dynamic_j: np.ndarray, each_j: np.ndarray | None = None
) -> np.ndarray:
    """The objective of plans of one row, from ticks and dynamic joules; infinite above a limit.

    ``each_j`` are a device's joules by stage, ``[plans, pp]``; only limits inside the site need them.
    """
    found = quantities(it, rows, steps, dynamic_j, each_j)
    value = found[it.objective]
    for name, limit in it.limits:
        if name.startswith("step-"):
            value = np.where(found[name.removeprefix("step-")] <= limit * (1 + 1e-12), value, np.inf)
    return value


def quantities(
    it: Instance, rows: Rows, steps: np.ndarray, dynamic_j: np.ndarray, each_j: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Seconds, joules and dollars of plans of one row, waits for limits on power included."""
    static = static_power(rows, it.cluster)
    idle, step_s = float(static.facility_w[0]), steps * it.ticks.second
    if it.power_cap_w is not None:
        wait = static.pue * dynamic_j / (it.power_cap_w - idle) if idle < it.power_cap_w else np.inf
        step_s = np.maximum(step_s, wait)
    for name, limit in it.limits:
        if name.endswith("-power"):
            step_s = np.maximum(step_s, _power_wait(it, rows, name.removesuffix("-power"), limit, each_j))
    energy, rent = idle * step_s + static.pue * dynamic_j, rental_usd_per_s(rows, it.cluster)
    tariff = it.cluster.facility.figures.electricity_price.value / 3.6e6
    hosts = len({host for _, host in seats(it, rows)})
    later = longer(it.model, it.cluster, it.workload, int(rows.world_size[0]), hosts)
    return {
        "time": step_s, "energy": energy, "money": energy * tariff if rent is None else float(rent[0]) * step_s,
        "goodput": later * step_s,
    }  # fmt: skip


def _power_wait(it: Instance, rows: Rows, level: str, limit: float, each_j: np.ndarray) -> np.ndarray:
    """Seconds until every device, host or rack has a mean below the limit, by going from device to device."""
    members: dict[tuple, list[int]] = {}
    hosts: dict[tuple, set] = {}
    for rank, (stage, host) in enumerate(seats(it, rows)):
        where = {"device": (rank,), "host": (host,), "rack": (host // (it.cluster.hosts_per_rack or 1),)}[level]
        members.setdefault(where, []).append(stage)
        hosts.setdefault(where, set()).add(host)
    device_w = it.cluster.accelerator.figures.idle_power.value
    host_w = it.cluster.devices_per_host * device_w + it.cluster.host.figures.power.value
    if level == "rack" and len(it.cluster.levels) > it.cluster.domain_levels:
        host_w += it.cluster.host.nics * it.cluster.fabric.figures.power_per_port.value
    wait = np.zeros(len(each_j))
    for where, stages in members.items():
        spare = limit - (device_w if level == "device" else host_w * len(hosts[where]))
        spent = each_j[:, stages].sum(axis=1)
        wait = np.maximum(wait, spent / spare if spare > 0 else np.inf)
    return wait


def seats(it: Instance, rows: Rows) -> list[tuple[int, int]]:
    """Pipeline stage and host of every rank: axes turn as tp, cp, dp_shard, dp_replicate, pp on each level."""
    factors = [[int(rows.factors[a][0][k]) for a in AXIS_FACTORS[:5]] for k in range(len(it.cluster.levels))]
    cluster, seats = it.cluster, []
    domain_hosts = max(1, cluster.host.scale_up_devices // cluster.devices_per_host)
    for rank in range(math.prod(size for here in factors for size in here)):
        rest, stage, weight, digits = rank, 0, 1, []
        for here in factors:
            inside = math.prod(here[:4])
            digits.append(rest % math.prod(here))
            stage, weight = stage + weight * (rest // inside % here[4]), weight * here[4]
            rest //= inside * here[4]
        size = math.prod(math.prod(here) for here in factors[: cluster.domain_levels])
        place = device_in_domain(cluster, tuple(digits[: cluster.domain_levels])) // cluster.devices_per_host
        seats.append((stage, rank // size * domain_hosts + place))
    return seats


def device_in_domain(cluster: Cluster, digits: tuple[int, ...]) -> int:
    """The device with these positions on the levels of its scale-up domain, innermost first."""
    device, weight = 0, 1
    for digit, level in zip(digits, cluster.levels, strict=False):
        device, weight = device + weight * digit, weight * level.fanout
    return device
