"""The grain of time to which prices are rounded up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.model_graph import ModelGraph
from cost_models.workload import Training
from topologies.cluster import Cluster, Level

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
MOST_TICKS = 2.0**58
"""Of a step, however slow: integers hold 2**63, and sums that never come to pass are written as 2**60."""
STATE_BYTES, ELEMENT_BYTES = 20, 4
"""Of a parameter with weight, gradient and optimiser states, and of what a layer computes, at most."""


@dataclass(frozen=True, slots=True)
class Ticks:
    """The rounding grain of time: a power of two, so that a machine twice as fast has a grain half as long."""

    second: float

    def up(self, seconds: Floats) -> Ints:
        """Whole ticks, rounded up."""
        return np.ceil(np.asarray(seconds) / self.second).astype(np.int64)

    @staticmethod
    def of(model: ModelGraph, cluster: Cluster, workload: Training, join: Level | None = None) -> Ticks:
        """2**44 ticks, more or less, in the time one host needs for a step's FLOP at its peak.

        For models so small that latencies are all they cost, in 1 ms and 10 us a layer and sequence; where memory or
        links are very slow, ``join`` to other parts among them, as much coarser as keeps all that a step may move below
        ``MOST_TICKS``.
        """
        flop = 3 * model.forward_flop_per_token(workload.seq_len) * workload.tokens
        ideal_s = flop / (cluster.devices_per_host * cluster.peak_flop_per_s(workload.recipe.compute))
        latency_s = (1e-3 + 1e-5 * model.layers * workload.global_batch) / cluster.rate_scale
        grain_s = max(max(ideal_s, latency_s) / 2**44, _slowest_s(model, cluster, workload, join) / MOST_TICKS)
        return Ticks(2.0 ** math.floor(math.log2(grain_s)))


def _slowest_s(model: ModelGraph, cluster: Cluster, workload: Training, join: Level | None) -> float:
    """What one device would take at most to move all states once a sequence and every activation, there and back, and
    what hops over ``join`` wait for its latency, one of every layer and sequence."""
    layers = [*(model.kinds[at] for at in model.order), model.embedding, model.head]
    elements = sum(op.moved + op.saved + op.n * op.active * op.rows for layer in layers for op in layer.operators)
    moved = STATE_BYTES * model.parameters * workload.global_batch + ELEMENT_BYTES * elements * workload.tokens
    rate, latency_s = _slowest_bytes_per_s(cluster), 0.0
    if join is not None:
        rate, latency_s = min(rate, join.bandwidth_bytes_per_s), join.latency_s
    return 2 * (moved / rate + latency_s * model.layers * workload.global_batch)


def _slowest_bytes_per_s(cluster: Cluster) -> float:
    """Of memory and links, what a device gets of the slowest while all of its host are at work."""
    rates = [cluster.memory_bandwidth_bytes_per_s, *(level.bandwidth_bytes_per_s for level in cluster.levels)]
    for tier in cluster.tiers:
        pool = tier.pool_bytes_per_s / math.ceil(cluster.hosts / max(tier.pools, 1))
        port = min(tier.read_bytes_per_s, tier.write_bytes_per_s, pool)
        rates += [tier.device_bytes_per_s, *tier.shared_bytes_per_s, port / cluster.devices_per_host]
    return min(rates)
