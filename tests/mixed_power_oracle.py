"""How long the steps of small mixed pipelines wait for their watts: hosts filled device by device, own sums.

For parts whose scale-up domain is one host.
"""

from __future__ import annotations

import math

import numpy as np

from cost_models.mixed import Machine
from topologies.cluster import Cluster

Limits = dict[str, float]


def idle(part: Cluster) -> dict[str, float]:
    """Watts of one idle device, of a host without and with its ports, and of that at the meter."""
    device = part.accelerator.figures.idle_power.value
    host = part.devices_per_host * device + part.host_power_w
    rack = host + part.host.nics * part.fabric.figures.power_per_port.value
    return {"device": device, "host": host, "rack": rack, "site": rack * part.facility.figures.pue.value}


def waits_s(
    machine: Machine, power: Limits, hosts: np.ndarray, part: np.ndarray, size: np.ndarray, devices: np.ndarray,
    joules: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Seconds that steps last at least, ``[pipelines]``; ``hosts`` is ``[parts, pipelines]``, the others are ``[stages,
    pipelines]``, ``joules`` of whole stages at the meter."""
    parts = machine.cluster.parts
    found = np.zeros(part.shape[1])
    for n in range(part.shape[1]):
        drawn = {"device": [], "host": [], "rack": []}
        for k, one in enumerate(parts):
            mine = [s for s in range(len(part)) if part[s, n] == k]
            stages = [(int(size[s, n]), int(devices[s, n]), float(joules[s, n])) for s in mine]
            for level, some in _drawn(one, stages).items():
                drawn[level] += some
        site = sum(float(hosts[k, n]) * idle(one)["site"] for k, one in enumerate(parts))
        drawn["site"] = [(float(joules[:, n].sum()), site)]
        each = [(j, power[level] - watts) for level in power for j, watts in drawn[level]]
        found[n] = max((j / spare if spare > 0 else math.inf for j, spare in each), default=0.0)
    return found


def _drawn(part: Cluster, stages: list[tuple[int, int, float]]) -> dict[str, list[tuple[float, float]]]:
    """Joules of every device, host and rack in use, the meter left out, with what each draws idle."""
    room, watts, pue = part.devices_per_host, idle(part), part.facility.figures.pue.value
    places: list[float] = []
    each = []
    for size, devices, joules in sorted(stages, key=lambda it: -it[0]):
        one = joules / pue / devices
        domains = max(1, size // room)
        for _ in range(domains):
            busy = devices // domains
            places += [one] * busy + [0.0] * (size // domains - busy)
        each.append((one, watts["device"]))
    filled = [math.fsum(places[k : k + room]) for k in range(0, len(places), room)]
    together = part.hosts_per_rack or 1
    racks = [filled[k : k + together] for k in range(0, len(filled), together)]
    return {
        "device": each, "host": [(j, watts["host"]) for j in filled],
        "rack": [(math.fsum(some), len(some) * watts["rack"]) for some in racks],
    }  # fmt: skip
