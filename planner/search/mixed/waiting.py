"""How long steps wait under limits on mean watts, as ticks a joule: of a stage by itself, of hosts and racks, of sites.

A stage waits at least as long as its fullest device, host and rack do by themselves, ``wait`` ticks a joule of it:

    device    1 / (n (limit - P))               n devices of the stage, P what one group draws idle
    host      k / (n (limit - P))               k of them in its fullest host
    rack      1 / (r limit - c P)               r racks at most that hold its c hosts: of these the mean is no fuller

each over ``PUE tick``, for joules are those at the meter. Ways that use other numbers of devices wait for other times:
stages of one slot use the same number. What stages that share a host or a rack wait together for is asked of whole
pipelines (:func:`waited`). Bounds know what adds up, the ``lines``: joules of all stages, which the sites wait for, and
those of each part, which wait for as many of its hosts and racks as pipelines may use, as if all were equally full.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cost_models.mixed import inner_copies
from cost_models.mixed_power_levels import ROUNDING, Held, groups, hosts_per_domain, idle_w, rack_of
from topologies.cluster import Cluster

if TYPE_CHECKING:
    from planner.search.mixed.space import MixedSpace, Setups
    from planner.search.mixed.table import StageTable

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def near_devices(space: MixedSpace, setups: Setups) -> Ints:
    """Devices of a stage inside one scale-up domain, ``[ways]``; all where no group inside a site has a limit."""
    part = space.machine.cluster.parts[setups.part]
    if not space.asked.waits_inside:
        return setups.devices
    shape, table = (part.group_capacity, part.devices_per_host), setups.table[:, :3].tolist()
    return np.array([tp * cp * inner_copies(*shape, tp * cp, dp) for tp, cp, dp in table], dtype=np.int64)


def wait_rates(space: MixedSpace, setups: Setups) -> Floats:
    """Ticks that a stage waits at least for each of its joules at the meter, ``[ways]``; infinite where idling is too
    much, 0 where no group inside a site has a limit."""
    part, found = space.machine.cluster.parts[setups.part], [np.zeros(len(setups))]
    for level, limit_w in space.asked.power.given.items():
        if level != "site":
            spare = _spare_w(level, limit_w, space, setups)
            found.append(np.where(spare > 0, 1 / np.maximum(spare, 1e-300), np.inf))
    return np.max(found, axis=0) / (part.facility.figures.pue.value * space.machine.ticks.second)


def _spare_w(level: str, limit_w: float, space: MixedSpace, setups: Setups) -> Floats:
    """Watts above idling that all devices of a stage may draw for the groups of a level, ``[ways]``."""
    part = space.machine.cluster.parts[setups.part]
    spare, each = limit_w - idle_w(level, part), part.devices_per_host
    if level == "device":
        return setups.devices * spare
    if level == "host":
        return setups.devices / np.minimum(near_devices(space, setups), each) * spare
    hosts = np.maximum(1, setups.size // each)
    return _racks(part, hosts) * limit_w - hosts * idle_w("rack", part)


def _racks(part: Cluster, hosts: Ints) -> Ints:
    """The most racks that so many hosts of one stage stand in."""
    per_rack, per_domain = part.hosts_per_rack or 1, hosts_per_domain(part)
    if per_rack <= per_domain:
        whole = -(-hosts // per_domain) * -(-per_domain // per_rack)
        return np.where(hosts >= per_domain, whole, _spans(hosts, per_rack))
    return _spans(-(-hosts // per_domain), per_rack // per_domain)


def _spans(many: Ints, together: int) -> Ints:
    """The most groups of ``together`` that so many neighbours are in."""
    return np.where(many > 1, (many - 2) // together + 2, 1)


def lines_of(space: MixedSpace, hosts: Ints, site: float) -> Floats:
    """Ticks that a step waits at least for each joule of a stage by its part, ``[lines, parts]``, on at most so many
    hosts of every part: a line for all sites, where these wait ``site`` a joule, and one for the hosts of each part."""
    inside = np.array([_hosts_rate(space, k, int(count)) for k, count in enumerate(hosts)])
    lines = np.vstack([np.full((1, len(hosts)), site), np.diag(inside)])
    return lines[(lines > 0).any(axis=1)]


def _hosts_rate(space: MixedSpace, k: int, hosts: int) -> float:
    """Ticks that a part's hosts, or racks, wait at least for each joule of its stages; 0 where neither has a limit."""
    part, power, spare = space.machine.cluster.parts[k], space.asked.power, []
    if power.host_w is not None:
        spare.append(hosts * (power.host_w - idle_w("host", part)))
    if power.rack_w is not None and hosts:
        several = np.arange(1, hosts + 1)
        spare.append(float(((rack_of(part, hosts) + 1) * power.rack_w - several * idle_w("rack", part)).max()))
    least = min(spare, default=0.0)  # no way to run a stage is left where it is below 0
    return 1 / (least * part.facility.figures.pue.value * space.machine.ticks.second) if least > 0 else 0.0


def waited(table: StageTable, way: Ints, joules: Floats, site: float) -> float:
    """Whole ticks that a pipeline's step waits at least, whose stages spend ``joules`` at the meter; ``site`` are the
    ticks that a joule takes on the hosts in use. Infinite where these draw too much idle."""
    if np.isinf(site):
        return np.inf
    most = max(site * float(joules.sum()), float((joules * table.wait_rate[way]).max()))
    most = max([most, *_shared(table, way, joules)])
    return float(np.ceil(most * (1 - ROUNDING)))


def _shared(table: StageTable, way: Ints, joules: Floats) -> Iterator[float]:
    """Ticks that the fullest host and rack of every part wait, where several stages may be in one."""
    power, parts = table.space.asked.power, table.space.machine.cluster.parts
    for level, limit_w in power.given.items():
        for k in np.unique(table.part[way]).tolist() if level in ("host", "rack") else ():
            mine = way[table.part[way] == k]
            if level == "host" and (table.size[mine] >= parts[k].devices_per_host).sum() >= len(mine) - 1:
                continue
            yield _fullest(table, level, limit_w, mine, joules[table.part[way] == k])


def _fullest(table: StageTable, level: str, limit_w: float, way: Ints, joules: Floats) -> float:
    part = table.space.machine.cluster.parts[int(table.part[way[0]])]
    used = np.prod(table.setup[way, :3], axis=1)
    near = table.near[way]
    held = [Held(*it) for it in zip(near.tolist(), (used // near).tolist(), table.size[way].tolist(), strict=True)]
    devices, idle = groups(level, part, held)
    spare = limit_w - idle
    if (spare <= 0).any():
        return np.inf
    drawn = devices @ (joules / used / part.facility.figures.pue.value)
    return float((drawn / spare).max()) / table.space.machine.ticks.second
