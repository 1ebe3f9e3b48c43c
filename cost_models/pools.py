"""Memory pools that hosts share: which pipeline ranks meet in a pool, and whether it holds what they keep together.

The hosts in use are dealt to the pools in the order of ranks, equally many to each but the last. With ``n_gs`` devices
of rank ``s`` on the hosts of pool ``g``, each of which keeps ``u_s`` bytes there at its fullest moment,

    sum_s n_gs u_s <= capacity          every pool g

so a rank with many micro-batches in flight takes room that later ones leave. Ranks are full at different moments of a
step; that is not made use of. A rank alone keeps at most ``capacity pools / n_s`` a device, ``n_s`` of which it has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.power import hosts_used
from cost_models.power_levels import domains
from cost_models.rows import Rows
from topologies.cluster import Cluster
from topologies.tiers import Tier

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pool:
    """A tier of pools on a cluster."""

    tier: Tier
    cluster: Cluster

    @property
    def capacity_bytes(self) -> int:
        """Bytes that one pool holds."""
        return int(self.tier.capacity_bytes)

    def devices(self, rows: Rows, r: int) -> Ints:
        """Devices of every pipeline rank on the hosts of each pool, ``[pools, pp]``, pools alike named once."""
        one = rows.take(np.array([r]))
        pp, hosts = int(one.pp[0]), int(hosts_used(one, self.cluster)[0])
        if self.tier.pools == 1:
            return np.full((1, pp), int(one.stage_size[0]))
        content, kind = domains(one, self.cluster)
        each = content[kind].reshape(-1, pp)
        held = np.zeros((self.tier.pools, pp), dtype=np.int64)
        np.add.at(held, np.arange(len(each)) // hosts_of_a_pool(hosts, self.tier), each)
        return np.unique(held[held.any(axis=1)], axis=0)


def hosts_of_a_pool(hosts: int | Ints, tier: Tier) -> int | Ints:
    """Hosts that share a pool, of so many in use."""
    return -(-hosts // max(1, tier.pools))


def room_of_a_rank(rows: Rows, cluster: Cluster, tier: Tier) -> Floats:
    """Bytes that a device of one rank may keep at most when it is alone in the pools of its hosts, ``[rows]``."""
    hosts = hosts_used(rows, cluster)
    return tier.capacity_bytes * -(-hosts // hosts_of_a_pool(hosts, tier)) / rows.stage_size
