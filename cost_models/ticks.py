"""The grain of time to which prices are rounded up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.model_graph import ModelGraph
from cost_models.workload import Training
from topologies.cluster import Cluster

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ticks:
    """The rounding grain of time: a power of two, so that a machine twice as fast has a grain half as long."""

    second: float

    def up(self, seconds: Floats) -> Ints:
        """Whole ticks, rounded up."""
        return np.ceil(np.asarray(seconds) / self.second).astype(np.int64)

    @staticmethod
    def of(model: ModelGraph, cluster: Cluster, workload: Training) -> Ticks:
        """2**44 ticks, more or less, in the time one host needs for a step's FLOP at its peak.

        For models so small that latencies are all they cost, in 1 ms and 10 us a layer and sequence: a step must
        stay far below the 2**63 that an integer holds.
        """
        flop = 3 * model.forward_flop_per_token(workload.seq_len) * workload.tokens
        ideal_s = flop / (cluster.devices_per_host * cluster.peak_flop_per_s(workload.recipe.compute))
        latency_s = (1e-3 + 1e-5 * model.layers * workload.global_batch) / cluster.rate_scale
        return Ticks(2.0 ** (math.floor(math.log2(max(ideal_s, latency_s))) - 44))
