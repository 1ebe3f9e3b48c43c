"""Which parts of a scale-up domain a plan may use: the devices themselves, numbered and counted.

Sharing no code with :class:`topologies.host_shape.HostShape`, whose rules it re-derives: torchrun starts equally many
ranks on every host of a plan, and they run on its first devices.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from topologies.cluster import Cluster

Ints = NDArray[np.int64]


def whole_hosts(cluster: Cluster, used: Ints) -> NDArray[np.bool_]:
    """Whether so many members of every domain level, ``used [rows, levels]``, are whole hosts or first devices."""
    distinct, inverse = np.unique(used, axis=0, return_inverse=True)
    fanouts = cluster.group_capacity[: cluster.domain_levels]
    good = [_first_devices(row, fanouts, cluster.devices_per_host) for row in distinct.tolist()]
    return np.array(good, dtype=bool)[inverse.ravel()]


def _first_devices(used: list[int], fanouts: tuple[int, ...], host_devices: int) -> bool:
    weights = [1, *itertools.accumulate(fanouts, lambda a, b: a * b)]
    device = np.zeros(1, dtype=np.int64)
    for members, weight in zip(used, weights, strict=False):
        device = (device[:, None] + weight * np.arange(members)).ravel()
    hosts, counts = np.unique(device // host_devices, return_counts=True)
    local = np.sort(device % host_devices)
    return bool((counts == counts[0]).all() and (local == np.repeat(np.arange(counts[0]), len(hosts))).all())
