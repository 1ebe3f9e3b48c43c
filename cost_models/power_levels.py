"""Mean watts of the fullest device, host, rack and of the site; how long a step lasts under limits on them.

Every limit is met by waiting, so that mean watts over a step stay at or below it. With ``J_s`` the dynamic joules of
a step on one device of pipeline rank ``s``, ``n_gs`` the devices of rank ``s`` in group ``g`` of a level, and the
group's idle draw ``P_g``:

    T >= sum_s n_gs J_s / (limit - P_g)          every group g of every level with a limit

    device    P = idle board power                                 host    its devices idle, and its own draw
    rack      its hosts in use and the network ports they hang on  site    PUE times all of it, as the facility's meter

Hosts stand in their racks in the order of ranks (:mod:`planner.ranks`), ``hosts_per_rack`` of them in each; hosts the
plan leaves unused draw nothing of it. Switches are counted in the rack of the hosts whose ports they are. Summed over
the ``G`` groups of a level that gives a bound that needs no stage:

    T >= D / (G limit - sum_g P_g)               with D = sum_g sum_s n_gs J_s
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.power import StaticPower, hosts_used, static_power
from cost_models.rows import Rows
from topologies.cluster import Cluster

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
LEVELS = ("device", "host", "rack", "site")


@dataclass(frozen=True, slots=True)
class PowerLimits:
    """Most mean watts of any device, host and rack, and of the site at its meter; ``None`` where there is no limit."""

    device_w: float | None = None
    host_w: float | None = None
    rack_w: float | None = None
    site_w: float | None = None

    @property
    def given(self) -> dict[str, float]:
        """The limits there are, by level."""
        values = {level: getattr(self, f"{level}_w") for level in LEVELS}
        return {level: watts for level, watts in values.items() if watts is not None}


def idle_w(level: str, cluster: Cluster) -> float:
    """Watts that a device or a host draws idling; for rack and site with one host in use, whatever it needs of them."""
    figures, ports = cluster.accelerator.figures, cluster.ports
    device = figures.idle_power.value
    host = cluster.devices_per_host * device + cluster.host_power_w
    fed = host + ports * cluster.fabric.figures.power_per_port.value
    return {"device": device, "host": host, "rack": fed, "site": cluster.facility.figures.pue.value * fed}[level]


def wait_s_per_joule(rows: Rows, cluster: Cluster, limits: PowerLimits, *, placed: bool) -> Floats:
    """Seconds that a step lasts at least for each dynamic joule, ``[rows]``: 0 without limits, infinite below idling.

    Rows that are not ``placed`` stand side by side; any placement of them may use as many hosts as they have devices.
    """
    static, least = static_power(rows, cluster), np.zeros(len(rows))
    for level, limit_w in limits.given.items():
        spare = _spare_w(level, limit_w, rows, static, cluster, placed=placed)
        least = np.maximum(least, np.where(spare > 0, 1 / np.maximum(spare, 1e-300), np.inf))
    return least


def _spare_w(level: str, limit_w: float, rows: Rows, static: StaticPower, cluster: Cluster, *, placed: bool) -> Floats:
    """What all groups of a level may draw above idling, ``[rows]``."""
    if level == "site":
        return limit_w / static.pue - static.facility_w / static.pue
    if level == "device":
        return rows.world_size * (limit_w - idle_w("device", cluster))
    hosts = hosts_used(rows, cluster)
    most = hosts if placed else np.minimum(rows.world_size, cluster.hosts)
    if level == "host":
        return most * (limit_w - idle_w("host", cluster))
    racks = _racks_used(rows, cluster) if placed else most
    return racks * limit_w - (static.devices + static.hosts + static.network)


def _racks_used(rows: Rows, cluster: Cluster) -> Ints:
    used = rows.used()
    inside = cluster.host_shape.domain_hosts(used)
    domains = cluster.host_shape.hosts(used) // inside
    per_rack, per_domain = cluster.hosts_per_rack or 1, _hosts_per_domain(cluster)
    if per_rack <= per_domain:
        return domains * -(-inside // per_rack)
    return -(-domains // (per_rack // per_domain))


def _hosts_per_domain(cluster: Cluster) -> int:
    return max(1, cluster.host.scale_up_devices // cluster.devices_per_host)


def wait_rates(rows: Rows, r: int, cluster: Cluster, limits: PowerLimits) -> Floats:
    """``[lines, pp]``: a step lasts at least ``rates @ J`` seconds, line by line; infinite where idling is too much."""
    lines = [np.zeros((0, int(rows.pp[r])))]
    for level, limit_w in limits.given.items():
        devices, idle = groups(level, rows, r, cluster)
        spare = limit_w - idle
        per_joule = np.where(spare > 0, _pue(level, cluster) / np.maximum(spare, 1e-300), np.inf)
        # A rank without devices in a group adds nothing to it, even where the group may draw nothing.
        with np.errstate(invalid="ignore"):
            lines.append(np.where(devices > 0, devices * per_joule[:, None], 0.0))
    return np.unique(np.concatenate(lines), axis=0)


def wait_s(rates: Floats, joules: Floats) -> Floats:
    """Seconds that a step lasts at least under the lines of :func:`wait_rates`, ``[...]``, for ``joules [..., pp]``."""
    with np.errstate(invalid="ignore"):
        waits = joules @ rates.T
    return np.where(np.isnan(waits), np.inf, waits).max(axis=-1, initial=0.0)


def watts_by_level(rows: Rows, cluster: Cluster, joules: Floats, step_s: float) -> dict[str, float]:
    """Mean watts of the fullest device, host and rack in use, and of the site; ``joules`` of a device by rank."""
    known = [level for level in LEVELS if level != "rack" or cluster.hosts_per_rack is not None]
    found = {}
    for level in known:
        devices, idle = groups(level, rows, 0, cluster)
        found[level] = float((idle + _pue(level, cluster) * (devices @ joules) / step_s).max())
    return found


def _pue(level: str, cluster: Cluster) -> float:
    return cluster.facility.figures.pue.value if level == "site" else 1.0


def groups(level: str, rows: Rows, r: int, cluster: Cluster) -> tuple[Ints, Floats]:
    """Distinct groups of a level in use: devices of every pipeline rank, ``[groups, pp]``; idle watts, ``[groups]``."""
    one = rows.take(np.array([r]))
    pp, static = int(one.pp[0]), static_power(one, cluster)
    if level == "device":
        return np.eye(pp, dtype=np.int64), np.full(pp, idle_w("device", cluster))
    if level == "site":
        return np.full((1, pp), int(one.stage_size[0])), static.facility_w
    content, domain = domains(one, cluster)
    if level == "host":
        devices = np.unique(content.reshape(-1, pp), axis=0)
        return devices, np.full(len(devices), idle_w("host", cluster))
    devices, hosts = _in_racks(content, domain, cluster)
    each = (static.devices + static.hosts + static.network) / hosts_used(one, cluster)
    return devices, hosts * each


def domains(one: Rows, cluster: Cluster) -> tuple[Ints, Ints]:
    """Devices by rank in each host of every kind of domain, ``[kinds, hosts, pp]``; the kind of each, ``[domains]``.

    A domain's kind is the outer part of its pipeline coordinate: ``pp`` turns slowest on every level.
    """
    used, split, shape = one.used()[0], one.factors["pp"][0], cluster.host_shape
    inner = shape.domain_levels
    kind, kinds = _stage_digits(used[inner:].tolist(), split[inner:].tolist())
    stage, within = _stage_digits(used[:inner].tolist(), split[:inner].tolist())
    host = np.arange(len(stage)) // int(shape.devices_a_host(used))
    content = np.zeros((kinds, int(shape.domain_hosts(used)), within * kinds), dtype=np.int64)
    for k in range(kinds):
        np.add.at(content[k], (host, k * within + stage), 1)
    return content, kind


def _stage_digits(used: list[int], split: list[int]) -> tuple[Ints, int]:
    """Which of ``prod(split)`` parts of a pipeline every place of some levels belongs to, and how many there are."""
    rest = np.arange(int(np.prod(used, dtype=np.int64)))
    digit, weight = np.zeros_like(rest), 1
    for members, stages in zip(used, split, strict=True):
        digit = digit + weight * (rest % members // (members // stages))
        weight, rest = weight * stages, rest // members
    return digit, weight


def _in_racks(content: Ints, domain: Ints, cluster: Cluster) -> tuple[Ints, Ints]:
    """Devices by rank in every kind of rack, ``[racks, pp]``, and hosts in use there, ``[racks]``."""
    kinds, hosts, pp = content.shape
    per_rack, per_domain = cluster.hosts_per_rack or 1, _hosts_per_domain(cluster)
    if per_rack <= per_domain:
        starts = np.arange(0, hosts, per_rack)
        devices = np.add.reduceat(content, starts, axis=1).reshape(-1, pp)
        counted = np.tile(np.minimum(per_rack, hosts - starts), kinds)
    else:
        rack = np.arange(len(domain)) // (per_rack // per_domain)
        members = np.zeros((int(rack[-1]) + 1, kinds), dtype=np.int64)
        np.add.at(members, (rack, domain), 1)
        members = np.unique(members, axis=0)
        devices, counted = members @ content.sum(axis=1), members.sum(axis=1) * hosts
    both = np.unique(np.column_stack([devices, counted]), axis=0)
    return both[:, :-1], both[:, -1]
